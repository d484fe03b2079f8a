-- Key ceremonies: the plan that was carried out, and when. At most one is open at a time; `is_open` is 1 while it
-- is, and null afterwards.
CREATE TABLE ceremonies (
    id       TEXT NOT NULL PRIMARY KEY,
    title    TEXT NOT NULL,
    plan     TEXT NOT NULL,
    begun_at BIGINT NOT NULL,
    ended_at BIGINT,
    is_open  BIGINT UNIQUE
);
-- Whoever makes or finishes a begun key holds it, so that no other makes it a second time: which process, and
-- until when.
ALTER TABLE operator_keys ADD COLUMN claimed_by TEXT;
ALTER TABLE operator_keys ADD COLUMN claimed_until BIGINT;
