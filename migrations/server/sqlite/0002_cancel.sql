-- Why a no-op is to take a transaction's nonce, and since when the nodes refuse an attempt.
ALTER TABLE transactions ADD COLUMN ending TEXT;
ALTER TABLE attempts ADD COLUMN refused_since INTEGER;
ALTER TABLE attempts ADD COLUMN refusal TEXT;
