-- +goose Up
CREATE TABLE greetings (
    id   VARCHAR(36) NOT NULL PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    text TEXT NOT NULL,
    host VARCHAR(255) NOT NULL
);
