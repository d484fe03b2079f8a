-- The server's database. Times are milliseconds since 1970 of our clock; amounts and prices are
-- 32 bytes, big-endian; ids are text (UUIDv7).

CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- A chain is pinned by its id and the hash of its block 0.
CREATE TABLE chains (
    chain_id INTEGER NOT NULL PRIMARY KEY,
    genesis  BLOB NOT NULL
) STRICT;

-- Operator keys. A row without public_key is a creation that was begun and not finished.
CREATE TABLE operator_keys (
    id         TEXT NOT NULL PRIMARY KEY,
    cka_id     BLOB NOT NULL UNIQUE,
    label      TEXT NOT NULL,
    group_name TEXT NOT NULL,
    mode       TEXT NOT NULL,
    state      TEXT NOT NULL,
    public_key BLOB,
    address    BLOB UNIQUE,
    iss        TEXT NOT NULL,
    sub        TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX operator_keys_group ON operator_keys (group_name);

-- A lane is the order of nonces of one account on one chain. Its mode never changes.
CREATE TABLE lanes (
    chain_id   INTEGER NOT NULL,
    address    BLOB NOT NULL,
    key_id     TEXT NOT NULL REFERENCES operator_keys (id),
    mode       TEXT NOT NULL,
    next_nonce INTEGER NOT NULL,
    halted     TEXT,
    version    INTEGER NOT NULL,
    PRIMARY KEY (chain_id, address)
) STRICT;

CREATE TABLE idempotency_keys (
    scope      TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  BLOB NOT NULL,
    request_id TEXT NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT;

-- An event answers one request for each function that it is used for.
CREATE TABLE claimed_events (
    chain            TEXT NOT NULL,
    block_hash       BLOB NOT NULL,
    log_index        INTEGER NOT NULL,
    used_for         TEXT NOT NULL,
    transaction_hash BLOB NOT NULL,
    request_id       TEXT NOT NULL,
    PRIMARY KEY (chain, block_hash, log_index, used_for)
) STRICT;

CREATE TABLE transactions (
    seq              INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    iss              TEXT NOT NULL,
    sub              TEXT NOT NULL,
    chain            TEXT NOT NULL,
    chain_id         INTEGER NOT NULL,
    signer           TEXT NOT NULL,
    key_id           TEXT NOT NULL REFERENCES operator_keys (id),
    address          BLOB NOT NULL,
    status           TEXT NOT NULL,
    nonce            INTEGER,
    tx_type          TEXT NOT NULL,
    recipient        BLOB,
    value            BLOB NOT NULL,
    data             BLOB NOT NULL,
    gas              INTEGER NOT NULL,
    cap_fee          BLOB NOT NULL,
    cap_tip          BLOB NOT NULL,
    access_list      TEXT NOT NULL,
    not_after        INTEGER,
    source_block     BLOB,
    source_tx        BLOB,
    source_log       INTEGER,
    outcome          TEXT NOT NULL,
    bundle           BLOB NOT NULL,
    grants           TEXT NOT NULL,
    decision         TEXT NOT NULL,
    metadata         TEXT NOT NULL,
    mined_hash       BLOB,
    mined_block      BLOB,
    mined_number     INTEGER,
    mined_gas_used   INTEGER,
    mined_price      BLOB,
    mined_success    INTEGER,
    failure_code     TEXT,
    failure_detail   TEXT,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    version          INTEGER NOT NULL,
    UNIQUE (chain_id, address, nonce)
) STRICT;
CREATE INDEX transactions_work ON transactions (chain_id, status, address, seq);

-- Requests for signatures: messages, typed data, transactions of external accounts.
CREATE TABLE signature_requests (
    id         TEXT NOT NULL PRIMARY KEY,
    iss        TEXT NOT NULL,
    sub        TEXT NOT NULL,
    kind       TEXT NOT NULL,
    chain_id   INTEGER,
    nonce      INTEGER,
    key_id     TEXT NOT NULL REFERENCES operator_keys (id),
    address    BLOB NOT NULL,
    owner      TEXT,
    settled    INTEGER NOT NULL,
    outcome    TEXT NOT NULL,
    bundle     BLOB NOT NULL,
    grants     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX signature_requests_owner ON signature_requests (owner);
CREATE INDEX signature_requests_unsettled ON signature_requests (chain_id, settled);

-- One row a decision: the exact bytes that may be signed, then the signature of them.
CREATE TABLE attempts (
    request_id TEXT NOT NULL,
    number     INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    key_id     TEXT NOT NULL REFERENCES operator_keys (id),
    kind       TEXT NOT NULL,
    bytes      BLOB NOT NULL,
    digest     BLOB NOT NULL,
    max_fee    BLOB NOT NULL,
    max_tip    BLOB NOT NULL,
    decided_at INTEGER NOT NULL,
    signature  BLOB,
    raw        BLOB,
    hash       BLOB UNIQUE,
    signed_at  INTEGER,
    sent_at    INTEGER,
    PRIMARY KEY (request_id, number)
) STRICT;
CREATE INDEX attempts_unsigned ON attempts (decided_at) WHERE signature IS NULL;

-- One row a counter. held is what is not final, spent what became final within the span.
CREATE TABLE limits (
    id       BLOB NOT NULL PRIMARY KEY,
    label    TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    span_ms  INTEGER NOT NULL,
    held     BLOB NOT NULL,
    spent    BLOB NOT NULL
) STRICT;

CREATE TABLE limit_entries (
    limit_id   BLOB NOT NULL REFERENCES limits (id),
    owner      TEXT NOT NULL,
    kind       TEXT NOT NULL,
    value      BLOB NOT NULL,
    fee        BLOB NOT NULL,
    settled_at INTEGER,
    PRIMARY KEY (limit_id, owner)
) STRICT;
CREATE INDEX limit_entries_settled ON limit_entries (limit_id, settled_at);
CREATE INDEX limit_entries_owner ON limit_entries (owner);

-- Leaves on their way to the log; one sequencer takes them.
CREATE TABLE audit_outbox (
    seq     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    leaf    BLOB NOT NULL
) STRICT;

CREATE TABLE audit_leaves (
    idx     INTEGER NOT NULL PRIMARY KEY,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    leaf    BLOB NOT NULL
) STRICT;
CREATE INDEX audit_leaves_subject ON audit_leaves (subject);

-- Complete subtrees of the RFC 6962 tree, by stored-hash index.
CREATE TABLE audit_nodes (
    idx  INTEGER NOT NULL PRIMARY KEY,
    hash BLOB NOT NULL
) STRICT;

CREATE TABLE audit_head (
    only_row INTEGER NOT NULL PRIMARY KEY,
    size     INTEGER NOT NULL,
    root     BLOB NOT NULL
) STRICT;
INSERT INTO audit_head (only_row, size, root)
VALUES (1, 0, x'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');

-- Texts too long for a leaf, by SHA-256.
CREATE TABLE audit_blobs (
    hash  BLOB NOT NULL PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE events (
    seq        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    subject    TEXT NOT NULL,
    data       TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX events_subject ON events (subject, seq);
