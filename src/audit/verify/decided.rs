//! No signature without its decision before it: the same request, attempt and digest. And no second decision
//! while the first waits for its signature: there would be two texts that one signature could be for.

use crate::core::audit::LeafKind;
use crate::core::audit::read::ReadLeaf;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Attempts that are decided and not yet signed: a hash of request and attempt, and one of the digest, 64
/// bytes each. An attempt is forgotten when it is signed.
#[derive(Default)]
pub struct Decided(HashMap<[u8; 32], [u8; 32]>);

impl Decided {
    /// Takes the next leaf. The error says what is wrong with it.
    pub fn take(&mut self, leaf: &ReadLeaf) -> Result<(), String> {
        let number = leaf.text("attempt").unwrap_or_default();
        let digest = || hash([leaf.text("digest").unwrap_or_default()]);
        match leaf.kind {
            LeafKind::Decided => match self.0.entry(hash([leaf.id.as_str(), number])) {
                Entry::Occupied(_) => Err(format!(
                    "a decision of attempt {number} of {}, which a leaf before it decided",
                    leaf.id
                )),
                Entry::Vacant(free) => {
                    free.insert(digest());
                    Ok(())
                }
            },
            LeafKind::Signed => {
                let decided = self.0.remove(&hash([leaf.id.as_str(), number]));
                if decided == Some(digest()) {
                    return Ok(());
                }
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

fn hash<const N: usize>(parts: [&str; N]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
