-- +db replaces 00006_operation_steps.sql baeeee6427e7d3f5eaaf14b7c535fb64058e325fedbc620df371af13d53542c7
CREATE TABLE greetings (
    id   VARCHAR(36) NOT NULL PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    text TEXT NOT NULL,
    host VARCHAR(255) NOT NULL
);
