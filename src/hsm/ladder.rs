//! The first rungs of the recovery ladder: what an HSM thread does about an error by itself. What happened
//! before is harmless: nothing that a failed try gave has left this room.

use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe, explained, unavailable};
use crate::hsm::lock;
use crate::hsm::module::OpenSession;
use crate::hsm::object::enumerate;
use crate::hsm::worker::{Shared, Worker};
use crate::ports::signer::SignerError;
use cryptoki::error::Error;
use std::sync::Arc;
use std::time::Duration;

/// How long a job waits while the module is restarted for another token.
const GATE_LIMIT: Duration = Duration::from_secs(10);
/// How long it is waited for the other threads to come out, before sessions are looked through.
pub(super) const MUSTER_LIMIT: Duration = Duration::from_secs(1);
/// A job is tried so often at most, and once more at most for each class of errors.
const TRIES_MAX: usize = 3;

/// How one try ended.
enum Try<T> {
    Done(T),
    Refused(SignerError),
    Failed(Error),
}

impl Worker {
    /// Does a job; where that can cure what went wrong, once more.
    pub(super) fn attempt<T>(
        &mut self,
        job: impl Fn(&Shared, &OpenSession) -> Result<T, Fault>,
    ) -> Result<T, SignerError> {
        let shared = Arc::clone(&self.shared);
        let mut seen: Vec<Class> = Vec::new();
        loop {
            let error = match self.try_once(seen.last() == Some(&Class::HandlesLost), &job)? {
                Try::Done(done) => return Ok(done),
                Try::Refused(error) => return Err(error),
                Try::Failed(error) => error,
            };
            let class = class(&error);
            let is_last = !class.is_tried_again()
                || seen.contains(&class)
                || seen.len().saturating_add(1) >= TRIES_MAX;
            let too_much =
                matches!(class, Class::Trouble | Class::Vendor) && shared.standing.troubled();
            if is_last || too_much {
                return Err(self.give_up(&error, too_much));
            }
            metrics::counter!("claviger_hsm_retries_total", "class" => class.name()).increment(1);
            let hsm = &shared.config.name;
            tracing::warn!(%hsm, error = explained(&error), "renewing the HSM session");
            seen.push(class);
        }
    }

    /// Does a job once: one that must not be done twice.
    pub(super) fn once<T>(
        &mut self,
        job: impl Fn(&Shared, &OpenSession) -> Result<T, Fault>,
    ) -> Result<T, SignerError> {
        match self.try_once(false, &job)? {
            Try::Done(done) => Ok(done),
            Try::Refused(error) => Err(error),
            Try::Failed(error) => Err(self.give_up(&error, false)),
        }
    }

    /// The job has failed for good.
    fn give_up(&self, error: &Error, too_much: bool) -> SignerError {
        let (shared, class) = (&self.shared, class(error));
        tracing::error!(hsm = %shared.config.name, error = explained(error), "the HSM failed");
        metrics::counter!("claviger_hsm_failures_total", "class" => class.name()).increment(1);
        match class {
            Class::TokenGone | Class::ModuleGone => {
                shared.standing.fell(&describe(error), class == Class::ModuleGone);
            }
            _ if too_much => shared.standing.fell(&describe(error), false),
            _ => {}
        }
        // Who asks next is told to wait; this one too.
        shared.standing.admit().err().unwrap_or_else(|| unavailable(error))
    }

    /// One try, inside the module and under the eyes of the watch.
    fn try_once<T>(
        &mut self,
        handles_lost: bool,
        job: impl Fn(&Shared, &OpenSession) -> Result<T, Fault>,
    ) -> Result<Try<T>, SignerError> {
        let shared = Arc::clone(&self.shared);
        shared.standing.admit()?;
        let busy = || SignerError::Unavailable("the module is being restarted".to_owned());
        let pass = shared.module.gate.enter(GATE_LIMIT).ok_or_else(busy)?;
        shared.watch.begin(self.seat);
        let session = match shared.desk.take(self.seat) {
            Some(session) if !handles_lost => Ok(session),
            kept => {
                shared.desk.discard_any(kept);
                renew(&shared, handles_lost)
            }
        };
        let (outcome, session) = match session {
            Ok(session) => (job(&shared, &session), Some(session)),
            Err(fault) => (Err(fault), None),
        };
        if !shared.watch.end(self.seat) {
            // Its caller was told long ago that nothing came. Whatever came now must not count.
            self.is_replaced = true;
            shared.desk.discard_any(session);
            return Err(SignerError::Unavailable("the HSM has not answered in time".to_owned()));
        }
        match outcome {
            Ok(done) => {
                shared.desk.put_any(self.seat, session);
                shared.standing.worked();
                Ok(Try::Done(done))
            }
            Err(Fault::Refused(error)) => {
                shared.desk.put_any(self.seat, session);
                if let SignerError::Condemned(why) = &error {
                    shared.standing.condemn(why);
                }
                Ok(Try::Refused(error))
            }
            Err(Fault::Module(error)) => {
                let is_lost = self.lay_down(session, class(&error));
                drop(pass);
                if is_lost {
                    muster(&shared);
                }
                Ok(Try::Failed(error))
            }
        }
    }

    /// What becomes of the session in which something went wrong. Answers whether the others must be looked
    /// through before a new one is opened: it was good until now, and the module does not know it.
    fn lay_down(&self, session: Option<OpenSession>, class: Class) -> bool {
        let Some(session) = session else { return false };
        let desk = &self.shared.desk;
        match class {
            Class::SessionLost | Class::ModuleGone => {
                let is_first = session.epoch() == desk.epoch();
                session.forget();
                is_first
            }
            // Whether it lives is not known. If it does not, the next try is told so.
            Class::TokenGone => {
                desk.put(self.seat, session);
                false
            }
            // An operation may be left active in it.
            _ => {
                desk.discard(session);
                false
            }
        }
    }
}

/// Looks through the sessions of a token, while nobody is inside if that can be had.
pub(super) fn muster(shared: &Shared) {
    let alone = shared.module.gate.close(MUSTER_LIMIT);
    if alone.is_none() {
        tracing::warn!(hsm = %shared.config.name, "sessions are given up: a thread does not come back");
    }
    shared.desk.muster(alone.as_ref(), *lock(&shared.slot));
}

/// A new session, logged in. Handles are found anew when the login had been lost, or when they were refused
/// and no other thread has done it since.
pub(super) fn renew(shared: &Shared, handles_lost: bool) -> Result<OpenSession, Fault> {
    let generation = shared.keyring.generation();
    let _one = lock(&shared.renewing);
    let slot = shared.slot()?;
    let epoch = shared.desk.epoch();
    let may_write = shared.config.read_write_sessions;
    let session = OpenSession::open(&shared.module, slot, may_write, epoch)?;
    let logged_in = shared.login.ensure(&shared.module, slot, &session)?;
    let untouched = shared.keyring.generation() == generation;
    if logged_in || (handles_lost && untouched) {
        shared.keyring.doubt();
        shared.keyring.replace(enumerate(&session)?);
    }
    Ok(session)
}
