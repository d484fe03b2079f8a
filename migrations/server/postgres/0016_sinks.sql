-- Who is told of a request's end is told the caller's own key of it.
CREATE INDEX idempotency_keys_request ON idempotency_keys (request_id);

-- Who is told which events. Each server writes its own consumers here when it starts; whoever gives places owes
-- to all of them, whether or not it has them in its own configuration.
CREATE TABLE event_consumers (
    consumer TEXT NOT NULL,
    -- A kind; or, with `*` at its end, the beginning of kinds.
    kind     TEXT NOT NULL,
    PRIMARY KEY (consumer, kind)
);
