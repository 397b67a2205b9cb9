ALTER TABLE operations ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE operation_events ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE operation_leases ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
