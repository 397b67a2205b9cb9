-- +goose Up
-- A resize that is neither confirmed nor reverted, as JSON.
ALTER TABLE servers ADD COLUMN resize TEXT;
