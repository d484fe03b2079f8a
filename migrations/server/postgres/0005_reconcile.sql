-- Why the whole server waits for an operator's `claviger reconcile`, if it does: one row, or none.
CREATE TABLE suspension (
    only_row BIGINT NOT NULL PRIMARY KEY,
    reason   TEXT NOT NULL,
    since    BIGINT NOT NULL
);

-- Mined transactions of our accounts that no request of this database made: what a restored database has
-- forgotten, or a stranger's. A request for the same is bound to one of them instead of being paid again.
-- claimed_by is the request, or `closed` where an operator has said that nobody will ask for it any more.
CREATE TABLE orphans (
    chain_id   BIGINT NOT NULL,
    address    BYTEA NOT NULL,
    nonce      BIGINT NOT NULL,
    hash       BYTEA NOT NULL UNIQUE,
    recipient  BYTEA,
    value      BYTEA NOT NULL,
    data       BYTEA NOT NULL,
    raw        BYTEA,
    claimed_by TEXT,
    found_at   BIGINT NOT NULL,
    PRIMARY KEY (chain_id, address, nonce)
);
CREATE INDEX orphans_open ON orphans (chain_id, claimed_by);
-- What a new request asks may be there already.
CREATE INDEX orphans_same ON orphans (chain_id, value, recipient);
