//! What the log is told of a key: where it is, its public key, and its attributes as the token told them.

use crate::app::record::{self, KeyFacts};
use crate::core::audit::{EncodedLeaf, Leaf, LeafKind, LeafTooLong, Value};
use crate::core::id::{GroupName, KeyId};
use crate::core::key::{Custody, KeyPlace, NonceMode, PublicKey};
use crate::core::key_report::KeyReport;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::NewEvent;
use sha2::{Digest, Sha256};

/// A key that is pinned now.
pub struct PinnedKey<'a> {
    /// Our id.
    pub id: KeyId,
    /// Where it is.
    pub place: &'a KeyPlace,
    /// What people call it.
    pub label: &'a str,
    /// Its group.
    pub group: Option<&'a GroupName>,
    /// Who gives its nonces.
    pub mode: NonceMode,
    /// Who asked.
    pub principal: &'a Principal,
    /// The public key that is pinned.
    pub public_key: PublicKey,
    /// Where its private half is kept.
    pub custody: &'a Custody,
    /// What its token told of it; none where its private half is no object of the token.
    pub report: Option<&'a KeyReport>,
}

impl PinnedKey<'_> {
    /// The leaf that says so.
    ///
    /// # Errors
    /// When it is too long, which bounded names cannot make it.
    pub fn leaf(&self, kind: LeafKind, at: Timestamp) -> Result<EncodedLeaf, LeafTooLong> {
        let mut leaf = Leaf::new(kind, self.id, at)
            .with("label", self.label)
            .with("group", self.group.map_or("", |group| group.as_str()))
            .with("mode", self.mode.name())
            .with("iss", &self.principal.iss)
            .with("sub", &self.principal.sub)
            .with("hsm", &self.place.hsm)
            .with_hex("cka_id", self.place.cka_id.as_bytes())
            .with_hex("public_key", self.public_key.as_bytes())
            .with("address", format!("{:#x}", self.public_key.address()));
        leaf = match self.custody {
            Custody::Token => leaf.with("custody", "token"),
            Custody::Wrapped(wrapped) => leaf
                .with("custody", "wrapped")
                .with_hex("wrapping_key", wrapped.under.as_bytes())
                .with("wrapped_sha256", hex::encode(Sha256::digest(&wrapped.blob))),
        };
        if let Some(report) = self.report {
            let values = report.values().map(|(name, value)| (name, Value::from(value)));
            leaf = leaf.with("attributes", Value::Map(values.collect()));
            if let Some(exception) = &report.exception {
                let allows = exception.names().into_iter().map(Value::from).collect();
                leaf =
                    leaf.with("exception", Value::List(allows)).with("reason", &exception.reason);
            }
        }
        leaf.encode()
    }

    /// The event that tells others: `created` or `imported`.
    #[must_use]
    pub fn event(&self, what: &str, id: String, at: Timestamp) -> NewEvent {
        let facts = KeyFacts {
            id: self.id.to_string(),
            label: self.label,
            group: self.group.map(GroupName::as_str),
            mode: self.mode.name(),
            hsm: self.place.hsm.as_str(),
            custody: self.custody.name(),
            public_key: self.public_key,
        };
        record::key_event(&facts, what, id, at)
    }
}
