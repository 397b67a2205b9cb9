-- The ports of a server are in the column networks, beside what they were made for. No release has had the column ports.
ALTER TABLE servers DROP COLUMN ports;
ALTER TABLE deleted_servers DROP COLUMN ports;
