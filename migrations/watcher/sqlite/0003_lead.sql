-- Several processes over one database, an outbox that has grown large, and what an operator has seen.

-- Who does what. A chain is followed, and a lane of the outbox delivered, by its holder alone. The token
-- grows with each holder; a write under an older one is refused. ends_at 0: it was given back.
CREATE TABLE duty (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    held_since INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    -- Whoever takes a duty changes this key; a unit that is under way keeps it as it is.
    UNIQUE (name, token)
) STRICT;

-- How far sources are. first_block: where it began; from_block: where it was sent back to last;
-- to_block: the last block to read again, after which it goes on at resume_block (-1: none, it reads to
-- the head); told: events that were told; rate: blocks in a thousand seconds, as it was sampled last.
CREATE TABLE progress (
    source TEXT NOT NULL PRIMARY KEY REFERENCES source (name),
    first_block INTEGER NOT NULL,
    from_block INTEGER NOT NULL,
    to_block INTEGER NOT NULL,
    resume_block INTEGER NOT NULL,
    told INTEGER NOT NULL,
    rate INTEGER NOT NULL,
    sampled_at INTEGER NOT NULL
) STRICT;

INSERT INTO progress (source, first_block, from_block, to_block, resume_block, told, rate, sampled_at)
SELECT name, next_block, next_block, -1, -1, 0, 0, 0 FROM source;

CREATE TABLE tally (
    name TEXT NOT NULL PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT;

-- The token of the term in which a delivery was taken in hand; 0: it is in nobody's.
ALTER TABLE outbox ADD COLUMN claimed_by INTEGER NOT NULL DEFAULT 0;
-- When an operator has seen it; 0: not yet.
ALTER TABLE outbox ADD COLUMN acknowledged_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE event ADD COLUMN acknowledged_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE unreadable ADD COLUMN acknowledged_at INTEGER NOT NULL DEFAULT 0;

CREATE INDEX outbox_held ON outbox (source, block_number) WHERE state = 'held';
CREATE INDEX outbox_due ON outbox (consumer, id) WHERE state IN ('ready', 'taken');
CREATE INDEX outbox_in_hand ON outbox (consumer, source) WHERE state = 'ready' AND claimed_by <> 0;
CREATE INDEX outbox_parked ON outbox (id) WHERE state = 'parked';
CREATE INDEX outbox_by_state ON outbox (consumer, state);
CREATE INDEX outbox_attention ON outbox (id) WHERE acknowledged_at = 0
    AND (state = 'parked' OR (state = 'cancelled' AND result <> '')
    OR (kind = 'retraction' AND consumer <> 'publisher')
    OR (state = 'ready' AND SUBSTR(reason, 1, 14) = 'above its rate')
    OR (state IN ('ready', 'taken') AND attempts > 2));
CREATE INDEX event_undecodable ON event (id) WHERE state = 'undecodable';
