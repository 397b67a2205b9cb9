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
