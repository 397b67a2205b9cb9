CREATE TABLE backups (
	id VARCHAR(36) NOT NULL PRIMARY KEY,
	project_id VARCHAR(255) NOT NULL,
	name VARCHAR(255) NOT NULL,
	size BIGINT NOT NULL,
	status VARCHAR(36) NOT NULL,
	host VARCHAR(255) NOT NULL,
	created_at DATETIME(6) NOT NULL
);

CREATE INDEX backups_by_project ON backups (project_id, created_at, id);
