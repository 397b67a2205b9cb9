-- The table of service/idempotency.
-- id is a hash of the client's scope and key. reply is the request and its reply, encrypted with another hash of the key.
CREATE TABLE idempotency_replies (
    id         VARCHAR(64) NOT NULL PRIMARY KEY,
    reply      MEDIUMBLOB NOT NULL,
    expires_at DATETIME(6) NOT NULL
);
CREATE INDEX idempotency_replies_expires ON idempotency_replies (expires_at);
