//! Audit leaves: kinds and the one encoding.
//!
//! A leaf is a JSON object without white space, its keys in byte order, and every value a string, a
//! list, or such an object: a subset of RFC 8785 (JCS) without numbers, so that there is one way to
//! write it. The stored bytes are hashed (RFC 6962, `SHA-256(0x00 || leaf)`) and never written again.
//!
//! | key | meaning |
//! | --- | --- |
//! | `v` | `"1"` |
//! | `kind` | `DECIDED`, `SIGNED`, `DENIED`, … |
//! | `at` | our clock, RFC 3339 with milliseconds |
//! | `id` | what it is about: a request id or a key id |
//! | others | by kind; see [`LeafKind`] |
//!
//! A leaf stays under 60 KiB. A text longer than 4 KiB is kept beside the log and named in the leaf as
//! `sha256:HEX:LENGTH`.

pub mod read;

use crate::core::time::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// No leaf is longer than this, in bytes.
pub const LEAF_BYTES_MAX: usize = 60 * 1024;
/// A longer text is kept beside the log and named by its hash.
pub const INLINE_TEXT_MAX: usize = 4 * 1024;
/// Of a text that belongs to a `DENIED` leaf and is longer than this, in bytes, only hash and length are
/// kept: anybody may be denied as often as they like.
pub const DENIED_TEXT_MAX: usize = 32 * 1024;

/// What a leaf records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafKind {
    /// A request was allowed; the exact bytes that will be signed, and every input of the decision.
    /// Committed before the HSM is asked.
    Decided,
    /// The HSM signed; what was signed. Committed before anything is released or sent.
    Signed,
    /// A request was refused, with reasons.
    Denied,
    /// An operator said what is to become of a transaction: to cancel it, or to speed it up.
    Instructed,
    /// A transaction's nonce is final; what became of it and what was settled.
    Settled,
    /// An operator key was made and pinned.
    KeyCreated,
    /// A key that the HSM had already was looked at, proved and pinned.
    KeyImported,
    /// A key ceremony was begun, or has ended: its plan, or its signed record.
    KeyCeremony,
    /// Something that a person must look at: a lane stopped, a key missing.
    Alarm,
    /// A token does not answer any more: one for each outage and server.
    HsmDown,
    /// It answers again.
    HsmUp,
    /// An operator compared a restored or halted database with the chain: what was found, what was made of
    /// it, and the signed checkpoint that the log does not continue, if there is one.
    Reconciled,
    /// A policy bundle was proposed: all of its files, and by whom.
    BundleProposed,
    /// Somebody said that a proposed bundle may be put in force.
    BundleEndorsed,
    /// A bundle is in force from here on: what it newly permits and refuses.
    BundleActivated,
    /// Somebody rejected a proposed bundle: people put it in force no more.
    BundleRejected,
    /// A request waits for people: the terms that they are asked to approve.
    ApprovalRequested,
    /// Somebody approved these terms.
    Approved,
    /// Somebody rejected a request that waited.
    Rejected,
    /// A request that waited goes on: enough people approved it, its delay is over, or policy asks for neither
    /// any more.
    Released,
    /// The event that a request names as its source is not on the chain any more: what was made of the request.
    SourceGone,
    /// An idempotency key was bound to another request: the one before ended unsigned, because its event went away.
    KeyRebound,
}

impl LeafKind {
    /// All kinds.
    pub const ALL: [Self; 22] = [
        Self::Decided,
        Self::Signed,
        Self::Denied,
        Self::Instructed,
        Self::Settled,
        Self::KeyCreated,
        Self::KeyImported,
        Self::KeyCeremony,
        Self::Alarm,
        Self::HsmDown,
        Self::HsmUp,
        Self::Reconciled,
        Self::BundleProposed,
        Self::BundleEndorsed,
        Self::BundleActivated,
        Self::BundleRejected,
        Self::ApprovalRequested,
        Self::Approved,
        Self::Rejected,
        Self::Released,
        Self::SourceGone,
        Self::KeyRebound,
    ];

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name in leaves.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decided => "DECIDED",
            Self::Signed => "SIGNED",
            Self::Denied => "DENIED",
            Self::Instructed => "INSTRUCTED",
            Self::Settled => "SETTLED",
            Self::KeyCreated => "KEY_CREATED",
            Self::KeyImported => "KEY_IMPORTED",
            Self::KeyCeremony => "KEY_CEREMONY",
            Self::Alarm => "ALARM",
            Self::HsmDown => "HSM_DOWN",
            Self::HsmUp => "HSM_UP",
            Self::Reconciled => "RECONCILED",
            Self::BundleProposed => "BUNDLE_PROPOSED",
            Self::BundleEndorsed => "BUNDLE_ENDORSED",
            Self::BundleActivated => "BUNDLE_ACTIVATED",
            Self::BundleRejected => "BUNDLE_REJECTED",
            Self::ApprovalRequested => "APPROVAL_REQUESTED",
            Self::Approved => "APPROVED",
            Self::Rejected => "REJECTED",
            Self::Released => "RELEASED",
            Self::SourceGone => "SOURCE_GONE",
            Self::KeyRebound => "KEY_REBOUND",
        }
    }
}

/// A value of a leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A string; numbers and bytes are written as strings too.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// An object.
    Map(BTreeMap<&'static str, Self>),
}

impl<T: ToString> From<T> for Value {
    fn from(text: T) -> Self {
        Self::Text(text.to_string())
    }
}

/// A leaf being written.
#[derive(Clone, Debug)]
pub struct Leaf {
    kind: LeafKind,
    subject: String,
    fields: BTreeMap<&'static str, Value>,
}

/// A leaf as it is stored, with the longer texts that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedLeaf {
    /// What it records.
    pub kind: &'static str,
    /// What it is about.
    pub subject: String,
    /// The leaf's bytes.
    pub bytes: Vec<u8>,
    /// SHA-256 and bytes of each text that is kept beside it.
    pub blobs: Vec<([u8; 32], Vec<u8>)>,
}

/// The leaf would be too long, even with its texts kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an audit leaf of {0} bytes is over the limit of {LEAF_BYTES_MAX}")]
pub struct LeafTooLong(pub usize);

impl Leaf {
    /// Starts a leaf about `subject`.
    #[must_use]
    pub fn new(kind: LeafKind, subject: impl ToString, at: Timestamp) -> Self {
        let subject = subject.to_string();
        let fields = BTreeMap::from([
            ("v", Value::from("1")),
            ("kind", Value::from(kind.name())),
            ("at", Value::from(at)),
            ("id", Value::from(&subject)),
        ]);
        Self { kind, subject, fields }
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.fields.insert(key, value.into());
        self
    }

    /// Adds bytes, as `0x` and lower-case hex.
    #[must_use]
    pub fn with_hex(self, key: &'static str, bytes: &[u8]) -> Self {
        self.with(key, format!("0x{}", hex::encode(bytes)))
    }

    /// Writes the leaf.
    ///
    /// # Errors
    /// When it is over [`LEAF_BYTES_MAX`].
    pub fn encode(self) -> Result<EncodedLeaf, LeafTooLong> {
        let mut blobs = Vec::new();
        let fields: BTreeMap<_, _> =
            self.fields.into_iter().map(|(key, value)| (key, shorten(value, &mut blobs))).collect();
        // Strings, lists and maps with string keys always serialise.
        let bytes = serde_json::to_vec(&fields).unwrap_or_default();
        if bytes.len() > LEAF_BYTES_MAX {
            return Err(LeafTooLong(bytes.len()));
        }
        Ok(EncodedLeaf { kind: self.kind.name(), subject: self.subject, bytes, blobs })
    }
}

fn shorten(value: Value, blobs: &mut Vec<([u8; 32], Vec<u8>)>) -> Value {
    match value {
        Value::Text(text) if text.len() > INLINE_TEXT_MAX => {
            let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
            let name = format!("sha256:{}:{}", hex::encode(hash), text.len());
            blobs.push((hash, text.into_bytes()));
            Value::Text(name)
        }
        Value::Text(text) => Value::Text(text),
        Value::List(items) => {
            Value::List(items.into_iter().map(|item| shorten(item, blobs)).collect())
        }
        Value::Map(map) => {
            Value::Map(map.into_iter().map(|(key, item)| (key, shorten(item, blobs))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_sorted_compact_and_has_no_numbers() {
        let leaf = Leaf::new(LeafKind::Denied, "req", Timestamp::from_millis(0))
            .with("reasons", Value::List(vec![Value::from("a \"quote\""), Value::from(7)]))
            .with_hex("bytes", &[0, 255])
            .encode()
            .unwrap();
        assert_eq!(
            String::from_utf8(leaf.bytes).unwrap(),
            r#"{"at":"1970-01-01T00:00:00.000Z","bytes":"0x00ff","id":"req","kind":"DENIED","reasons":["a \"quote\"","7"],"v":"1"}"#,
        );
    }

    #[test]
    fn long_texts_are_named_by_hash_and_kept() {
        let long = "x".repeat(INLINE_TEXT_MAX + 1);
        let leaf = Leaf::new(LeafKind::Decided, "req", Timestamp::from_millis(0))
            .with("body", &long)
            .encode()
            .unwrap();
        assert_eq!(leaf.blobs.len(), 1);
        assert_eq!(leaf.blobs[0].1, long.as_bytes());
        let name = format!("sha256:{}:4097", hex::encode(leaf.blobs[0].0));
        assert!(String::from_utf8(leaf.bytes).unwrap().contains(&name));
    }

    #[test]
    fn every_kind_is_among_all_of_them() {
        for kind in LeafKind::ALL {
            assert_eq!(LeafKind::from_name(kind.name()), Some(kind));
            // A new kind stops here: put it into `ALL`, or the verifier will not know it.
            match kind {
                LeafKind::Decided
                | LeafKind::Signed
                | LeafKind::Denied
                | LeafKind::Instructed
                | LeafKind::Settled
                | LeafKind::KeyCreated
                | LeafKind::KeyImported
                | LeafKind::KeyCeremony
                | LeafKind::Alarm
                | LeafKind::HsmDown
                | LeafKind::HsmUp
                | LeafKind::Reconciled
                | LeafKind::BundleProposed
                | LeafKind::BundleEndorsed
                | LeafKind::BundleActivated
                | LeafKind::BundleRejected
                | LeafKind::ApprovalRequested
                | LeafKind::Approved
                | LeafKind::Rejected
                | LeafKind::Released
                | LeafKind::SourceGone
                | LeafKind::KeyRebound => {}
            }
        }
    }

    #[test]
    fn a_leaf_over_the_limit_is_refused() {
        let many = Value::List(vec![Value::from("y".repeat(1000)); 70]);
        let leaf = Leaf::new(LeafKind::Decided, "req", Timestamp::from_millis(0)).with("l", many);
        assert!(leaf.encode().is_err());
    }
}
