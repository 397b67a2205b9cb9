-- +goose Up
-- The projects that may use a flavor that is not public.
CREATE TABLE flavor_projects (
    flavor_id  VARCHAR(255) NOT NULL,
    project_id VARCHAR(255) NOT NULL,
    PRIMARY KEY (flavor_id, project_id)
);
