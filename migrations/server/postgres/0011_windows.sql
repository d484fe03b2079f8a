-- What is spent of a limit, in pieces of its span: a decision takes out whole pieces, however many settlements
-- are in them. A piece counts until its last moment has left the span. limits.span_ms is in milliseconds, or
-- negative for a calendar's period: -1 the day, -2 the week, -3 the month.
CREATE TABLE limit_buckets (
    limit_id BYTEA NOT NULL REFERENCES limits (id),
    bucket   BIGINT NOT NULL,
    last_at  BIGINT NOT NULL,
    spent    BYTEA NOT NULL,
    PRIMARY KEY (limit_id, bucket)
);
CREATE INDEX limit_buckets_last ON limit_buckets (limit_id, last_at);

-- What was settled before: each part of each entry is a piece of its own, below all others.
INSERT INTO limit_buckets (limit_id, bucket, last_at, spent)
    SELECT limit_id, -2 * ROW_NUMBER() OVER (PARTITION BY limit_id ORDER BY owner), settled_at, value
    FROM limit_entries WHERE settled_at IS NOT NULL;
INSERT INTO limit_buckets (limit_id, bucket, last_at, spent)
    SELECT limit_id, -2 * ROW_NUMBER() OVER (PARTITION BY limit_id ORDER BY owner) - 1, settled_at, fee
    FROM limit_entries WHERE settled_at IS NOT NULL;

-- The newest time at which something was asked of the limit: nothing is settled before it.
ALTER TABLE limits ADD COLUMN seen_at BIGINT NOT NULL DEFAULT 0;

-- What others may take later. held: the nonce of the transaction is not final; open: it may be taken; ended.
-- from_block: the chain's state says nothing about it before this block. looked_at: when a look was begun
-- last, whatever came of it. permit_nonce is NULL where there is no permit; permit_contract is then the Permit2
-- contract, where its own approve gave it.
CREATE TABLE exposures (
    owner           TEXT NOT NULL,
    n               BIGINT NOT NULL,
    chain_id        BIGINT NOT NULL,
    token           BYTEA NOT NULL,
    account         BYTEA NOT NULL,
    spender         BYTEA NOT NULL,
    form            TEXT NOT NULL,
    amount          BYTEA NOT NULL,
    remaining       BYTEA NOT NULL,
    permit_contract BYTEA,
    permit_nonce    BYTEA,
    deadline        BIGINT,
    expires         BIGINT,
    submitted       BIGINT NOT NULL,
    state           TEXT NOT NULL,
    ended_by        TEXT,
    from_block      BIGINT NOT NULL,
    seen_block      BIGINT NOT NULL,
    looked_at       BIGINT NOT NULL,
    uses            BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    PRIMARY KEY (owner, n)
);
CREATE INDEX exposures_open ON exposures (chain_id, looked_at) WHERE state = 'open';
