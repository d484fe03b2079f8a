-- The watcher's tables. Hashes are bytes, times milliseconds since 1970. Same columns as for
-- PostgreSQL.

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE chain (
    name TEXT NOT NULL PRIMARY KEY,
    chain_id INTEGER NOT NULL,
    genesis BLOB NOT NULL,
    cursor_number INTEGER NOT NULL,
    cursor_hash BLOB NOT NULL,
    -- -1 and no bytes: nothing is final yet.
    final_number INTEGER NOT NULL,
    final_hash BLOB NOT NULL,
    -- Empty: it runs.
    halted TEXT NOT NULL
) STRICT;

CREATE TABLE block (
    chain TEXT NOT NULL REFERENCES chain (name),
    number INTEGER NOT NULL,
    hash BLOB NOT NULL,
    parent BLOB NOT NULL,
    PRIMARY KEY (chain, number)
) STRICT;

CREATE TABLE source (
    name TEXT NOT NULL PRIMARY KEY,
    chain TEXT NOT NULL REFERENCES chain (name),
    definition TEXT NOT NULL,
    next_block INTEGER NOT NULL
) STRICT;

CREATE TABLE event (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL REFERENCES source (name),
    event_id TEXT NOT NULL,
    chain TEXT NOT NULL REFERENCES chain (name),
    block_number INTEGER NOT NULL,
    block_hash BLOB NOT NULL,
    -- standing, retracted, undecodable
    state TEXT NOT NULL,
    body TEXT NOT NULL,
    reason TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    UNIQUE (source, event_id)
) STRICT;

CREATE INDEX event_by_block ON event (chain, block_number);

CREATE TABLE outbox (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    consumer TEXT NOT NULL,
    source TEXT NOT NULL REFERENCES source (name),
    chain TEXT NOT NULL REFERENCES chain (name),
    event_id TEXT NOT NULL,
    -- log, retraction
    kind TEXT NOT NULL,
    block_number INTEGER NOT NULL,
    body TEXT NOT NULL,
    -- held, ready, done, parked, cancelled
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    result TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE INDEX outbox_open ON outbox (consumer, source, id) WHERE state IN ('held', 'ready');
CREATE INDEX outbox_by_event ON outbox (source, event_id);
