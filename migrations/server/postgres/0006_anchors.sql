-- The newest block of each chain in which an end was told. If another block is found at that height, the
-- chain stands still, for the reason in broken, until an operator releases it.
CREATE TABLE anchors (
    chain_id BIGINT NOT NULL PRIMARY KEY,
    number   BIGINT NOT NULL,
    hash     BYTEA NOT NULL,
    broken   TEXT
);
