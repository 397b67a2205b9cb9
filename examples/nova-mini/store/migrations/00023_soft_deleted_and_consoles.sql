-- Since when a server is soft-deleted. NULL: it never was.
ALTER TABLE servers ADD COLUMN soft_deleted_at DATETIME(6);
ALTER TABLE deleted_servers ADD COLUMN soft_deleted_at DATETIME(6);
CREATE INDEX servers_vm_state ON servers (vm_state, soft_deleted_at);
-- What a token of a console allows. The token itself is not stored, only its SHA-256.
CREATE TABLE console_tokens (
    token_hash   VARCHAR(64) NOT NULL PRIMARY KEY,
    server_id    VARCHAR(36) NOT NULL,
    compute_host VARCHAR(255) NOT NULL,
    console_type VARCHAR(32) NOT NULL,
    host         VARCHAR(255) NOT NULL,
    port         INTEGER NOT NULL,
    url_base     VARCHAR(1024) NOT NULL,
    expires_at   DATETIME(6) NOT NULL
);
CREATE INDEX console_tokens_server ON console_tokens (server_id);
CREATE INDEX console_tokens_expires ON console_tokens (expires_at);
