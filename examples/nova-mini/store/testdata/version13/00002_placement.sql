-- +goose Up
-- The tables of scheduler/placement. used is the sum of the allocations, and
-- capacity follows from the columns before it: so one UPDATE can check and take.
-- generation is the provider's, repeated for the same reason.
CREATE TABLE placement_providers (
    id         VARCHAR(255) NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    data       TEXT NOT NULL
);

CREATE TABLE placement_inventories (
    provider   VARCHAR(255) NOT NULL,
    class      VARCHAR(255) NOT NULL,
    total      BIGINT NOT NULL,
    reserved   BIGINT NOT NULL,
    ratio      DOUBLE NOT NULL,
    min_unit   BIGINT NOT NULL,
    max_unit   BIGINT NOT NULL,
    step_size  BIGINT NOT NULL,
    capacity   BIGINT NOT NULL,
    used       BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    PRIMARY KEY (provider, class)
);

CREATE TABLE placement_aggregates (
    name     VARCHAR(255) NOT NULL PRIMARY KEY,
    metadata TEXT NOT NULL
);

CREATE TABLE placement_consumers (
    id         VARCHAR(255) NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    host       VARCHAR(255) NOT NULL,
    group_id   VARCHAR(255) NOT NULL,
    changed_at DATETIME(6) NOT NULL
);
CREATE INDEX placement_consumers_group ON placement_consumers (group_id, host);
CREATE INDEX placement_consumers_host ON placement_consumers (host);

CREATE TABLE placement_allocations (
    consumer VARCHAR(255) NOT NULL,
    provider VARCHAR(255) NOT NULL,
    class    VARCHAR(255) NOT NULL,
    amount   BIGINT NOT NULL,
    PRIMARY KEY (consumer, provider, class)
);
CREATE INDEX placement_allocations_provider ON placement_allocations (provider, class);

-- A row for each group with a policy, which claims of its members lock.
CREATE TABLE placement_groups (
    id     VARCHAR(255) NOT NULL PRIMARY KEY,
    claims BIGINT NOT NULL
);
