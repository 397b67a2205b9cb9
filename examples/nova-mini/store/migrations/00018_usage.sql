-- What is kept of a deleted server for reports of usage, longer than its row in deleted_servers: who had it, its size and its time.
CREATE TABLE past_usage (
    id            VARCHAR(36) NOT NULL PRIMARY KEY,
    project_id    VARCHAR(255) NOT NULL,
    name          VARCHAR(255) NOT NULL,
    flavor_id     VARCHAR(255) NOT NULL,
    boot_flavor   MEDIUMTEXT,
    vcpus         INTEGER NOT NULL,
    memory_mib    INTEGER NOT NULL,
    disk_gib      INTEGER NOT NULL,
    launched_at   DATETIME(6) NOT NULL,
    terminated_at DATETIME(6) NOT NULL
);
CREATE INDEX past_usage_project ON past_usage (project_id, id);
CREATE INDEX past_usage_terminated ON past_usage (terminated_at);
