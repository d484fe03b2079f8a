-- Where a source begins, so that a reorg does not send it back to before that. Sources from before this
-- column: those that have not begun to read begin where they stand; of the others it is not known, and
-- zero sends them back as far as the reorg goes.
ALTER TABLE source ADD COLUMN first_block BIGINT NOT NULL DEFAULT 0;
UPDATE source SET first_block = next_block WHERE next_block >
    (SELECT cursor_number + 1 FROM chain WHERE chain.name = source.chain);

-- An event gets a further state, again: it did not decode, and is to be decoded again.
CREATE INDEX event_to_decode ON event (chain, id) WHERE state = 'again';

-- How far a consumer that came later was told what its source had found before.
CREATE TABLE backlog (
    consumer TEXT NOT NULL,
    source TEXT NOT NULL REFERENCES source (name),
    after_event BIGINT NOT NULL,
    -- 1: all of it.
    done BIGINT NOT NULL,
    PRIMARY KEY (consumer, source)
);

-- Each time an operator let a halted chain go on.
CREATE TABLE resumed (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain TEXT NOT NULL REFERENCES chain (name),
    -- Why it had been halted.
    halted TEXT NOT NULL,
    reason TEXT NOT NULL,
    ancestor BIGINT NOT NULL,
    anchor BIGINT NOT NULL,
    retracted BIGINT NOT NULL,
    at BIGINT NOT NULL
);
