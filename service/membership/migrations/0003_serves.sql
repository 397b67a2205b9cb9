-- What the process of a member serves: the versions of its interfaces, as JSON, or empty. It belongs to service/membership.
ALTER TABLE members ADD COLUMN serves VARCHAR(4000) NOT NULL DEFAULT '';
