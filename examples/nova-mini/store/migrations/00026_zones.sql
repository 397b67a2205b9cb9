-- The availability zone of a compute host. NULL: the default one, because a compute service of an earlier release reports none.
ALTER TABLE hosts ADD COLUMN zone VARCHAR(255);
