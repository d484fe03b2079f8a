-- Policy bundles that were proposed or in force, with all of their files (a JSON object: path below the folder,
-- text). Whoever proposed one first is its author; a folder's bundle has none
-- until somebody proposes it.
CREATE TABLE bundles (
    hash        BLOB NOT NULL PRIMARY KEY,
    version     TEXT NOT NULL,
    files       TEXT NOT NULL,
    iss         TEXT NOT NULL,
    sub         TEXT NOT NULL,
    proposed_at INTEGER NOT NULL
) STRICT;
-- Each time that a bundle was put in force, numbered without gaps: the highest number is in force.
CREATE TABLE bundle_activations (
    serial    INTEGER NOT NULL PRIMARY KEY,
    bundle    BLOB NOT NULL,
    way       TEXT NOT NULL,
    at        INTEGER NOT NULL
) STRICT;
-- Who said that a bundle may be put in force. It counts as long as the bundle is in force that was then.
CREATE TABLE bundle_voices (
    bundle BLOB NOT NULL,
    serial INTEGER NOT NULL,
    sub    TEXT NOT NULL,
    iss    TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL,
    PRIMARY KEY (bundle, serial, sub)
) STRICT;
CREATE INDEX bundle_voices_serial ON bundle_voices (serial);
-- Bundles that somebody rejected: they are not put in force by people any more.
CREATE TABLE bundle_rejections (
    bundle BLOB NOT NULL PRIMARY KEY,
    iss    TEXT NOT NULL,
    sub    TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL
) STRICT;
