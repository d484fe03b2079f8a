-- Who has had requests that wait for time or people: whoever adds one holds this row until its commit, so that of
-- two that take the last place one sees the other. told_at is when a refusal was last written into the log.
CREATE TABLE waiters (
    sub     TEXT NOT NULL PRIMARY KEY,
    told_at BIGINT NOT NULL
);

-- How often a waiting request could not be judged, one time after the other, and when it is tried again.
ALTER TABLE waiting_requests ADD COLUMN failures BIGINT NOT NULL DEFAULT 0;
ALTER TABLE waiting_requests ADD COLUMN retry_at BIGINT NOT NULL DEFAULT 0;

CREATE INDEX transactions_waiters ON transactions (sub, seq)
    WHERE status IN ('delayed', 'awaiting_approval');
