-- The tables of service/quota.
-- A claim is what one consumer, such as a resource, uses of a class. until is the end of a reservation, or NULL.
CREATE TABLE quota_claims (
    consumer VARCHAR(64) NOT NULL,
    class    VARCHAR(64) NOT NULL,
    project  VARCHAR(255) NOT NULL,
    amount   BIGINT NOT NULL,
    until    DATETIME(6) NULL,
    PRIMARY KEY (consumer, class)
);
CREATE INDEX quota_claims_project ON quota_claims (project, class);
CREATE INDEX quota_claims_until ON quota_claims (until);
-- The sum of the claims, and the project's own limit: -1 is no limit, and NULL is the limit of all projects. A row is locked while
-- claims of the project and class change.
CREATE TABLE quota_usage (
    project VARCHAR(255) NOT NULL,
    class   VARCHAR(64) NOT NULL,
    used    BIGINT NOT NULL,
    max     BIGINT NULL,
    PRIMARY KEY (project, class)
);
