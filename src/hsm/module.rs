//! The PKCS#11 module in this process, and its tokens.

use crate::hsm::desk::Desk;
use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe, return_value};
use crate::hsm::gate::Gate;
use crate::hsm::lock;
use crate::hsm::unwrapped::Unwrapped;
use crate::ports::signer::SignerError;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::Session;
use cryptoki::slot::{Slot, TokenInfo};
use std::cell::{RefCell, RefMut};
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Weak};
use std::time::Duration;

/// How often `C_Initialize` is tried, and how long the first pause is; each next one is twice as long.
/// Two processes that start together on one token can make one of them fail.
const START_TRIES: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(50);

/// A module. Finalised when dropped, so it must outlive its sessions: whoever has sessions holds this too,
/// and drops it after them.
pub(super) struct Module {
    pkcs11: Pkcs11,
    /// Each call into the module is made by a thread that has passed it.
    pub(super) gate: Gate,
    is_initialized: AtomicBool,
    /// How often it has been finalised and initialised.
    life: AtomicU64,
    /// The sessions of all its tokens.
    desks: Mutex<Vec<Weak<Desk>>>,
}

/// What became of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    /// It was done now.
    Done,
    /// It has been done since, for another token.
    Before,
    /// A thread does not come back from the module, so it cannot be finalised.
    Occupied,
}

impl Module {
    /// Loads it.
    pub(super) fn load(path: &Path) -> Result<Self, SignerError> {
        let pkcs11 = Pkcs11::new(path).map_err(|error| {
            let (path, error) = (path.display(), describe(&error));
            SignerError::Unavailable(format!("the PKCS#11 module {path} does not load: {error}"))
        })?;
        Ok(Self {
            pkcs11,
            gate: Gate::default(),
            is_initialized: AtomicBool::new(false),
            life: AtomicU64::new(0),
            desks: Mutex::default(),
        })
    }

    /// Loads and initialises it (PKCS#11 v3.1, section 5.4.1), with the system's locks.
    pub(super) fn start(path: &Path) -> Result<Self, SignerError> {
        let module = Self::load(path)?;
        module.initialize().map_err(Fault::from)?;
        Ok(module)
    }

    /// Initialises it, once more where it could not be.
    pub(super) fn initialize(&self) -> Result<(), Error> {
        let mut pause = START_PAUSE;
        for _ in 1..START_TRIES {
            match self.pkcs11.initialize(arguments()) {
                Err(error) if return_value(&error) == Some(RvError::GeneralError) => {
                    tracing::warn!(error = describe(&error), "the module did not start, again");
                }
                other => return self.initialized(other),
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2);
        }
        self.initialized(self.pkcs11.initialize(arguments()))
    }

    fn initialized(&self, outcome: Result<(), Error>) -> Result<(), Error> {
        if outcome.is_ok() {
            self.is_initialized.store(true, Ordering::Release);
        }
        outcome
    }

    /// How often it has been finalised and initialised.
    pub(super) fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    /// The sessions of one more token.
    pub(super) fn register(&self, desk: Weak<Desk>) {
        lock(&self.desks).push(desk);
    }

    /// The last rung: waits until no thread is inside, closes all sessions of all tokens, finalises and
    /// initialises. The other tokens' jobs wait meanwhile, and log in again.
    pub(super) fn restart(&self, seen: u64, limit: Duration) -> Result<Restart, Error> {
        let Some(alone) = self.gate.close(limit) else {
            return Ok(Restart::Occupied);
        };
        if self.life() != seen {
            return Ok(Restart::Before);
        }
        for desk in lock(&self.desks).iter().filter_map(Weak::upgrade) {
            desk.clear(&alone);
        }
        if let Err(error) = self.pkcs11.clone().finalize()
            && class(&error) != Class::ModuleGone
        {
            tracing::warn!(error = describe(&error), "the module did not end cleanly");
        }
        self.is_initialized.store(false, Ordering::Release);
        self.life.fetch_add(1, Ordering::AcqRel);
        match self.initialize() {
            // Somebody else in this process has done it.
            Err(error) if class(&error) == Class::AlreadyDone => Ok(Restart::Done),
            Err(error) => Err(error),
            Ok(()) => Ok(Restart::Done),
        }
    }

    /// The binding, for calls that need no session.
    pub(super) const fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// The slots whose token can be read, with what it says about itself (sections 5.5.1, 5.5.3).
    pub(super) fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, Fault> {
        let slots = self.pkcs11.get_slots_with_token()?;
        let read = |slot| Some((slot, self.pkcs11.get_token_info(slot).ok()?));
        Ok(slots.into_iter().filter_map(read).collect())
    }

    /// The slot of the one initialised token with this label.
    pub(super) fn slot_of(&self, label: &str) -> Result<Slot, Fault> {
        let named = |token: &TokenInfo| token.token_initialized() && token.label() == label;
        let mut slots = self.tokens()?.into_iter().filter(|(_, token)| named(token));
        let refuse = |why: String| Err(Fault::Refused(SignerError::Unavailable(why)));
        match (slots.next(), slots.next()) {
            (Some((slot, _)), None) => Ok(slot),
            (None, _) => refuse(format!("no token is labelled {label:?}")),
            (Some(_), Some(_)) => refuse(format!("more than one token is labelled {label:?}")),
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.is_initialized.load(Ordering::Acquire)
            && let Err(error) = self.pkcs11.clone().finalize()
        {
            tracing::warn!(error = describe(&error), "the module did not end cleanly");
        }
    }
}

fn arguments() -> CInitializeArgs {
    CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)
}

/// A session that is counted as long as it is ours, with the keys that were unwrapped into it. Dropping it
/// closes it.
pub(super) struct OpenSession {
    session: Session,
    /// When it was opened; see [`Desk`].
    epoch: u64,
    unwrapped: RefCell<Unwrapped>,
    _counted: Counted,
}

struct Counted;

impl OpenSession {
    /// Opens one (section 5.6.1).
    pub(super) fn open(
        module: &Module,
        slot: Slot,
        may_write: bool,
        epoch: u64,
    ) -> Result<Self, Error> {
        let session = if may_write {
            module.pkcs11.open_rw_session(slot)?
        } else {
            module.pkcs11.open_ro_session(slot)?
        };
        metrics::gauge!("claviger_hsm_sessions").increment(1.0);
        Ok(Self { session, epoch, unwrapped: RefCell::default(), _counted: Counted })
    }

    pub(super) const fn get(&self) -> &Session {
        &self.session
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// It has been seen to be good in this epoch.
    pub(super) fn renewed(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// Gives it up without closing it: its number may be another session's by now.
    pub(super) fn forget(self) {
        std::mem::forget(self.session);
    }

    /// Whether it is to be closed: there may be unwrapped keys in it that nobody knows any more.
    pub(super) fn is_spent(&self) -> bool {
        self.unwrapped().is_none_or(|unwrapped| unwrapped.is_spent())
    }

    /// The keys that were unwrapped into it, if nobody uses them now.
    pub(super) fn unwrapped(&self) -> Option<RefMut<'_, Unwrapped>> {
        self.unwrapped.try_borrow_mut().ok()
    }
}

impl Deref for OpenSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.get()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("claviger_hsm_sessions").decrement(1.0);
    }
}
