-- What a client asks for of the network service, the ports that the server has, and the files that the guest gets, as JSON. NULL: nothing.
ALTER TABLE servers ADD COLUMN networks TEXT;
ALTER TABLE servers ADD COLUMN ports TEXT;
ALTER TABLE servers ADD COLUMN files MEDIUMTEXT;
ALTER TABLE deleted_servers ADD COLUMN networks TEXT;
ALTER TABLE deleted_servers ADD COLUMN ports TEXT;
ALTER TABLE deleted_servers ADD COLUMN files MEDIUMTEXT;
