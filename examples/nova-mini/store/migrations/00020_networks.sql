-- What a client asks for of the network service, and the ports that the server has, as JSON. NULL: nothing.
ALTER TABLE servers ADD COLUMN networks TEXT;
ALTER TABLE servers ADD COLUMN ports TEXT;
ALTER TABLE deleted_servers ADD COLUMN networks TEXT;
ALTER TABLE deleted_servers ADD COLUMN ports TEXT;
