-- The table of the component of the tests.
CREATE TABLE things (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(64) NOT NULL);
CREATE UNIQUE INDEX things_name ON things (name);
