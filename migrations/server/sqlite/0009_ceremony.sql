-- Key ceremonies: the plan that was carried out, and when. At most one is open at a time; `is_open` is 1 while it
-- is, and null afterwards.
CREATE TABLE ceremonies (
    id       TEXT NOT NULL PRIMARY KEY,
    title    TEXT NOT NULL,
    plan     TEXT NOT NULL,
    begun_at INTEGER NOT NULL,
    ended_at INTEGER,
    is_open  INTEGER UNIQUE
) STRICT;
