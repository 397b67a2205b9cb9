-- When a flavor was created and last changed, for the order of lists. NULL: an earlier release has created the flavor, or the flavor was never changed.
ALTER TABLE flavors ADD COLUMN created_at DATETIME(6);
ALTER TABLE flavors ADD COLUMN updated_at DATETIME(6);
