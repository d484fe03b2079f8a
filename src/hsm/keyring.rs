//! Which keys may sign, and where they are in the token.

use crate::core::id::KeyId;
use crate::core::key::{CkaId, PublicKey};
use crate::core::key_report::KeyException;
use crate::hsm::fault::{Fault, unusable};
use crate::hsm::object::{Found, checked, search};
use crate::hsm::standing::luck;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// After so many wrong signatures in a row a key is not asked any more.
const WRONG_MAX: u32 = 3;

/// Shared by the HSM threads. Handles come from one enumeration; when they are lost, another one
/// begins a new generation, and each enrolled key is checked once more before it signs in it.
pub(super) struct Keyring {
    inner: RwLock<Inner>,
    exceptions: Vec<KeyException>,
}

#[derive(Default)]
struct Inner {
    generation: u64,
    found: HashMap<CkaId, Found>,
    enrolled: HashMap<KeyId, Enrolled>,
    /// How many wrong signatures in a row.
    wrong: HashMap<KeyId, u32>,
}

#[derive(Clone)]
struct Enrolled {
    cka_id: CkaId,
    public_key: PublicKey,
    handle: ObjectHandle,
    generation: u64,
}

impl Keyring {
    /// An empty one; of these keys the attributes may be wrong as it is said there.
    pub(super) fn new(exceptions: Vec<KeyException>) -> Self {
        Self { inner: RwLock::default(), exceptions }
    }

    /// What the operator has allowed a key, if anything.
    pub(super) fn exception(&self, cka_id: &CkaId) -> Option<&KeyException> {
        self.exceptions.iter().find(|exception| exception.cka_id == *cka_id)
    }

    /// How often the handles have been found anew.
    pub(super) fn generation(&self) -> u64 {
        self.read().generation
    }

    /// How many keys may sign.
    pub(super) fn enrolled_count(&self) -> usize {
        self.read().enrolled.len()
    }

    /// Whether a key may sign.
    pub(super) fn knows(&self, key: KeyId) -> bool {
        self.read().enrolled.contains_key(&key)
    }

    /// Some keys that may sign, not always the same, and not this one; with the ids and public keys that were
    /// pinned.
    pub(super) fn some(&self, most: usize, but: Option<KeyId>) -> Vec<(KeyId, CkaId, PublicKey)> {
        let inner = self.read();
        let others = inner.enrolled.iter().filter(|(id, _)| Some(**id) != but);
        let count = others.clone().count();
        let first = usize::try_from(luck()).unwrap_or(0).checked_rem(count).unwrap_or(0);
        let some = others.cycle().skip(first).take(most.min(count));
        some.map(|(id, key)| (*id, key.cka_id.clone(), key.public_key)).collect()
    }

    /// Takes the handles of a new enumeration.
    pub(super) fn replace(&self, found: HashMap<CkaId, Found>) {
        let mut inner = self.write();
        inner.found = found;
        inner.generation = inner.generation.saturating_add(1);
    }

    /// Forgets all handles: each key is searched and checked again at its next use.
    pub(super) fn doubt(&self) {
        self.replace(HashMap::new());
    }

    /// The handle of an enrolled key, for a signature that must recover to `pinned`.
    pub(super) fn usable(
        &self,
        session: &Session,
        key: KeyId,
        pinned: &PublicKey,
    ) -> Result<ObjectHandle, Fault> {
        let (enrolled, generation) = {
            let inner = self.read();
            (inner.enrolled.get(&key).cloned(), inner.generation)
        };
        let enrolled = enrolled.ok_or_else(|| unusable(format!("{key} is not enrolled")))?;
        if enrolled.public_key != *pinned {
            return Err(unusable(format!("{key} is enrolled with another public key")));
        }
        if enrolled.generation == generation {
            return Ok(enrolled.handle);
        }
        let (handle, generation) = self.locate(session, &enrolled.cka_id, pinned)?;
        if let Some(enrolled) = self.write().enrolled.get_mut(&key) {
            enrolled.handle = handle;
            enrolled.generation = generation;
        }
        Ok(handle)
    }

    /// Finds the private key with this id, checks it, and compares its public key. Answers with the
    /// generation in which that was so.
    pub(super) fn locate(
        &self,
        session: &Session,
        cka_id: &CkaId,
        pinned: &PublicKey,
    ) -> Result<(ObjectHandle, u64), Fault> {
        let (known, generation) = {
            let inner = self.read();
            (inner.found.get(cka_id).cloned(), inner.generation)
        };
        let check = |found: &Found| checked(session, found, self.exception(cka_id));
        let (handle, public_key) = match known.as_ref().map(check) {
            // What was enumerated may be old: the key may have come, or been mended, since.
            None | Some(Err(Fault::Refused(_))) => check(&search(session, cka_id)?)?,
            Some(answer) => answer?,
        };
        if public_key != *pinned {
            return Err(unusable("its public key in the token is not the pinned one"));
        }
        Ok((handle, generation))
    }

    /// Lets a key sign that was located in this generation and has proved itself.
    pub(super) fn enroll(
        &self,
        key: KeyId,
        cka_id: CkaId,
        public_key: PublicKey,
        (handle, generation): (ObjectHandle, u64),
    ) {
        let enrolled = Enrolled { cka_id, public_key, handle, generation };
        self.write().enrolled.insert(key, enrolled);
    }

    /// A key has given a wrong signature. Answers whether it was one too many: the key is asked no more, until
    /// it has proved itself for one who enrolls it.
    pub(super) fn wrong(&self, key: KeyId) -> bool {
        let mut inner = self.write();
        let times = inner.wrong.entry(key).or_default();
        *times = times.saturating_add(1);
        let is_barred = *times >= WRONG_MAX;
        if is_barred {
            inner.enrolled.remove(&key);
        }
        is_barred
    }

    /// A key has given a right signature.
    pub(super) fn right(&self, key: KeyId) {
        if self.read().wrong.contains_key(&key) {
            self.write().wrong.remove(&key);
        }
    }

    /// Whether a key is asked no more.
    pub(super) fn is_barred(&self, key: KeyId) -> bool {
        self.read().wrong.get(&key).is_some_and(|times| *times >= WRONG_MAX)
    }

    /// Takes the right to sign away.
    pub(super) fn withdraw(&self, key: KeyId) {
        self.write().enrolled.remove(&key);
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
