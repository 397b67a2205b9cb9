-- Whether the image of a shelved server is one of the image service. NULL: an earlier release has shelved the server.
ALTER TABLE servers ADD COLUMN shelved_upload BOOLEAN;
ALTER TABLE deleted_servers ADD COLUMN shelved_upload BOOLEAN;
