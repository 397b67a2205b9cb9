-- The images of createBackup that drivers keep on their hosts, because there is no image service. An image service knows its own.
CREATE TABLE backups (
    image_id    VARCHAR(64) NOT NULL PRIMARY KEY,
    server_id   VARCHAR(36) NOT NULL,
    host        VARCHAR(255) NOT NULL,
    backup_type TEXT NOT NULL,
    created_at  DATETIME(6) NOT NULL
);
CREATE INDEX backups_server ON backups (server_id, host);
