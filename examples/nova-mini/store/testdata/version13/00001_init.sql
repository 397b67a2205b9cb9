-- +goose Up
CREATE TABLE flavors (
    id            VARCHAR(255) NOT NULL PRIMARY KEY,
    name          VARCHAR(255) NOT NULL UNIQUE,
    vcpus         INTEGER NOT NULL,
    memory_mib    INTEGER NOT NULL,
    disk_gib      INTEGER NOT NULL,
    ephemeral_gib INTEGER NOT NULL,
    swap_mib      INTEGER NOT NULL,
    rxtx_factor   DOUBLE NOT NULL,
    is_public     BOOLEAN NOT NULL
);

-- A server carries its own copy of the flavor's amounts: a flavor may be deleted
-- while servers of it live. Whoever acts on a row with a task leases it first by
-- setting lease and moving due_at; nobody else touches it before due_at.
CREATE TABLE servers (
    id            VARCHAR(36) NOT NULL PRIMARY KEY,
    name          VARCHAR(255) NOT NULL,
    project_id    VARCHAR(255) NOT NULL,
    user_id       VARCHAR(255) NOT NULL,
    request_id    VARCHAR(64) NOT NULL,
    image_ref     VARCHAR(255) NOT NULL,
    flavor_id     VARCHAR(255) NOT NULL,
    vcpus         INTEGER NOT NULL,
    memory_mib    INTEGER NOT NULL,
    disk_gib      INTEGER NOT NULL,
    metadata      TEXT NOT NULL,
    vm_state      VARCHAR(32) NOT NULL,
    task_state    VARCHAR(32),
    host          VARCHAR(255),
    generation    BIGINT NOT NULL,
    attempts      INTEGER NOT NULL,
    tried         TEXT NOT NULL,
    fault_code    INTEGER NOT NULL,
    fault_message TEXT NOT NULL,
    fault_at      DATETIME(6),
    lease         VARCHAR(64) NOT NULL,
    due_at        DATETIME(6) NOT NULL,
    task_since    DATETIME(6) NOT NULL,
    created_at    DATETIME(6) NOT NULL,
    updated_at    DATETIME(6) NOT NULL,
    launched_at   DATETIME(6)
);
CREATE INDEX servers_due ON servers (task_state, due_at);
CREATE INDEX servers_created ON servers (created_at, id);
CREATE INDEX servers_host ON servers (host);

CREATE TABLE services (
    id              INTEGER NOT NULL PRIMARY KEY,
    binary_name     VARCHAR(64) NOT NULL,
    host            VARCHAR(255) NOT NULL,
    disabled        BOOLEAN NOT NULL,
    disabled_reason VARCHAR(255) NOT NULL,
    seen_at         DATETIME(6) NOT NULL,
    CONSTRAINT services_who UNIQUE (binary_name, host)
);

CREATE TABLE hosts (
    id             INTEGER NOT NULL PRIMARY KEY,
    name           VARCHAR(255) NOT NULL UNIQUE,
    driver         VARCHAR(255) NOT NULL,
    driver_version VARCHAR(255) NOT NULL
);

-- used is the sum of the allocations. It is a column so that one UPDATE can
-- check and take.
CREATE TABLE inventories (
    host     VARCHAR(255) NOT NULL,
    class    VARCHAR(64) NOT NULL,
    total    BIGINT NOT NULL,
    reserved BIGINT NOT NULL,
    ratio    DOUBLE NOT NULL,
    used     BIGINT NOT NULL,
    PRIMARY KEY (host, class)
);

CREATE TABLE allocations (
    server_id VARCHAR(36) NOT NULL,
    class     VARCHAR(64) NOT NULL,
    host      VARCHAR(255) NOT NULL,
    amount    BIGINT NOT NULL,
    PRIMARY KEY (server_id, class)
);
CREATE INDEX allocations_host ON allocations (host);

INSERT INTO flavors (id, name, vcpus, memory_mib, disk_gib, ephemeral_gib, swap_mib, rxtx_factor, is_public) VALUES
    ('1', 'm1.tiny', 1, 512, 1, 0, 0, 1, TRUE),
    ('2', 'm1.small', 1, 2048, 20, 0, 0, 1, TRUE),
    ('3', 'm1.medium', 2, 4096, 40, 0, 0, 1, TRUE),
    ('4', 'm1.large', 4, 8192, 80, 0, 0, 1, TRUE),
    ('5', 'm1.xlarge', 8, 16384, 160, 0, 0, 1, TRUE);
