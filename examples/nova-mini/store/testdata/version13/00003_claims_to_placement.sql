-- +goose Up
-- The ratio is left at 1 until the host's next report, which comes within seconds.
INSERT INTO placement_providers (id, generation, data) SELECT name, 1, '{}' FROM hosts;
INSERT INTO placement_inventories (provider, class, total, reserved, ratio, min_unit, max_unit, step_size, capacity, used, generation)
    SELECT host, class, total, reserved, 0, 0, 0, 0, total - reserved, used, 1 FROM inventories;
INSERT INTO placement_consumers (id, generation, host, group_id, changed_at)
    SELECT server_id, 1, MIN(host), '', UTC_TIMESTAMP(6) FROM allocations GROUP BY server_id;
INSERT INTO placement_allocations (consumer, provider, class, amount)
    SELECT server_id, host, class, amount FROM allocations WHERE amount > 0;
DROP TABLE allocations;
DROP TABLE inventories;
