-- The IPv4 address of a compute host. NULL: not known, because a compute service of an earlier release reports none.
ALTER TABLE hosts ADD COLUMN ip VARCHAR(15);
