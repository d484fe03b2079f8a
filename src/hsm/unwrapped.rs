//! Keys that are kept wrapped: made inside the HSM, unwrapped inside it to sign.
//!
//! Everything here is a session object, so nothing of it outlives its session, and what has an owner is
//! destroyed however its use ends.

use crate::core::key::{CkaId, PublicKey, WrappedKey};
use crate::core::permit::RawSignature;
use crate::hsm::fault::{Fault, describe, return_value, unusable};
use crate::hsm::module::OpenSession;
use crate::hsm::object::read_public_key;
use crate::hsm::point::SECP256K1_OID;
use crate::hsm::trial::must_unwrap;
use crate::hsm::worker::{PROOF_PREFIX, Shared, sign_digest};
use crate::hsm::wrapping::WrappingKey;
use crate::ports::signer::SignerError;
use alloy::primitives::{B256, keccak256};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use std::collections::HashMap;

/// A session object that is destroyed (`C_DestroyObject`, PKCS#11 v3.1, section 5.7.3) when its owner goes.
pub(super) struct Temporary<'a> {
    session: &'a Session,
    handle: ObjectHandle,
}

impl<'a> Temporary<'a> {
    pub(super) const fn new(session: &'a Session, handle: ObjectHandle) -> Self {
        Self { session, handle }
    }

    /// Leaves it in the session, for whoever takes the handle.
    fn keep(self) -> ObjectHandle {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        destroy(self.session, self.handle);
    }
}

/// A session that does not destroy its objects is near its end, which destroys them. Where the handle has come
/// to mean an object of the token, that one stays: in a session that may write it would be gone for good.
fn destroy(session: &Session, handle: ObjectHandle) {
    let destroyed = match session.get_attributes(handle, &[AttributeType::Token]) {
        Ok(told) if told == [Attribute::Token(false)] => session.destroy_object(handle),
        Ok(_) => {
            tracing::error!(
                "a handle of a session object means another object: nothing was destroyed"
            );
            return;
        }
        Err(error) => Err(error),
    };
    if let Err(error) = destroyed {
        tracing::warn!(error = describe(&error), "a session object was not destroyed");
    }
}

/// What [`crate::ports::signer::Signer::create_wrapped`] asks of an HSM thread.
pub(super) fn create(
    shared: &Shared,
    session: &OpenSession,
) -> Result<(PublicKey, WrappedKey), Fault> {
    let under = shared.wrapping.usable(session, shared.keyring.generation())?;
    create_wrapped(session, &under)
}

/// Signs a digest with a wrapped key, from the session's cache or unwrapped now.
pub(super) fn sign(
    shared: &Shared,
    session: &OpenSession,
    key: &WrappedKey,
    what: (&B256, &PublicKey),
) -> Result<RawSignature, Fault> {
    let generation = shared.keyring.generation();
    let under = shared.wrapping.usable_for(session, generation, key)?;
    let mut unwrapped =
        session.unwrapped().ok_or_else(|| unusable("its session is at work already"))?;
    unwrapped.begin(generation);
    unwrapped.sign(session, &under, key, what, shared.wrapped_cache)
}

/// Proves that a wrapped key is the pinned one, and leaves nothing behind.
pub(super) fn prove(
    shared: &Shared,
    session: &OpenSession,
    key: &WrappedKey,
    pinned: &PublicKey,
) -> Result<(), Fault> {
    let under = shared.wrapping.usable_for(session, shared.keyring.generation(), key)?;
    prove_under(session, &under, key, pinned)
}

/// Makes a pair in the session, wraps its private half, and forgets the pair.
pub(super) fn wrap_new(
    session: &Session,
    under: &WrappingKey,
) -> Result<(PublicKey, Vec<u8>), Fault> {
    let public = [
        Attribute::Token(false),
        Attribute::Verify(true),
        Attribute::EcParams(SECP256K1_OID.to_vec()),
    ];
    // Extractable, or it could not be wrapped; good for nothing else while it is.
    let mut private = vec![
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::Sign(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    if under.is_trusted {
        private.push(Attribute::WrapWithTrusted(true));
    }
    let (public, private) =
        session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
    let public = Temporary::new(session, public);
    let private = Temporary::new(session, private);
    let point = read_public_key(session, public.handle)?;
    let blob = session.wrap_key(&Mechanism::AesKeyWrapPad, under.handle, private.handle)?;
    Ok((point, blob))
}

/// Makes a pair, wraps its private half, and proves what was wrapped: the blob is unwrapped, signs, and the
/// signature is this public key's. Nothing is left in the session.
fn create_wrapped(
    session: &Session,
    under: &WrappingKey,
) -> Result<(PublicKey, WrappedKey), Fault> {
    let (public_key, blob) = wrap_new(session, under)?;
    let key = WrappedKey { blob, under: under.id.clone() };
    prove_under(session, under, &key, &public_key)?;
    Ok((public_key, key))
}

/// Unwraps a key and has it sign bytes that are nobody's transaction, message or typed data.
fn prove_under(
    session: &Session,
    under: &WrappingKey,
    key: &WrappedKey,
    pinned: &PublicKey,
) -> Result<(), Fault> {
    let unwrapped = unwrap(session, under, key)?;
    let digest = keccak256([PROOF_PREFIX, pinned.as_bytes()].concat());
    sign_digest(session, unwrapped.handle, &digest, pinned).map(|_| ())
}

/// What an unwrapped key is: it signs, cannot be read, and ends with its session. Whole, because modules that
/// heed an unwrap template refuse whoever leaves out what it holds.
pub(super) fn unwrapped_template() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ]
}

/// Unwraps a key into the session, and reads back that it can sign and cannot be read.
fn unwrap<'a>(
    session: &'a Session,
    under: &WrappingKey,
    key: &WrappedKey,
) -> Result<Temporary<'a>, Fault> {
    let unwrapped = session.unwrap_key(
        &Mechanism::AesKeyWrapPad,
        under.handle,
        &key.blob,
        &unwrapped_template(),
    );
    let unwrapped = match unwrapped {
        Ok(handle) => Temporary::new(session, handle),
        Err(error) => return Err(refused(session, under, error)),
    };
    let expected = [
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Private(true),
        Attribute::Token(false),
        Attribute::Sign(true),
    ];
    let asked = expected.each_ref().map(Attribute::attribute_type);
    let found = session.get_attributes(unwrapped.handle, &asked)?;
    if found != expected {
        return Err(unusable(
            "unwrapped, it is not sensitive, private, not extractable and signing",
        ));
    }
    Ok(unwrapped)
}

/// Whether the bytes are to blame or the module. Modules say so in many ways (SoftHSM by
/// `CKR_GENERAL_ERROR`), so it is tried with a new key: where that one can be wrapped and unwrapped, these
/// bytes cannot.
fn refused(session: &Session, under: &WrappingKey, error: Error) -> Fault {
    let is_certain = matches!(
        return_value(&error),
        Some(RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange)
    );
    let may_be = is_certain
        || matches!(
            return_value(&error),
            Some(
                RvError::GeneralError
                    | RvError::FunctionFailed
                    | RvError::DataInvalid
                    | RvError::DataLenRange
                    | RvError::EncryptedDataInvalid
                    | RvError::EncryptedDataLenRange
                    | RvError::AttributeValueInvalid
                    | RvError::TemplateInconsistent
                    | RvError::ArgumentsBad
            )
        );
    if may_be && (is_certain || works(session, under)) {
        let why = describe(&error);
        return unusable(format!("its wrapped bytes do not unwrap under this wrapping key: {why}"));
    }
    error.into()
}

fn works(session: &Session, under: &WrappingKey) -> bool {
    wrap_new(session, under).and_then(|(_, blob)| must_unwrap(session, under, &blob)).is_ok()
}

/// The unwrapped keys of one session: at most so many, the longest unused one goes first. It ends with its
/// session, and so do they.
#[derive(Default)]
pub(super) struct Unwrapped {
    /// By the wrapped bytes and the id of the wrapping key.
    kept: HashMap<(Vec<u8>, CkaId), Kept>,
    uses: u64,
    /// In which generation of handles they were unwrapped.
    generation: u64,
    is_spent: bool,
}

struct Kept {
    handle: ObjectHandle,
    used: u64,
}

impl Unwrapped {
    /// Handles of another generation may mean other objects by now, keys of the token among them: they are
    /// forgotten, not destroyed, and what they were ends with the session.
    fn begin(&mut self, generation: u64) {
        if self.generation != generation && !self.kept.is_empty() {
            self.spend();
        }
        self.generation = generation;
    }

    fn spend(&mut self) {
        self.kept.clear();
        self.is_spent = true;
    }

    /// Whether objects may be left in the session that nobody knows any more: it is to be closed.
    pub(super) const fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// Signs with a wrapped key, unwrapped now or before. `room` is how many may be kept. After an error no
    /// handle is believed any more.
    pub(super) fn sign(
        &mut self,
        session: &Session,
        under: &WrappingKey,
        key: &WrappedKey,
        (digest, pinned): (&B256, &PublicKey),
        room: usize,
    ) -> Result<RawSignature, Fault> {
        self.uses = self.uses.saturating_add(1);
        let name = (key.blob.clone(), key.under.clone());
        if let Some(kept) = self.kept.get_mut(&name) {
            kept.used = self.uses;
            metrics::counter!("claviger_hsm_unwrapped_total", "from" => "cache").increment(1);
            let signed = sign_digest(session, kept.handle, digest, pinned);
            if signed.is_err() {
                self.spend();
            }
            return signed;
        }
        let unwrapped = unwrap(session, under, key)?;
        metrics::counter!("claviger_hsm_unwrapped_total", "from" => "blob").increment(1);
        let signed = sign_digest(session, unwrapped.handle, digest, pinned);
        if let Err(fault) = &signed {
            if matches!(fault, Fault::Refused(SignerError::WrongSignature)) {
                tracing::error!("a wrapped key is not the pinned one, or signs wrongly");
            }
            let _ = unwrapped.keep();
            self.spend();
            return signed;
        }
        if room > 0 && !self.is_spent {
            while self.kept.len() >= room {
                self.forget_oldest(session);
            }
            self.kept.insert(name, Kept { handle: unwrapped.keep(), used: self.uses });
        }
        signed
    }

    fn forget_oldest(&mut self, session: &Session) {
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used);
        if let Some(name) = oldest.map(|(name, _)| name.clone())
            && let Some(kept) = self.kept.remove(&name)
        {
            destroy(session, kept.handle);
        }
    }
}
