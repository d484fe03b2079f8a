//! An HSM thread: one session, one job at a time, and the first rungs of the recovery ladder.

use crate::core::key::{CkaId, Custody, OperatorKey, PublicKey, WrappedKey};
use crate::core::key_report::{KeyException, KeyReport, TokenReport};
use crate::core::permit::{OpenPermit, Permit, RawSignature};
use crate::hsm::fault::{Fault, describe, handles_lost, is_curable, unavailable, unusable};
use crate::hsm::finish::finish;
use crate::hsm::keyring::Keyring;
use crate::hsm::lock;
use crate::hsm::module::{Login, Module, OpenSession, is_logged_in};
use crate::hsm::object::{checked, describe_pair, enumerate, generate, names, search};
use crate::hsm::unwrapped as wrapped;
use crate::hsm::watch::Watch;
use crate::hsm::wrapping::{MadeWrappingKey, Wrapping, create_wrapping_key, describe_wrapping};
use crate::ports::signer::SignerError;
use alloy::primitives::{B256, keccak256};
use crossbeam_channel::{Receiver, Sender};
use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::oneshot;

/// What a proof of possession signs: this and the key's `CKA_ID`. It begins with 0x19 like messages
/// and typed data (EIP-191), but with neither's version byte, so it is a transaction, message or
/// typed data of nobody.
const PROOF_PREFIX: &[u8] = b"\x19Claviger proof of possession\n";

/// Where the answer of a job goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, SignerError>>;

/// What an HSM thread can be asked.
pub(super) enum Job {
    /// See [`crate::ports::signer::Signer::sign`].
    Sign(Permit, Answer<RawSignature>),
    /// See [`crate::ports::signer::Signer::create_key`].
    Create(CkaId, String, Answer<PublicKey>),
    /// See [`crate::ports::signer::Signer::create_wrapped`].
    CreateWrapped(Answer<(PublicKey, WrappedKey)>),
    /// See [`crate::ports::signer::Signer::find_key`].
    Find(CkaId, Answer<Option<PublicKey>>),
    /// See [`crate::ports::signer::Signer::describe_key`].
    Describe(CkaId, Answer<Option<KeyReport>>),
    /// See [`crate::ports::signer::Signer::describe_token`].
    Survey(Answer<TokenReport>),
    /// See [`crate::hsm::Hsm::make_wrapping_key`].
    MakeWrapping(CkaId, String, Answer<MadeWrappingKey>),
    /// See [`crate::hsm::Hsm::describe_wrapping_key`].
    DescribeWrapping(CkaId, Answer<Option<BTreeMap<String, String>>>),
    /// See [`crate::hsm::Hsm::check_wrapping_key`].
    CheckWrapping(Answer<()>),
    /// See [`crate::ports::signer::Signer::enroll`].
    Enroll(OperatorKey, Answer<()>),
    /// See [`crate::ports::signer::Signer::health`].
    Health(Answer<String>),
}

/// What all HSM threads share.
pub(super) struct Shared {
    pub(super) module: Arc<Module>,
    pub(super) slot: Slot,
    pub(super) login: Login,
    pub(super) keyring: Keyring,
    pub(super) wrapping: Wrapping,
    /// How many unwrapped keys a session keeps.
    pub(super) wrapped_cache: usize,
    pub(super) watch: Arc<Watch>,
    /// Held while a session is renewed: one login and one enumeration for all that wait.
    renewing: Mutex<()>,
    /// Held while a key is made: two threads must not both find the id free.
    creating: Mutex<()>,
}

impl Shared {
    pub(super) fn new(
        module: Arc<Module>,
        slot: Slot,
        login: Login,
        threads: usize,
        exceptions: Vec<KeyException>,
    ) -> Self {
        Self {
            module,
            slot,
            login,
            keyring: Keyring::new(exceptions),
            wrapping: Wrapping::new(None),
            wrapped_cache: 0,
            watch: Arc::new(Watch::new(threads)),
            renewing: Mutex::new(()),
            creating: Mutex::new(()),
        }
    }
}

/// One HSM thread. The order of the fields is the order of the end: session, module, notice.
pub(super) struct Worker {
    session: Option<OpenSession>,
    shared: Arc<Shared>,
    index: usize,
    _running: Sender<Infallible>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.watch.gone(self.index);
    }
}

impl Worker {
    pub(super) const fn new(
        session: OpenSession,
        shared: Arc<Shared>,
        index: usize,
        running: Sender<Infallible>,
    ) -> Self {
        Self { session: Some(session), shared, index, _running: running }
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            self.shared.watch.begin(self.index);
            self.perform(job);
            self.shared.watch.end(self.index);
        }
    }

    fn perform(&mut self, job: Job) {
        // A caller that is gone gets nothing done. One that goes later loses the answer, which ends
        // here: `send` gives it back and it is dropped.
        match job {
            Job::Sign(_, answer) if answer.is_closed() => {}
            Job::Create(_, _, answer) if answer.is_closed() => {}
            Job::CreateWrapped(answer) if answer.is_closed() => {}
            Job::Sign(permit, answer) => drop(answer.send(self.sign(permit))),
            Job::Create(id, label, answer) => drop(answer.send(self.create(&id, &label))),
            Job::CreateWrapped(answer) => drop(answer.send(self.attempt(wrapped::create))),
            Job::Find(id, answer) => drop(answer.send(self.find(&id))),
            Job::Describe(id, answer) => drop(answer.send(self.describe(&id))),
            Job::Survey(answer) => drop(answer.send(self.attempt(survey))),
            Job::MakeWrapping(id, label, answer) => {
                drop(answer.send(self.make_wrapping(&id, &label)));
            }
            Job::DescribeWrapping(id, answer) => {
                drop(answer.send(self.attempt(|_, session| describe_wrapping(session, &id))));
            }
            Job::CheckWrapping(answer) => drop(answer.send(self.attempt(check_wrapping))),
            Job::Enroll(key, answer) => drop(answer.send(self.enroll(&key))),
            Job::Health(answer) => drop(answer.send(self.attempt(health))),
        }
    }

    fn sign(&mut self, permit: Permit) -> Result<RawSignature, SignerError> {
        let permit = permit.open();
        let signed = self.attempt(|shared, session| sign(shared, session, &permit));
        if matches!(signed, Err(SignerError::WrongSignature)) {
            // Perhaps the handle means another key by now. Nothing is signed again for this permit.
            tracing::error!(key = %permit.key, "a wrong signature was discarded");
            self.shared.keyring.doubt();
            self.session = None;
        }
        signed
    }

    fn create(&mut self, id: &CkaId, label: &str) -> Result<PublicKey, SignerError> {
        let shared = Arc::clone(&self.shared);
        let _one = lock(&shared.creating);
        self.attempt(|_, session| {
            if search(session, id)?.is_empty() {
                return Ok(());
            }
            Err(unusable("the token already has an object with this id"))
        })?;
        // Made once: whether a failed call left a pair behind is `find`'s to say.
        let writable = shared.module.pkcs11().open_rw_session(shared.slot);
        writable
            .and_then(|session| generate(&session, id, label))
            .map_err(|error| unavailable(&error))?;
        self.attempt(|shared, session| {
            let exception = shared.keyring.exception(id);
            let (_, public_key) = checked(session, &search(session, id)?, exception)?;
            Ok(public_key)
        })
    }

    fn make_wrapping(&self, id: &CkaId, label: &str) -> Result<MadeWrappingKey, SignerError> {
        let shared = &self.shared;
        let _one = lock(&shared.creating);
        let session = shared.module.pkcs11().open_rw_session(shared.slot);
        let session = session.map_err(|error| unavailable(&error))?;
        let made = create_wrapping_key(&session, id, label)?;
        shared.wrapping.forget();
        Ok(made)
    }

    fn describe(&mut self, id: &CkaId) -> Result<Option<KeyReport>, SignerError> {
        self.attempt(|shared, session| {
            let found = search(session, id)?;
            if found.is_empty() {
                return Ok(None);
            }
            describe_pair(session, &found, shared.keyring.exception(id)).map(Some)
        })
    }

    fn find(&mut self, id: &CkaId) -> Result<Option<PublicKey>, SignerError> {
        self.attempt(|shared, session| {
            let found = search(session, id)?;
            if found.is_empty() {
                return Ok(None);
            }
            let (_, public_key) = checked(session, &found, shared.keyring.exception(id))?;
            Ok(Some(public_key))
        })
    }

    fn enroll(&mut self, key: &OperatorKey) -> Result<(), SignerError> {
        let enrolled = self.attempt(|shared, session| enroll(shared, session, key));
        if let Err(error @ (SignerError::KeyUnusable(_) | SignerError::WrongSignature)) = &enrolled
        {
            tracing::error!(key = %key.id, %error, "the key may not sign");
            self.shared.keyring.withdraw(key.id);
        }
        enrolled
    }

    /// Does a job; where a new session, a login or new handles can cure what went wrong, once more.
    /// After any error of the module the session is given up, since an operation may be left active
    /// in it.
    fn attempt<T>(
        &mut self,
        job: impl Fn(&Shared, &OpenSession) -> Result<T, Fault>,
    ) -> Result<T, SignerError> {
        let shared = Arc::clone(&self.shared);
        let mut lost_handles = false;
        let mut generation = shared.keyring.generation();
        let mut again = true;
        loop {
            let session = match self.session.take() {
                Some(session) => session,
                None => self.renew(lost_handles, generation)?,
            };
            generation = shared.keyring.generation();
            match job(&shared, &session) {
                Ok(done) => {
                    self.session = Some(session);
                    return Ok(done);
                }
                Err(Fault::Refused(error)) => {
                    self.session = Some(session);
                    return Err(error);
                }
                Err(Fault::Module(error)) if again && is_curable(&error) => {
                    tracing::warn!(error = describe(&error), "renewing the HSM session");
                    lost_handles = handles_lost(&error);
                    again = false;
                }
                Err(Fault::Module(error)) => {
                    tracing::error!(error = describe(&error), "the HSM failed");
                    return Err(unavailable(&error));
                }
            }
        }
    }

    /// A new session, logged in. Handles are found anew when the login had been lost, or when they
    /// were refused and no other thread has done it since `generation`.
    fn renew(&self, lost_handles: bool, generation: u64) -> Result<OpenSession, SignerError> {
        let shared = &self.shared;
        let _one = lock(&shared.renewing);
        let session = shared.module.open(shared.slot).map_err(|error| unavailable(&error))?;
        let logged_in = shared.login.ensure(&shared.module, shared.slot, session.get())?;
        let untouched = shared.keyring.generation() == generation;
        if logged_in || (lost_handles && untouched) {
            shared.keyring.doubt();
            let found = enumerate(session.get()).map_err(|error| unavailable(&error))?;
            shared.keyring.replace(found);
        }
        Ok(session)
    }
}

fn sign(
    shared: &Shared,
    session: &OpenSession,
    permit: &OpenPermit,
) -> Result<RawSignature, Fault> {
    if let Custody::Wrapped(key) = &permit.custody {
        return wrapped::sign(shared, session, key, (&permit.digest, &permit.public_key));
    }
    let handle = shared.keyring.usable(session, permit.key, &permit.public_key)?;
    sign_digest(session, handle, &permit.digest, &permit.public_key)
}

/// `CKM_ECDSA` over the 32-byte digest (PKCS#11 v3.1, sections 5.13.1, 5.13.2 and 6.3), finished.
pub(super) fn sign_digest(
    session: &Session,
    handle: ObjectHandle,
    digest: &B256,
    pinned: &PublicKey,
) -> Result<RawSignature, Fault> {
    let begun = Instant::now();
    let raw = session.sign(&Mechanism::Ecdsa, handle, digest.as_slice())?;
    metrics::histogram!("claviger_hsm_sign_duration_seconds").record(begun.elapsed());
    let finished = finish(digest, &raw, pinned);
    let outcome = match &finished {
        Some(finished) if finished.was_high => "high_s",
        Some(_) => "low_s",
        None => "wrong",
    };
    metrics::counter!("claviger_hsm_signatures_total", "raw" => outcome).increment(1);
    let finished = finished.ok_or(SignerError::WrongSignature)?;
    Ok(finished.signature)
}

fn enroll(shared: &Shared, session: &OpenSession, key: &OperatorKey) -> Result<(), Fault> {
    if key.address != key.public_key.address() {
        return Err(unusable("the pinned address is not the pinned public key's"));
    }
    if let Custody::Wrapped(wrapped) = &key.custody {
        return wrapped::prove(shared, session, wrapped, &key.public_key);
    }
    let located = shared.keyring.locate(session, &key.cka_id, &key.public_key)?;
    let proof = keccak256([PROOF_PREFIX, key.cka_id.as_bytes()].concat());
    sign_digest(session, located.0, &proof, &key.public_key)?;
    shared.keyring.enroll(key.id, key.cka_id.clone(), key.public_key, located);
    if let Some(exception) = shared.keyring.exception(&key.cka_id) {
        let (allows, reason) = (exception.names().join(", "), exception.reason.as_str());
        tracing::warn!(key = %key.id, label = key.label, allows, reason, "a key is used by exception");
    }
    Ok(())
}

/// Whether the configured wrapping key is there and as it must be.
fn check_wrapping(shared: &Shared, session: &OpenSession) -> Result<(), Fault> {
    shared.wrapping.usable(session, shared.keyring.generation()).map(drop)
}

/// What the token says of itself, and the names of what lies in it.
fn survey(shared: &Shared, session: &OpenSession) -> Result<TokenReport, Fault> {
    let token = shared.module.pkcs11().get_token_info(shared.slot)?;
    let (labels, ids) = names(session)?;
    let firmware = token.firmware_version();
    Ok(TokenReport {
        label: token.label().to_owned(),
        manufacturer: token.manufacturer_id().to_owned(),
        model: token.model().to_owned(),
        serial: token.serial_number().to_owned(),
        firmware: format!("{}.{}", firmware.major(), firmware.minor()),
        labels,
        ids,
    })
}

/// Token and session state (PKCS#11 v3.1, sections 5.5.3 and 5.6.4) in a sentence.
fn health(shared: &Shared, session: &OpenSession) -> Result<String, Fault> {
    let token = shared.module.pkcs11().get_token_info(shared.slot)?;
    if !is_logged_in(session)? {
        return Err(Error::Pkcs11(RvError::UserNotLoggedIn, Function::GetSessionInfo).into());
    }
    let (label, model, serial) = (token.label(), token.model(), token.serial_number());
    let keys = shared.keyring.enrolled_count();
    Ok(format!("token {label} ({model}, serial {serial}) is logged in, {keys} keys enrolled"))
}
