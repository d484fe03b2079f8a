-- What triggers keep of their own.

-- The bucket of a trigger's rate: when it is full again, in microseconds since 1970.
CREATE TABLE trigger_rate (
    consumer TEXT NOT NULL PRIMARY KEY,
    full_at BIGINT NOT NULL
);

-- An event that a trigger is at. A row goes when it is answered.
CREATE TABLE trigger_turn (
    consumer TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- 1: it has taken its token, and takes no second one when it is tried again.
    admitted BIGINT NOT NULL,
    -- Since when it is refused for what time may heal; 0 if it is not.
    refused_at BIGINT NOT NULL,
    PRIMARY KEY (consumer, event_id)
);

-- Who takes a source's events over a broker: its rows are made when they arrive, and until then an event is
-- kept. after_event: what it was not there for; active: 0 if it is not configured any more.
CREATE TABLE taker (
    consumer TEXT NOT NULL,
    source TEXT NOT NULL,
    after_event BIGINT NOT NULL,
    active BIGINT NOT NULL,
    PRIMARY KEY (consumer, source)
);

-- Whoever took something over a broker before this table was there began with the first that it took.
INSERT INTO taker (consumer, source, after_event, active)
SELECT o.consumer, o.source, MIN(e.id) - 1, 1 FROM outbox o
JOIN event e ON e.source = o.source AND e.event_id = o.event_id
WHERE o.kind = 'log' AND o.origin = 'bus' GROUP BY o.consumer, o.source;

-- 1: it waits to be tried again, and what comes after it on its lane does not wait for it.
ALTER TABLE outbox ADD COLUMN aside BIGINT NOT NULL DEFAULT 0;
CREATE INDEX outbox_aside ON outbox (consumer, source, due_at) WHERE state = 'ready' AND aside = 1;
