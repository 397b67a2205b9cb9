-- The host on which the driver stores the image of a shelved server, without an image service. NULL: the image is in the image service, or an earlier release has
-- shelved the server.
ALTER TABLE servers ADD COLUMN shelved_host VARCHAR(255);
ALTER TABLE deleted_servers ADD COLUMN shelved_host VARCHAR(255);
