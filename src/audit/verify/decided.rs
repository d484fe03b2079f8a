//! No signature without its decision before it: the same request, attempt and digest.

use crate::core::audit::LeafKind;
use crate::core::audit::read::ReadLeaf;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Attempts that are decided and not yet signed, by a hash of request, attempt and digest: 32 bytes each.
/// An attempt is signed once, and leaves the set by it.
#[derive(Default)]
pub struct Decided(HashSet<[u8; 32]>);

impl Decided {
    /// Takes the next leaf. The error says what is wrong with it.
    pub fn take(&mut self, leaf: &ReadLeaf) -> Result<(), String> {
        match leaf.kind {
            LeafKind::Decided => {
                self.0.insert(attempt(leaf));
                Ok(())
            }
            LeafKind::Signed if !self.0.remove(&attempt(leaf)) => {
                let number = leaf.text("attempt").unwrap_or_default();
                Err(format!(
                    "a signature of attempt {number} of {} that no leaf before it decided, or that \
                     was signed before",
                    leaf.id
                ))
            }
            _ => Ok(()),
        }
    }

    /// How many are decided and not signed.
    pub fn waiting(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap_or(u64::MAX)
    }
}

fn attempt(leaf: &ReadLeaf) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [&leaf.id, leaf.text("attempt").unwrap_or(""), leaf.text("digest").unwrap_or("")] {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
