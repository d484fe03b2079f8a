-- What is spent of a limit, in pieces of its span: a decision takes out whole pieces, however many settlements
-- are in them. A piece counts until its last moment has left the span. limits.span_ms is in milliseconds, or
-- negative for a calendar's period: -1 the day, -2 the week, -3 the month.
CREATE TABLE limit_buckets (
    limit_id BLOB NOT NULL REFERENCES limits (id),
    bucket   INTEGER NOT NULL,
    last_at  INTEGER NOT NULL,
    spent    BLOB NOT NULL,
    PRIMARY KEY (limit_id, bucket)
) STRICT;
CREATE INDEX limit_buckets_last ON limit_buckets (limit_id, last_at);

-- What was settled before: each part of each entry is a piece of its own, below all others.
INSERT INTO limit_buckets (limit_id, bucket, last_at, spent)
    SELECT limit_id, -2 * ROW_NUMBER() OVER (PARTITION BY limit_id ORDER BY owner), settled_at, value
    FROM limit_entries WHERE settled_at IS NOT NULL;
INSERT INTO limit_buckets (limit_id, bucket, last_at, spent)
    SELECT limit_id, -2 * ROW_NUMBER() OVER (PARTITION BY limit_id ORDER BY owner) - 1, settled_at, fee
    FROM limit_entries WHERE settled_at IS NOT NULL;

-- The newest time at which something was asked of the limit: nothing is settled before it.
ALTER TABLE limits ADD COLUMN seen_at INTEGER NOT NULL DEFAULT 0;

-- What others may take later. held: the nonce of the transaction is not final; open: it may be taken; ended.
-- from_block: the chain's state says nothing about it before this block. looked_at: when a look was begun
-- last, whatever came of it. permit_nonce is NULL where there is no permit; permit_contract is then the Permit2
-- contract, where its own approve gave it.
CREATE TABLE exposures (
    owner           TEXT NOT NULL,
    n               INTEGER NOT NULL,
    chain_id        INTEGER NOT NULL,
    token           BLOB NOT NULL,
    account         BLOB NOT NULL,
    spender         BLOB NOT NULL,
    form            TEXT NOT NULL,
    amount          BLOB NOT NULL,
    remaining       BLOB NOT NULL,
    permit_contract BLOB,
    permit_nonce    BLOB,
    deadline        INTEGER,
    expires         INTEGER,
    submitted       INTEGER NOT NULL,
    state           TEXT NOT NULL,
    ended_by        TEXT,
    from_block      INTEGER NOT NULL,
    seen_block      INTEGER NOT NULL,
    looked_at       INTEGER NOT NULL,
    uses            INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    PRIMARY KEY (owner, n)
) STRICT;
CREATE INDEX exposures_open ON exposures (chain_id, looked_at) WHERE state = 'open';
