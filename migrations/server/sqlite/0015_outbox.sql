-- Where an event stands in the one order in which everybody is told: it grows, and has gaps. Empty until it
-- is given, by whoever holds the row of event_head: an event that is committed late gets a place above all
-- that were given before, so whoever has read up to a place has missed nothing below it.
ALTER TABLE events ADD COLUMN place INTEGER;
UPDATE events SET place = seq;
CREATE UNIQUE INDEX events_place ON events (place);
CREATE INDEX events_unplaced ON events (seq) WHERE place IS NULL;

-- The highest place that was given.
CREATE TABLE event_head (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    place    INTEGER NOT NULL
) STRICT;
INSERT INTO event_head (only_row, place) SELECT 1, COALESCE(MAX(seq), 0) FROM events;

-- What is still to be told to whom. A row goes when it is told.
CREATE TABLE event_deliveries (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    consumer   TEXT NOT NULL,
    place      INTEGER NOT NULL,
    subject    TEXT NOT NULL,
    -- open; behind (an older one of the same subject is open); dead
    state      TEXT NOT NULL,
    attempts   INTEGER NOT NULL,
    -- Not before then; 0 before it is tried; while somebody tells it, until when it is theirs.
    due_at     INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (consumer, place)
) STRICT;
-- With the id, what is due is found in order, and nothing is sorted.
CREATE INDEX event_deliveries_due ON event_deliveries (consumer, due_at, id) WHERE state = 'open';
-- What was given up is told again in steps, and what is owed is counted up to a bound.
CREATE INDEX event_deliveries_state ON event_deliveries (consumer, state, id);
CREATE INDEX event_deliveries_subject ON event_deliveries (consumer, subject, place);
