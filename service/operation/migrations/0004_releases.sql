-- What runners of two releases need to know of an operation. kind_version is the version of the kind that has begun the operation, and then of
-- the steps. steps are the names of the operation's steps, as a JSON array in their order; they are empty until a runner of this
-- release has the operation. unknown_at is since when no running process knows the operation.
ALTER TABLE operations ADD COLUMN kind_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operations ADD COLUMN steps VARCHAR(4000) NOT NULL DEFAULT '';
ALTER TABLE operations ADD COLUMN unknown_at DATETIME(6);
