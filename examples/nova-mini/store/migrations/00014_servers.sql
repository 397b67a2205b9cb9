-- What a client says about a new server, and the flavor at its last boot. Rows of the release before have none of it. Lists and objects are JSON: boot_flavor has
-- the values of the flavor that the other columns do not have, tags are a sorted list of texts, and scheduler_hints are lists of values by name. admin_pass is
-- NULL after the server has been built.
ALTER TABLE servers ADD COLUMN description VARCHAR(255);
ALTER TABLE servers ADD COLUMN hostname VARCHAR(255) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN reservation_id VARCHAR(32) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN launch_index INTEGER NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN access_ip_v4 VARCHAR(39) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN access_ip_v6 VARCHAR(45) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN auto_disk_config BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE servers ADD COLUMN config_drive BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE servers ADD COLUMN key_name VARCHAR(255);
ALTER TABLE servers ADD COLUMN public_key TEXT;
ALTER TABLE servers ADD COLUMN pinned_zone VARCHAR(255);
ALTER TABLE servers ADD COLUMN tags TEXT;
ALTER TABLE servers ADD COLUMN scheduler_hints MEDIUMTEXT;
ALTER TABLE servers ADD COLUMN boot_flavor MEDIUMTEXT;
ALTER TABLE servers ADD COLUMN user_data TEXT;
ALTER TABLE servers ADD COLUMN admin_pass MEDIUMTEXT;

-- Servers that were deleted, as they were, without their secrets. Administrators list them until they are pruned. The table has all columns of servers, also
-- those of later migrations.
CREATE TABLE deleted_servers (
    id               VARCHAR(36) NOT NULL PRIMARY KEY,
    name             VARCHAR(255) NOT NULL,
    project_id       VARCHAR(255) NOT NULL,
    user_id          VARCHAR(255) NOT NULL,
    request_id       VARCHAR(64) NOT NULL,
    image_ref        VARCHAR(255) NOT NULL,
    flavor_id        VARCHAR(255) NOT NULL,
    vcpus            INTEGER NOT NULL,
    memory_mib       INTEGER NOT NULL,
    disk_gib         INTEGER NOT NULL,
    metadata         TEXT NOT NULL,
    vm_state         VARCHAR(32) NOT NULL,
    host             VARCHAR(255),
    fault_code       INTEGER NOT NULL,
    fault_message    TEXT NOT NULL,
    fault_at         DATETIME(6),
    created_at       DATETIME(6) NOT NULL,
    updated_at       DATETIME(6) NOT NULL,
    launched_at      DATETIME(6),
    resize           TEXT,
    fault_for_users  VARCHAR(255) NOT NULL DEFAULT '',
    description      VARCHAR(255),
    hostname         VARCHAR(255) NOT NULL DEFAULT '',
    reservation_id   VARCHAR(32) NOT NULL DEFAULT '',
    launch_index     INTEGER NOT NULL DEFAULT 0,
    access_ip_v4     VARCHAR(39) NOT NULL DEFAULT '',
    access_ip_v6     VARCHAR(45) NOT NULL DEFAULT '',
    auto_disk_config BOOLEAN NOT NULL DEFAULT FALSE,
    config_drive     BOOLEAN NOT NULL DEFAULT FALSE,
    key_name         VARCHAR(255),
    public_key       TEXT,
    pinned_zone      VARCHAR(255),
    tags             TEXT,
    scheduler_hints  MEDIUMTEXT,
    boot_flavor      MEDIUMTEXT,
    user_data        TEXT,
    admin_pass       MEDIUMTEXT,
    locked_by        VARCHAR(8) NOT NULL DEFAULT '',
    locked_reason    VARCHAR(255) NOT NULL DEFAULT '',
    shelved_image    VARCHAR(255) NOT NULL DEFAULT '',
    shelved_at       DATETIME(6),
    deleted_at       DATETIME(6) NOT NULL
);
CREATE INDEX deleted_servers_deleted ON deleted_servers (deleted_at, id);
