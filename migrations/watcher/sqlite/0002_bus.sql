-- What comes back over a broker. The outbox gets a further state, taken: handed out by the broker, and
-- not answered by the consumer yet.

-- chain: found by this watcher's poller. bus: arrived over a broker, which also brings its retraction.
ALTER TABLE outbox ADD COLUMN origin TEXT NOT NULL DEFAULT 'chain';

CREATE TABLE unreadable (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    consumer TEXT NOT NULL,
    digest BLOB NOT NULL,
    bytes BLOB NOT NULL,
    reason TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    UNIQUE (consumer, digest)
) STRICT;
