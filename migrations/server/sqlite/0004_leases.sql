-- Which server process works a lane. The token grows at every change of the holder and is never used
-- again; a row is never deleted. until is a time of the holder's clock.
CREATE TABLE leases (
    chain_id INTEGER NOT NULL,
    address  BLOB NOT NULL,
    holder   TEXT NOT NULL,
    token    INTEGER NOT NULL,
    until    INTEGER NOT NULL,
    PRIMARY KEY (chain_id, address)
) STRICT;
CREATE INDEX leases_holder ON leases (holder);

-- What waits for a nonce and ends by itself, wherever it stands in its lane.
CREATE INDEX transactions_deadline ON transactions (chain_id, address, not_after)
    WHERE status = 'queued' AND not_after IS NOT NULL;
