ALTER TABLE placement_aggregates ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE placement_allocations ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE placement_consumers ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE placement_groups ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE placement_inventories ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
ALTER TABLE placement_providers ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
