-- Why a no-op is to take a transaction's nonce; what the nodes said last to an attempt, since when they took
-- it, and from when to when they have refused it.
ALTER TABLE transactions ADD COLUMN ending TEXT;
ALTER TABLE attempts ADD COLUMN answer TEXT;
ALTER TABLE attempts ADD COLUMN accepted_at INTEGER;
ALTER TABLE attempts ADD COLUMN refused_since INTEGER;
ALTER TABLE attempts ADD COLUMN refused_at INTEGER;
ALTER TABLE attempts ADD COLUMN refusal TEXT;
