-- Why the whole server waits for an operator's `claviger reconcile`, if it does: one row, or none.
CREATE TABLE suspension (
    only_row INTEGER NOT NULL PRIMARY KEY,
    reason   TEXT NOT NULL,
    since    INTEGER NOT NULL
) STRICT;

-- Mined transactions of our accounts that no request of this database made: what a restored database has
-- forgotten, or a stranger's. A request for the same is bound to one of them instead of being paid again.
-- claimed_by is the request, or `closed` where an operator has said that nobody will ask for it any more.
CREATE TABLE orphans (
    chain_id   INTEGER NOT NULL,
    address    BLOB NOT NULL,
    nonce      INTEGER NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    recipient  BLOB,
    value      BLOB NOT NULL,
    data       BLOB NOT NULL,
    raw        BLOB,
    claimed_by TEXT,
    found_at   INTEGER NOT NULL,
    PRIMARY KEY (chain_id, address, nonce)
) STRICT;
CREATE INDEX orphans_open ON orphans (chain_id, claimed_by);
-- What a new request asks may be there already.
CREATE INDEX orphans_same ON orphans (chain_id, value, recipient);
