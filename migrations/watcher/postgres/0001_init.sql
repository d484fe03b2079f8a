-- The watcher's tables. Hashes are bytes, times milliseconds since 1970. Same columns as for
-- SQLite.

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE chain (
    name TEXT NOT NULL PRIMARY KEY,
    chain_id BIGINT NOT NULL,
    genesis BYTEA NOT NULL,
    cursor_number BIGINT NOT NULL,
    cursor_hash BYTEA NOT NULL,
    -- -1 and no bytes: nothing is final yet.
    final_number BIGINT NOT NULL,
    final_hash BYTEA NOT NULL,
    -- Empty: it runs.
    halted TEXT NOT NULL
);

CREATE TABLE block (
    chain TEXT NOT NULL REFERENCES chain (name),
    number BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    parent BYTEA NOT NULL,
    PRIMARY KEY (chain, number)
);

CREATE TABLE source (
    name TEXT NOT NULL PRIMARY KEY,
    chain TEXT NOT NULL REFERENCES chain (name),
    definition TEXT NOT NULL,
    next_block BIGINT NOT NULL
);

CREATE TABLE event (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source TEXT NOT NULL REFERENCES source (name),
    event_id TEXT NOT NULL,
    chain TEXT NOT NULL REFERENCES chain (name),
    block_number BIGINT NOT NULL,
    block_hash BYTEA NOT NULL,
    -- standing, retracted, undecodable
    state TEXT NOT NULL,
    body TEXT NOT NULL,
    reason TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    UNIQUE (source, event_id)
);

CREATE INDEX event_by_block ON event (chain, block_number);

CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer TEXT NOT NULL,
    source TEXT NOT NULL REFERENCES source (name),
    chain TEXT NOT NULL REFERENCES chain (name),
    event_id TEXT NOT NULL,
    -- log, retraction
    kind TEXT NOT NULL,
    block_number BIGINT NOT NULL,
    body TEXT NOT NULL,
    -- held, ready, done, parked, cancelled
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    reason TEXT NOT NULL,
    result TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE INDEX outbox_open ON outbox (consumer, source, id) WHERE state IN ('held', 'ready');
CREATE INDEX outbox_by_event ON outbox (source, event_id);
