ALTER TABLE idempotency_replies ADD COLUMN next_note VARCHAR(64) NOT NULL DEFAULT 'next';
