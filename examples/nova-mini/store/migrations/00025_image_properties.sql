-- The properties of a server's image at its last boot, as a JSON object of texts. NULL: none, or an earlier release has created the server.
ALTER TABLE servers ADD COLUMN image_properties MEDIUMTEXT;
ALTER TABLE deleted_servers ADD COLUMN image_properties MEDIUMTEXT;
