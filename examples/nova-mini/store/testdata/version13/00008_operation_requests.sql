-- +goose Up
-- What else service/operation keeps of the request that an operation belongs to.
ALTER TABLE operations ADD COLUMN global_request_id VARCHAR(64) NOT NULL DEFAULT '';
ALTER TABLE operations ADD COLUMN traceparent VARCHAR(64) NOT NULL DEFAULT '';
