-- What a transaction in the status delayed or awaiting_approval waits for, and what it waited for once it has
-- gone on. hash is the SHA-256 of terms, the text that people approve; due_at is when a delay is over, or until
-- when it may be approved; wake_at is when it is to be looked at next.
CREATE TABLE waiting_requests (
    request_id  TEXT NOT NULL PRIMARY KEY,
    hash        BYTEA NOT NULL,
    terms       TEXT NOT NULL,
    quorums     TEXT NOT NULL,
    bundle      BYTEA NOT NULL,
    asked_at    BIGINT NOT NULL,
    due_at      BIGINT NOT NULL,
    wake_at     BIGINT NOT NULL,
    released_at BIGINT
);

-- Who approved which terms: one person once, whoever vouches for them.
CREATE TABLE approvals (
    request_id  TEXT NOT NULL,
    hash        BYTEA NOT NULL,
    sub         TEXT NOT NULL,
    iss         TEXT NOT NULL,
    reason      TEXT NOT NULL,
    approved_at BIGINT NOT NULL,
    PRIMARY KEY (request_id, hash, sub)
);

-- Where a group, or a key without a group, has sent something before: noted with the nonce.
CREATE TABLE used_destinations (
    chain_id    BIGINT NOT NULL,
    scope       TEXT NOT NULL,
    destination BYTEA NOT NULL,
    request_id  TEXT NOT NULL,
    used_at     BIGINT NOT NULL,
    PRIMARY KEY (chain_id, scope, destination)
);

CREATE INDEX transactions_waiting ON transactions (status, seq)
    WHERE status IN ('delayed', 'awaiting_approval');
