-- +goose Up
-- The task of a server is the step of its operation. What a build knows is in the operation's data: the hosts on which
-- it has failed, and the host that builds, here. A deletion has one step.
UPDATE operations SET data = COALESCE((SELECT '{"tried":' || tried || COALESCE(',"host":"' || host || '"', '') || '}' FROM servers WHERE servers.id = operations.active), data)
    WHERE active IS NOT NULL AND kind = 'server.create';
UPDATE operations SET step = 0 WHERE active IS NOT NULL AND kind = 'server.delete';
UPDATE operations SET step = 0 WHERE active IS NOT NULL AND kind = 'server.create' AND active IN (SELECT id FROM servers WHERE host IS NULL);
ALTER TABLE servers DROP COLUMN task_state;
ALTER TABLE servers DROP COLUMN generation;
ALTER TABLE servers DROP COLUMN attempts;
ALTER TABLE servers DROP COLUMN tried;
ALTER TABLE servers DROP COLUMN task_since;
