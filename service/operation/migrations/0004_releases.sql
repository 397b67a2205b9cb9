-- Runners of two releases need these columns. kind_version is the version of the operation's kind in the process that has begun the operation.
-- The first runner of the operation replaces it by the version of its own release, and stores the names of the steps of that version in the
-- column steps, in their order, as a JSON array. Before, steps is empty. unknown_at is the time since which no running process knows
-- the operation, or null.
ALTER TABLE operations ADD COLUMN kind_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operations ADD COLUMN steps VARCHAR(4000) NOT NULL DEFAULT '';
ALTER TABLE operations ADD COLUMN unknown_at DATETIME(6);
