-- +db applied-if SELECT instance FROM members LIMIT 0
-- Which start of a process a member is, if only one may be it: JSON, or empty. It belongs to service/membership.
ALTER TABLE members ADD COLUMN instance VARCHAR(1000) NOT NULL DEFAULT '';
