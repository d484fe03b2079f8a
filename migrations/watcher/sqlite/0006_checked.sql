-- How far each source's final blocks were read a second time, and what the first reading had left out.

CREATE TABLE checked (
    source TEXT NOT NULL PRIMARY KEY REFERENCES source (name),
    -- The first block that was not read again.
    next_block INTEGER NOT NULL,
    -- Events that only the second reading found.
    late INTEGER NOT NULL,
    -- How many nodes the chain had at the last reading: with one, it read twice itself.
    nodes INTEGER NOT NULL
) STRICT;

-- What was read before there was a second reading is not read again: some of its events may be pruned.
INSERT INTO checked (source, next_block, late, nodes) SELECT name, next_block, 0, 0 FROM source;
