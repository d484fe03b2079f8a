//! An HSM thread: one session, one job at a time.

use crate::core::id::{KeyId, RequestId};
use crate::core::key::{CkaId, Custody, OperatorKey, PublicKey, WrappedKey};
use crate::core::key_report::{KeyReport, TokenReport};
use crate::core::permit::{OpenPermit, RawSignature};
use crate::hsm::HsmConfig;
use crate::hsm::desk::Desk;
use crate::hsm::fault::{Fault, unusable};
use crate::hsm::finish::finish;
use crate::hsm::gate::Gate;
use crate::hsm::keyring::Keyring;
use crate::hsm::lock;
use crate::hsm::login::{Login, Secret, is_logged_in};
use crate::hsm::module::{Module, OpenSession};
use crate::hsm::news::News;
use crate::hsm::object::{checked, describe_pair, generate, names, search};
use crate::hsm::standing::Standing;
use crate::hsm::unwrapped as wrapped;
use crate::hsm::watch::Watch;
use crate::hsm::wrapping::{MadeWrappingKey, Wrapping, create_wrapping_key, describe_wrapping};
use crate::ports::signer::{HsmNews, SignerError};
use alloy::primitives::{B256, keccak256};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::oneshot;

/// What a proof of possession signs: this and the key's `CKA_ID`, or the public key of a wrapped one, which
/// has no `CKA_ID`. It begins with 0x19 like messages and typed data (EIP-191), but with neither's version
/// byte, so it is a transaction, message, typed data or authorization of nobody.
pub(super) const PROOF_PREFIX: &[u8] = b"\x19Claviger proof of possession\n";

/// The id of no key.
const NOBODY: &[u8] = b"claviger: nobody";
/// So many threads may probe a token: each but one is in a call that does not come back.
const PROBING_MAX: usize = 4;

/// Where the answer of a job goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, SignerError>>;

/// What an HSM thread can be asked.
pub(super) enum Job {
    /// See [`crate::ports::signer::Signer::sign`].
    Sign(Arc<OpenPermit>, Answer<RawSignature>),
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
    Enroll(Arc<OperatorKey>, Answer<()>),
    /// See [`crate::ports::signer::Signer::health`].
    Health(Answer<String>),
}

impl Job {
    /// Answers without doing it.
    pub(super) fn refuse(self, error: SignerError) {
        match self {
            Self::Sign(_, answer) => drop(answer.send(Err(error))),
            Self::Create(_, _, answer) => drop(answer.send(Err(error))),
            Self::CreateWrapped(answer) => drop(answer.send(Err(error))),
            Self::Find(_, answer) => drop(answer.send(Err(error))),
            Self::Describe(_, answer) => drop(answer.send(Err(error))),
            Self::Survey(answer) => drop(answer.send(Err(error))),
            Self::MakeWrapping(_, _, answer) => drop(answer.send(Err(error))),
            Self::DescribeWrapping(_, answer) => drop(answer.send(Err(error))),
            Self::CheckWrapping(answer) => drop(answer.send(Err(error))),
            Self::Enroll(_, answer) => drop(answer.send(Err(error))),
            Self::Health(answer) => drop(answer.send(Err(error))),
        }
    }

    /// Whether nobody waits for the answer any more.
    fn is_deserted(&self) -> bool {
        match self {
            Self::Sign(_, answer) => answer.is_closed(),
            Self::Create(_, _, answer) => answer.is_closed(),
            Self::CreateWrapped(answer) => answer.is_closed(),
            Self::Find(_, answer) => answer.is_closed(),
            Self::Describe(_, answer) => answer.is_closed(),
            Self::Survey(answer) => answer.is_closed(),
            Self::MakeWrapping(_, _, answer) => answer.is_closed(),
            Self::DescribeWrapping(_, answer) => answer.is_closed(),
            Self::CheckWrapping(answer) => answer.is_closed(),
            Self::Enroll(_, answer) => answer.is_closed(),
            Self::Health(answer) => answer.is_closed(),
        }
    }
}

/// What all HSM threads of a token share. The order of the fields is the order of the end: sessions, module.
pub(super) struct Shared {
    pub(super) desk: Arc<Desk>,
    pub(super) module: Arc<Module>,
    /// Where the token was seen last: it may be in another slot after a restart of the module.
    pub(super) slot: Mutex<Option<Slot>>,
    pub(super) login: Login,
    pub(super) keyring: Keyring,
    pub(super) wrapping: Wrapping,
    /// How many unwrapped keys a session keeps.
    pub(super) wrapped_cache: usize,
    pub(super) watch: Watch,
    pub(super) standing: Standing,
    pub(super) config: HsmConfig,
    /// The supervisor's cell, and some for those that take its place.
    pub(super) probing: Watch,
    /// Closed by whoever logs in: one login and one enumeration for all that wait.
    pub(super) renewing: Gate,
    /// The ids of the keys that are being made: two threads must not both find one free.
    creating: Mutex<HashSet<CkaId>>,
}

impl Shared {
    pub(super) fn new(
        config: HsmConfig,
        module: Arc<Module>,
        secret: Arc<Secret>,
        news: Arc<News>,
    ) -> Self {
        // As many threads again may take the places of those that do not come back.
        let seats = config.sessions.saturating_mul(2);
        let desk = Arc::new(Desk::new(seats));
        module.register(Arc::downgrade(&desk));
        Self {
            desk,
            module,
            slot: Mutex::new(None),
            login: Login::new(secret, config.token_label.clone()),
            keyring: Keyring::new(config.exceptions.clone()),
            wrapping: Wrapping::new(config.wrapping.clone()),
            wrapped_cache: config.wrapped_cache,
            watch: Watch::new(config.sessions, seats),
            standing: Standing::new(config.name.clone(), news),
            config,
            probing: Watch::new(1, PROBING_MAX),
            renewing: Gate::default(),
            creating: Mutex::default(),
        }
    }

    /// The token's slot, searched by its label if it is not known.
    ///
    /// # Errors
    /// When no slot has it, as the module would say it.
    pub(super) fn slot(&self) -> Result<Slot, Error> {
        let known = *lock(&self.slot);
        if let Some(slot) = known {
            return Ok(slot);
        }
        let found = self.module.slot_of(&self.config.token_label).map_err(|fault| match fault {
            Fault::Module(error) => error,
            Fault::Refused(_) => Error::Pkcs11(RvError::TokenNotPresent, Function::GetSlotList),
        })?;
        *lock(&self.slot) = Some(found);
        Ok(found)
    }
}

/// One HSM thread. The order of the fields is the order of the end: module, notice.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// Its place at the desk and in the watch.
    pub(super) seat: usize,
    /// Another thread has taken its place: it ends as soon as it can.
    pub(super) is_replaced: bool,
    _running: Sender<Infallible>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.watch.gone(self.seat);
    }
}

impl Worker {
    pub(super) const fn new(shared: Arc<Shared>, seat: usize, running: Sender<Infallible>) -> Self {
        Self { shared, seat, is_replaced: false, _running: running }
    }

    /// Works until nobody can ask any more, or another thread has taken its place.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while !self.is_replaced {
            match jobs.recv_timeout(self.shared.config.limits.keep_alive) {
                Ok(job) => self.perform(job),
                Err(RecvTimeoutError::Timeout) => self.keep_alive(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        self.leave();
    }

    /// A token that hears nothing from a session for long may close it. What is lost is renewed now, and not
    /// by the next job.
    fn keep_alive(&mut self) {
        if self.shared.standing.admit().is_ok() {
            // What goes wrong has been told.
            // A search, since a module may answer what a session's state is from memory.
            let _ = self.attempt(|shared, session| {
                let some = shared.keyring.some(1, None).pop();
                let id = some.map_or_else(|| CkaId::new(NOBODY.to_vec()), |(_, id, _)| id);
                search(session, &id).map(drop)
            });
        }
    }

    fn perform(&mut self, job: Job) {
        // A caller that is gone gets nothing done. One that goes later loses the answer, which ends
        // here: `send` gives it back and it is dropped.
        if job.is_deserted() {
            return;
        }
        match job {
            Job::Sign(permit, answer) => drop(answer.send(self.sign(&permit))),
            Job::Create(id, label, answer) => drop(answer.send(self.create(&id, &label))),
            Job::CreateWrapped(answer) => drop(answer.send(self.create_wrapped())),
            Job::Find(id, answer) => drop(answer.send(self.find(&id))),
            Job::Describe(id, answer) => drop(answer.send(self.describe(&id))),
            Job::Survey(answer) => drop(answer.send(self.survey())),
            Job::MakeWrapping(id, label, answer) => {
                drop(answer.send(self.make_wrapping(&id, &label)));
            }
            Job::DescribeWrapping(id, answer) => {
                drop(answer.send(self.attempt(|_, session| describe_wrapping(session, &id))));
            }
            Job::CheckWrapping(answer) => drop(answer.send(self.attempt(check_wrapping))),
            Job::Enroll(key, answer) => drop(answer.send(self.enroll(&key))),
            Job::Health(answer) => {
                drop(answer.send(self.attempt(health)));
            }
        }
    }

    fn sign(&mut self, permit: &OpenPermit) -> Result<RawSignature, SignerError> {
        let key = Some(permit.key);
        let signed = self.attempt_for(key, |shared, session| sign(shared, session, permit));
        match &signed {
            Ok(_) => self.proved(permit.key),
            // Perhaps the handle means another key by now. Nothing is signed again for this permit.
            Err(SignerError::WrongSignature) => {
                let is_in_token = matches!(permit.custody, Custody::Token);
                self.wrong_signature(permit.key, Some(permit.request), is_in_token);
            }
            Err(_) => {}
        }
        signed
    }

    /// Nothing but a good signature says that the token is well, and the key.
    fn proved(&self, key: KeyId) {
        self.shared.standing.worked();
        self.shared.keyring.right(key);
    }

    /// What is in the database of a wrapped key says nothing about the handles of the token's keys.
    fn wrong_signature(&self, key: KeyId, request: Option<RequestId>, is_in_token: bool) {
        let shared = &self.shared;
        tracing::error!(hsm = %shared.config.name, %key, "a wrong signature was discarded");
        shared.standing.alarm(HsmNews::WrongSignature { key, request });
        if is_in_token {
            shared.keyring.doubt();
        }
        if shared.keyring.wrong(key) {
            tracing::error!(hsm = %shared.config.name, %key, "the key is asked no more until it is enrolled again");
        }
    }

    fn create(&mut self, id: &CkaId, label: &str) -> Result<PublicKey, SignerError> {
        let shared = Arc::clone(&self.shared);
        let _one = Making::begin(&shared.creating, id)?;
        self.attempt(|_, session| {
            if search(session, id)?.is_empty() {
                return Ok(());
            }
            Err(unusable("the token already has an object with this id"))
        })?;
        // Made once: whether a failed call left a pair behind is `find`'s to say.
        self.once(|shared, _| {
            let writable = shared.module.pkcs11().open_rw_session(shared.slot()?)?;
            Ok(generate(&writable, id, label)?)
        })?;
        self.attempt(|shared, session| {
            let exception = shared.keyring.exception(id);
            let (_, public_key) = checked(session, &search(session, id)?, exception)?;
            Ok(public_key)
        })
    }

    fn create_wrapped(&mut self) -> Result<(PublicKey, WrappedKey), SignerError> {
        let made = self.attempt(wrapped::create);
        if made.is_ok() {
            self.shared.standing.worked();
        }
        made
    }

    fn survey(&mut self) -> Result<TokenReport, SignerError> {
        let (this, seat) = (Arc::clone(&self.shared), self.seat);
        self.attempt(|shared, session| survey(shared, session, &|| this.watch.begin(seat)))
    }

    fn make_wrapping(&mut self, id: &CkaId, label: &str) -> Result<MadeWrappingKey, SignerError> {
        let shared = Arc::clone(&self.shared);
        let _one = Making::begin(&shared.creating, id)?;
        let made = self.once(|shared, _| {
            let writable = shared.module.pkcs11().open_rw_session(shared.slot()?)?;
            create_wrapping_key(&writable, id, label)
        });
        shared.wrapping.forget();
        made
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
        let enrolled =
            self.attempt_for(Some(key.id), |shared, session| enroll(shared, session, key));
        if enrolled.is_ok() {
            self.proved(key.id);
        }
        if let Err(error @ (SignerError::KeyUnusable(_) | SignerError::WrongSignature)) = &enrolled
        {
            tracing::error!(hsm = %self.shared.config.name, key = %key.id, %error, "the key may not sign");
            self.shared.keyring.withdraw(key.id);
        }
        if matches!(enrolled, Err(SignerError::WrongSignature)) {
            self.wrong_signature(key.id, None, matches!(key.custody, Custody::Token));
        }
        enrolled
    }
}

/// An id for which a key is being made.
struct Making<'a> {
    all: &'a Mutex<HashSet<CkaId>>,
    id: &'a CkaId,
}

impl<'a> Making<'a> {
    /// Nobody waits for another thread, which may not come back from the module.
    fn begin(all: &'a Mutex<HashSet<CkaId>>, id: &'a CkaId) -> Result<Self, SignerError> {
        if !lock(all).insert(id.clone()) {
            return Err(SignerError::Overloaded);
        }
        Ok(Self { all, id })
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(self.id);
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
    prove(session, located.0, &key.cka_id, &key.public_key)?;
    shared.keyring.enroll(key.id, key.cka_id.clone(), key.public_key, located);
    if let Some(exception) = shared.keyring.exception(&key.cka_id) {
        let (allows, reason) = (exception.names().join(", "), exception.reason.as_str());
        tracing::warn!(key = %key.id, label = key.label, allows, reason, "a key is used by exception");
    }
    Ok(())
}

/// A proof of possession: what is signed has a fixed prefix and means nothing to anybody.
pub(super) fn prove(
    session: &Session,
    handle: ObjectHandle,
    cka_id: &CkaId,
    pinned: &PublicKey,
) -> Result<(), Fault> {
    let proof = keccak256([PROOF_PREFIX, cka_id.as_bytes()].concat());
    sign_digest(session, handle, &proof, pinned).map(drop)
}

/// As [`prove`], of a key that is enrolled.
pub(super) fn prove_key(
    shared: &Shared,
    session: &OpenSession,
    (key, cka_id, pinned): &(KeyId, CkaId, PublicKey),
) -> Result<(), Fault> {
    let handle = shared.keyring.usable(session, *key, pinned)?;
    prove(session, handle, cka_id, pinned)
}

/// Whether the configured wrapping key is there and as it must be.
fn check_wrapping(shared: &Shared, session: &OpenSession) -> Result<(), Fault> {
    shared.wrapping.usable(session, shared.keyring.generation()).map(drop)
}

/// What the token says of itself, and the names of what lies in it.
fn survey(shared: &Shared, session: &OpenSession, step: &dyn Fn()) -> Result<TokenReport, Fault> {
    let token = shared.module.pkcs11().get_token_info(shared.slot()?)?;
    let (labels, ids) = names(session, step)?;
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
    let token = shared.module.pkcs11().get_token_info(shared.slot()?)?;
    if !is_logged_in(session)? {
        return Err(Error::Pkcs11(RvError::UserNotLoggedIn, Function::GetSessionInfo).into());
    }
    let (label, model, serial) = (token.label(), token.model(), token.serial_number());
    let keys = shared.keyring.enrolled_count();
    Ok(format!("token {label} ({model}, serial {serial}) is logged in, {keys} keys enrolled"))
}
