-- +db applied-if SELECT id FROM members LIMIT 0
-- The table of service/membership.
CREATE TABLE members (
    kind            VARCHAR(64) NOT NULL,
    host            VARCHAR(255) NOT NULL,
    id              VARCHAR(36) NOT NULL UNIQUE,
    version         BIGINT NOT NULL,
    data            TEXT NOT NULL,
    disabled        BOOLEAN NOT NULL,
    disabled_reason VARCHAR(255) NOT NULL,
    forced_down     BOOLEAN NOT NULL,
    departed        BOOLEAN NOT NULL,
    joined_at       DATETIME(6) NOT NULL,
    seen_at         DATETIME(6) NOT NULL,
    created_at      DATETIME(6) NOT NULL,
    PRIMARY KEY (kind, host)
);
