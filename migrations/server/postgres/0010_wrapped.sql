-- With tens of thousands of keys in a group, one of them is found without reading the others: the oldest, or
-- some from any address on.
DROP INDEX operator_keys_group;
CREATE INDEX operator_keys_oldest ON operator_keys (group_name, state, created_at, id);
CREATE INDEX operator_keys_any ON operator_keys (group_name, state, address);
-- What a start asks: keys of the tokens, keys under each wrapping key, creations that were not finished.
CREATE INDEX operator_keys_wrapped ON operator_keys (wrapped_under, hsm);
CREATE INDEX operator_keys_unfinished ON operator_keys (created_at) WHERE state = 'creating';
