-- The power state of a server's guest, with Nova's number, as it was last reported or follows from the last action. NULL: not known, because no action of this release
-- has ended on the server.
ALTER TABLE servers ADD COLUMN power_state INTEGER;
ALTER TABLE deleted_servers ADD COLUMN power_state INTEGER;
