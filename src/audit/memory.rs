//! What the signer remembers of its database, in a file beside its record: which copy of the database it
//! was, and how far nonces were given. A database that is put back to an hour ago has forgotten which nonces
//! may be out; this has not. It is written before each checkpoint, so the last second is not in it.
//!
//! ```text
//! claviger database memory 1
//! copy 7459021337715214870/00000001
//! lane 31337 0x5fbdb2315678afecb367f032d93f642f64180aa3 57
//! ```

use crate::audit::record::{self, RecordError};
use crate::core::id::ChainId;
use crate::ports::store::{Store, StoreError, look, other_copy};
use alloy::primitives::Address;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

const TITLE: &str = "claviger database memory 1";

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Which copy of the database; none where it cannot tell.
    pub copy: Option<String>,
    /// One more than the highest nonce that was given, for each managed account.
    pub lanes: BTreeMap<(ChainId, Address), u64>,
}

/// Where the memory beside a record is.
#[must_use]
pub fn path(record_file: &Path) -> PathBuf {
    let mut path = record_file.as_os_str().to_owned();
    path.push(".database");
    PathBuf::from(path)
}

impl Memory {
    /// What there is to remember now.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn of(store: &dyn Store) -> Result<Self, StoreError> {
        let copy = store.identity().await?;
        let lanes =
            look(store, "every_lane", |unit| Box::pin(async move { unit.every_lane().await }))
                .await?;
        let lanes = lanes.into_iter().map(|(chain, address, next)| ((chain, address), next));
        Ok(Self { copy, lanes: lanes.collect() })
    }

    /// What this remembers and a database has forgotten, if it has: `found` is what there is to remember of it,
    /// read after this, and `known` the copy that it says itself to be, which an operator has reconciled.
    #[must_use]
    pub fn forgotten(&self, found: &Self, known: Option<&str>) -> Option<String> {
        let ahead = self.lanes.iter().find_map(|(place, given)| {
            let next = found.lanes.get(place).copied().unwrap_or(0);
            (next < *given).then_some((place, next, given))
        });
        if let Some(((chain, address), next, given)) = ahead {
            return Some(format!(
                "the database has given {next} nonces of {address:#x} on chain {chain}, and {given} were \
                 given before: it was restored from a backup"
            ));
        }
        // Where it cannot tell, nothing is concluded. Whoever was away while another host went on with this
        // copy, on an operator's word, takes it over.
        let (before, now) = (self.copy.as_deref()?, found.copy.as_deref()?);
        (before != now && known != Some(now)).then(|| other_copy(now, before))
    }

    /// Reads the memory beside a record; an empty one if there is none yet.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(record_file: &Path) -> Result<Self, RecordError> {
        let path = path(record_file);
        let failed = |error| RecordError::File { path: path.clone(), error };
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
            Ok(text) => Self::parse(&text).ok_or_else(|| {
                failed(io::Error::new(io::ErrorKind::InvalidData, "it is no memory of a database"))
            }),
        }
    }

    /// Replaces the memory beside a record: all of it or nothing, and durable on return.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, record_file: &Path) -> Result<(), RecordError> {
        record::replace(&path(record_file), &self.text())
    }

    fn text(&self) -> String {
        let mut text = format!("{TITLE}\n");
        if let Some(copy) = &self.copy {
            let _ = writeln!(text, "copy {copy}");
        }
        for ((chain, address), next) in &self.lanes {
            let _ = writeln!(text, "lane {chain} {address:#x} {next}");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        (lines.next() == Some(TITLE)).then_some(())?;
        let mut memory = Self::default();
        for line in lines {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["copy", copy] => memory.copy = Some((*copy).to_owned()),
                ["lane", chain, address, next] => {
                    let place = (ChainId::new(chain.parse().ok()?), address.parse().ok()?);
                    memory.lanes.insert(place, next.parse().ok()?);
                }
                _ => return None,
            }
        }
        Some(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_has_forgotten_what_only_the_memory_has() {
        let place = |n| (ChainId::new(31_337), Address::repeat_byte(n));
        let memory = |copy: &str, lanes: &[(u8, u64)]| Memory {
            copy: (!copy.is_empty()).then(|| copy.to_owned()),
            lanes: lanes.iter().map(|(n, given)| (place(*n), *given)).collect(),
        };
        let before = memory("1/1", &[(7, 5), (8, 0)]);
        for (found, known, says) in [
            (memory("1/1", &[(7, 5)]), "1/1", None),
            (memory("1/1", &[(7, 9), (9, 1)]), "1/1", None),
            (memory("1/1", &[(7, 4)]), "1/1", Some("has given 4 nonces")),
            (memory("1/1", &[(9, 9)]), "1/1", Some("has given 0 nonces")),
            (memory("1/2", &[(7, 5)]), "1/1", Some("another copy")),
            (memory("1/2", &[(7, 5)]), "1/2", None),
            (memory("1/2", &[(7, 4)]), "1/2", Some("has given 4 nonces")),
            (memory("", &[(7, 5)]), "1/2", None),
        ] {
            let told = before.forgotten(&found, Some(known));
            match says {
                None => assert_eq!(told, None, "{found:?}"),
                Some(says) => assert!(told.unwrap().contains(says), "{found:?}"),
            }
        }
        assert_eq!(Memory::default().forgotten(&before, None), None, "there was no memory yet");
    }

    #[test]
    fn what_is_remembered_is_read_back_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("audit.record");
        assert_eq!(Memory::read(&record).unwrap(), Memory::default());
        let place = (ChainId::new(31_337), Address::repeat_byte(7));
        let memory =
            Memory { copy: Some("1/00000001".to_owned()), lanes: BTreeMap::from([(place, 57)]) };
        memory.write(&record).unwrap();
        assert_eq!(Memory::read(&record).unwrap(), memory);
        for other in ["", "claviger database memory 2\n", "claviger database memory 1\nlane 1 2\n"]
        {
            std::fs::write(path(&record), other).unwrap();
            assert!(Memory::read(&record).is_err(), "{other}");
        }
    }
}
