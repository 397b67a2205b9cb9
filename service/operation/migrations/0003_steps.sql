-- +db applied-if SELECT step FROM operation_current LIMIT 0
-- step_name is the step by its name. entry counts the entries into a step, which a token names; reported is the entry
-- that a report has ended last. waits counts how often a step has waited in its entry, peer is what it waits for, and
-- step_deadline_at ends the step.
ALTER TABLE operations ADD COLUMN step_name VARCHAR(64) NOT NULL DEFAULT '';
ALTER TABLE operations ADD COLUMN entry INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operations ADD COLUMN reported INTEGER NOT NULL DEFAULT -1;
ALTER TABLE operations ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operations ADD COLUMN peer VARCHAR(255);
ALTER TABLE operations ADD COLUMN step_deadline_at DATETIME(6);
CREATE INDEX operations_peer ON operations (peer);
CREATE VIEW operation_current AS SELECT active AS resource, id, kind, state, step_name AS step FROM operations WHERE active IS NOT NULL;
