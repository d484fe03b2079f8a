//! The life of a transaction.
