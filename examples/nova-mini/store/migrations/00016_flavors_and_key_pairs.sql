-- A description and the extra specs of a flavor, as JSON. NULL: none.
ALTER TABLE flavors ADD COLUMN description TEXT;
ALTER TABLE flavors ADD COLUMN extra_specs TEXT;

-- Key pairs belong to users, not to projects.
CREATE TABLE key_pairs (
    id          BIGINT NOT NULL UNIQUE,
    user_id     VARCHAR(255) NOT NULL,
    name        VARCHAR(255) NOT NULL,
    type        VARCHAR(16) NOT NULL,
    public_key  TEXT NOT NULL,
    fingerprint VARCHAR(255) NOT NULL,
    created_at  DATETIME(6) NOT NULL,
    PRIMARY KEY (user_id, name)
);
