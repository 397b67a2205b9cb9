-- The name of a server on its host. NULL: an earlier release has created the server.
ALTER TABLE servers ADD COLUMN instance_name VARCHAR(255);
ALTER TABLE deleted_servers ADD COLUMN instance_name VARCHAR(255);
