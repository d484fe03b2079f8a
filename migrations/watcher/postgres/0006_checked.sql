-- How far each source's final blocks were read a second time, and what the first reading had left out.

CREATE TABLE checked (
    source TEXT NOT NULL PRIMARY KEY REFERENCES source (name),
    -- The first block that was not read again.
    next_block BIGINT NOT NULL,
    -- The last block to read again before it goes on at resume_block; -1 and -1: it goes straight on.
    to_block BIGINT NOT NULL,
    resume_block BIGINT NOT NULL,
    -- Events that only the second reading found.
    late BIGINT NOT NULL,
    -- How many nodes the chain had at the last reading: with one, it read twice itself.
    nodes BIGINT NOT NULL
);

-- What was read before there was a second reading is not read again: some of its events may be pruned.
INSERT INTO checked (source, next_block, to_block, resume_block, late, nodes)
SELECT name, next_block, -1, -1, 0, 0 FROM source;
