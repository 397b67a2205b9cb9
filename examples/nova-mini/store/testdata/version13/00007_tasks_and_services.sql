-- +goose Up
-- A task is an operation's now, and a service a member. A server has one task at most,
-- so its id can be that of the operation. The steps look themselves at how long a task
-- takes; the deadline is only the last resort.
INSERT INTO operations (id, kind, resource, active, priority, state, outcome, step, attempts, events, input, data,
    error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, project_id, user_id, created_at, updated_at, ended_at)
    SELECT id, CASE task_state WHEN 'deleting' THEN 'server.delete' WHEN 'powering-off' THEN 'server.stop' WHEN 'powering-on' THEN 'server.start'
        WHEN 'rebooting' THEN 'server.reboot' WHEN 'rebooting_hard' THEN 'server.hard_reboot' WHEN 'resize_prep' THEN 'server.resize'
        WHEN 'resize_confirming' THEN 'server.confirm_resize' WHEN 'resize_reverting' THEN 'server.revert_resize' ELSE 'server.create' END,
    id, id, CASE task_state WHEN 'deleting' THEN 10 ELSE 0 END, 'running', '', 0, 0, 0, '{}', 'null',
    '', '', 1, '', UTC_TIMESTAMP(6), '2100-01-01 00:00:00.000000', 86400000, request_id, project_id, user_id, task_since, UTC_TIMESTAMP(6), NULL
    FROM servers WHERE task_state IS NOT NULL;

CREATE TABLE servers_next (
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
    task_since    DATETIME(6) NOT NULL,
    created_at    DATETIME(6) NOT NULL,
    updated_at    DATETIME(6) NOT NULL,
    launched_at   DATETIME(6),
    resize        TEXT
);
INSERT INTO servers_next (id, name, project_id, user_id, request_id, image_ref, flavor_id, vcpus, memory_mib, disk_gib, metadata, vm_state, task_state,
    host, generation, attempts, tried, fault_code, fault_message, fault_at, task_since, created_at, updated_at, launched_at, resize)
    SELECT id, name, project_id, user_id, request_id, image_ref, flavor_id, vcpus, memory_mib, disk_gib, metadata, vm_state, task_state,
    host, generation, attempts, tried, fault_code, fault_message, fault_at, task_since, created_at, updated_at, launched_at, resize FROM servers;
DROP TABLE servers;
ALTER TABLE servers_next RENAME TO servers;
CREATE INDEX servers_created ON servers (created_at, id);
CREATE INDEX servers_host ON servers (host);

INSERT INTO members (kind, host, id, version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
    SELECT binary_name, host, '00000000-0000-0000-0000-' || SUBSTR('000000000000' || id, -12), 1, '', disabled, disabled_reason, FALSE, FALSE, seen_at, seen_at, seen_at
    FROM services;

-- The numbers by which the API knows services.
CREATE TABLE service_numbers (
    id   INTEGER NOT NULL PRIMARY KEY,
    kind VARCHAR(64) NOT NULL,
    host VARCHAR(255) NOT NULL,
    CONSTRAINT service_numbers_who UNIQUE (kind, host)
);
INSERT INTO service_numbers (id, kind, host) SELECT id, binary_name, host FROM services;
DROP TABLE services;
