-- What a transaction waits for, as far as only who works on it can know, and since when. How often an attempt
-- was sent and when first, and what each node said last.
ALTER TABLE transactions ADD COLUMN waits_code TEXT;
ALTER TABLE transactions ADD COLUMN waits_detail TEXT;
ALTER TABLE transactions ADD COLUMN waits_since BIGINT;
ALTER TABLE attempts ADD COLUMN first_sent_at BIGINT;
ALTER TABLE attempts ADD COLUMN sends BIGINT NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN answer_detail TEXT;
UPDATE attempts SET first_sent_at = sent_at, sends = 1 WHERE sent_at IS NOT NULL;
