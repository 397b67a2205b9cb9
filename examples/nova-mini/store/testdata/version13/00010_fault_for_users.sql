-- +goose Up
-- A fault has a message for the server's project, and in fault_message the reasons, which name
-- hosts and amounts, for administrators.
ALTER TABLE servers ADD COLUMN fault_for_users VARCHAR(255) NOT NULL DEFAULT '';
UPDATE servers SET fault_for_users = CASE
    WHEN fault_message LIKE 'No valid host was found.%' THEN 'No valid host was found. There are not enough hosts available.'
    WHEN fault_message LIKE 'Exceeded maximum number of retries.%' THEN 'Exceeded maximum number of retries.'
    ELSE 'Build of instance ' || id || ' aborted.' END
    WHERE fault_at IS NOT NULL;
