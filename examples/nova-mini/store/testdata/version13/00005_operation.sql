-- +goose Up
-- The tables of service/operation. active is the resource while the operation is not
-- over, and null after: so there is one at a time. due_at is when somebody is to look at
-- it: the end of a lease, or of a pause; null when it is over. fence is counted up with
-- each change of hands, and every write requires it.
CREATE TABLE operations (
    id          VARCHAR(36) NOT NULL PRIMARY KEY,
    kind        VARCHAR(64) NOT NULL,
    resource    VARCHAR(255) NOT NULL,
    active      VARCHAR(255) UNIQUE,
    priority    INTEGER NOT NULL,
    state       VARCHAR(16) NOT NULL,
    outcome     VARCHAR(16) NOT NULL,
    step        INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    events      INTEGER NOT NULL,
    input       TEXT NOT NULL,
    data        TEXT NOT NULL,
    error_code  VARCHAR(32) NOT NULL,
    error       TEXT NOT NULL,
    fence       BIGINT NOT NULL,
    owner       VARCHAR(255) NOT NULL,
    due_at      DATETIME(6),
    deadline_at DATETIME(6) NOT NULL,
    timeout_ms  BIGINT NOT NULL,
    request_id  VARCHAR(64) NOT NULL,
    project_id  VARCHAR(255) NOT NULL,
    user_id     VARCHAR(255) NOT NULL,
    created_at  DATETIME(6) NOT NULL,
    updated_at  DATETIME(6) NOT NULL,
    ended_at    DATETIME(6)
);
CREATE INDEX operations_due ON operations (due_at);
CREATE INDEX operations_resource ON operations (resource, created_at);
CREATE INDEX operations_created ON operations (created_at, id);

CREATE TABLE operation_events (
    operation_id VARCHAR(36) NOT NULL,
    seq          INTEGER NOT NULL,
    step         VARCHAR(64) NOT NULL,
    result       VARCHAR(16) NOT NULL,
    host         VARCHAR(255) NOT NULL,
    error_code   VARCHAR(32) NOT NULL,
    error        TEXT NOT NULL,
    began_at     DATETIME(6) NOT NULL,
    ended_at     DATETIME(6) NOT NULL,
    PRIMARY KEY (operation_id, seq)
);

CREATE TABLE operation_leases (
    name  VARCHAR(255) NOT NULL PRIMARY KEY,
    owner VARCHAR(255) NOT NULL,
    fence BIGINT NOT NULL,
    until DATETIME(6) NOT NULL
);
