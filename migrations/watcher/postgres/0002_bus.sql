-- What comes back over a broker. The outbox gets a further state, taken: handed out by the broker, and
-- not answered by the consumer yet.

-- chain: found by this watcher's poller. bus: arrived over a broker, which also brings its retraction.
ALTER TABLE outbox ADD COLUMN origin TEXT NOT NULL DEFAULT 'chain';

CREATE TABLE unreadable (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer TEXT NOT NULL,
    digest BYTEA NOT NULL,
    bytes BYTEA NOT NULL,
    reason TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    UNIQUE (consumer, digest)
);
