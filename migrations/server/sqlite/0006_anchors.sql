-- The newest block of each chain in which an end was told. If another block is found at that height, the
-- chain stands still, for the reason in broken, until an operator releases it.
CREATE TABLE anchors (
    chain_id INTEGER NOT NULL PRIMARY KEY,
    number   INTEGER NOT NULL,
    hash     BLOB NOT NULL,
    broken   TEXT
) STRICT;
