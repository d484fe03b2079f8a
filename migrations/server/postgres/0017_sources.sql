-- Since when it is known that the event which a request names as its source is not on the chain any more.
-- Empty: it is not known to be gone.
ALTER TABLE transactions ADD COLUMN source_gone_at BIGINT;
