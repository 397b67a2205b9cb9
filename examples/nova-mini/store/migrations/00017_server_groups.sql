-- Groups of servers. max_per_host is 0 without the rule max_server_per_host. The group_id of a server stays when its group is deleted: then it names no group.
-- The members of a group are the rows of servers that have its id, so processes of the release before end a membership by removing the server.
CREATE TABLE server_groups (
    id           VARCHAR(36) NOT NULL PRIMARY KEY,
    name         VARCHAR(255) NOT NULL,
    project_id   VARCHAR(255) NOT NULL,
    user_id      VARCHAR(255) NOT NULL,
    policy       VARCHAR(32) NOT NULL,
    max_per_host INTEGER NOT NULL,
    created_at   DATETIME(6) NOT NULL
);
CREATE INDEX server_groups_project ON server_groups (project_id, created_at, id);
ALTER TABLE servers ADD COLUMN group_id VARCHAR(36);
ALTER TABLE deleted_servers ADD COLUMN group_id VARCHAR(36);
CREATE INDEX servers_group ON servers (group_id);
