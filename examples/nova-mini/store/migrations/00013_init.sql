-- +db replaces 00013_one_state_machine.sql b813c5232d007e27bc72f2703625b940421e3e27cc3f7ec1f61a10916ecae36e
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
INSERT INTO flavors (id, name, vcpus, memory_mib, disk_gib, ephemeral_gib, swap_mib, rxtx_factor, is_public) VALUES
    ('1', 'm1.tiny', 1, 512, 1, 0, 0, 1, TRUE),
    ('2', 'm1.small', 1, 2048, 20, 0, 0, 1, TRUE),
    ('3', 'm1.medium', 2, 4096, 40, 0, 0, 1, TRUE),
    ('4', 'm1.large', 4, 8192, 80, 0, 0, 1, TRUE),
    ('5', 'm1.xlarge', 8, 16384, 160, 0, 0, 1, TRUE);

-- The projects that may use a flavor that is not public.
CREATE TABLE flavor_projects (
    flavor_id  VARCHAR(255) NOT NULL,
    project_id VARCHAR(255) NOT NULL,
    PRIMARY KEY (flavor_id, project_id)
);

-- A server has its own copy of the flavor's amounts: a flavor may be deleted while servers of it exist. The task of a server is the step of
-- its operation. fault_for_users is what the server's project sees of a fault; fault_message has the reasons, which name hosts and
-- amounts, for administrators. resize is a resize that is neither confirmed nor reverted, as JSON.
CREATE TABLE servers (
    id              VARCHAR(36) NOT NULL PRIMARY KEY,
    name            VARCHAR(255) NOT NULL,
    project_id      VARCHAR(255) NOT NULL,
    user_id         VARCHAR(255) NOT NULL,
    request_id      VARCHAR(64) NOT NULL,
    image_ref       VARCHAR(255) NOT NULL,
    flavor_id       VARCHAR(255) NOT NULL,
    vcpus           INTEGER NOT NULL,
    memory_mib      INTEGER NOT NULL,
    disk_gib        INTEGER NOT NULL,
    metadata        TEXT NOT NULL,
    vm_state        VARCHAR(32) NOT NULL,
    host            VARCHAR(255),
    fault_code      INTEGER NOT NULL,
    fault_message   TEXT NOT NULL,
    fault_at        DATETIME(6),
    created_at      DATETIME(6) NOT NULL,
    updated_at      DATETIME(6) NOT NULL,
    launched_at     DATETIME(6),
    resize          TEXT,
    fault_for_users VARCHAR(255) NOT NULL DEFAULT ''
);
CREATE INDEX servers_created ON servers (created_at, id);
CREATE INDEX servers_host ON servers (host);

CREATE TABLE hosts (
    id             INTEGER NOT NULL PRIMARY KEY,
    name           VARCHAR(255) NOT NULL UNIQUE,
    driver         VARCHAR(255) NOT NULL,
    driver_version VARCHAR(255) NOT NULL
);

-- The numbers by which the API knows services.
CREATE TABLE service_numbers (
    id   INTEGER NOT NULL PRIMARY KEY,
    kind VARCHAR(64) NOT NULL,
    host VARCHAR(255) NOT NULL,
    CONSTRAINT service_numbers_who UNIQUE (kind, host)
);
