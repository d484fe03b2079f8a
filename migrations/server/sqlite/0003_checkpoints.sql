-- Every checkpoint that the signer released: size, RFC 6962 root, and the signed note (C2SP
-- tlog-checkpoint). Later verification narrows by them where a rewritten log differs.
CREATE TABLE audit_checkpoints (
    size INTEGER NOT NULL PRIMARY KEY,
    root BLOB NOT NULL,
    note TEXT NOT NULL
) STRICT;
