-- reporter is the process that has reported the end of the work; empty without a report.
ALTER TABLE operation_events ADD COLUMN reporter VARCHAR(255) NOT NULL DEFAULT '';
