-- locked_by is owner or admin, or empty for a server that is not locked. capabilities are those of the driver of a host, as a JSON array; null
-- if the compute service has not reported them.
ALTER TABLE servers ADD COLUMN locked_by VARCHAR(8) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN locked_reason VARCHAR(255) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN shelved_image VARCHAR(255) NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN shelved_at DATETIME(6);
ALTER TABLE hosts ADD COLUMN capabilities TEXT;
