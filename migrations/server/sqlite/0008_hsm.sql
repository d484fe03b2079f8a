-- Which of the configured tokens a key belongs to. Where its private half is not an object of that token but
-- kept here: the bytes of C_WrapKey, and the CKA_ID of the wrapping key.
ALTER TABLE operator_keys ADD COLUMN hsm TEXT NOT NULL DEFAULT 'default';
ALTER TABLE operator_keys ADD COLUMN wrapped BLOB;
ALTER TABLE operator_keys ADD COLUMN wrapped_under BLOB;
