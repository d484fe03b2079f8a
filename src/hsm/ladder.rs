//! The first rungs of the recovery ladder: what an HSM thread does about an error by itself. What happened
//! before is harmless: nothing that a failed try gave has left this room.

use crate::core::id::KeyId;
use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, counts_in_the_end, describe, explained, unavailable};
use crate::hsm::lock;
use crate::hsm::module::OpenSession;
use crate::hsm::object::enumerate;
use crate::hsm::worker::{Shared, Worker, prove_key};
use crate::ports::signer::SignerError;
use cryptoki::error::Error;
use cryptoki::slot::Slot;
use std::sync::Arc;
use std::time::Duration;

/// How long a job waits while the module is restarted for another token.
const GATE_LIMIT: Duration = Duration::from_secs(10);
/// How long it is waited for the other threads to come out, before sessions are looked through.
pub(super) const MUSTER_LIMIT: Duration = Duration::from_secs(1);
/// How often another key is asked to prove itself, before the token is given up for what one key met.
const PROOFS: usize = 2;
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
        self.attempt_for(None, job)
    }

    /// As [`Self::attempt`], for a key.
    pub(super) fn attempt_for<T>(
        &mut self,
        key: Option<KeyId>,
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
            let counts = class.counts_each() || (is_last && counts_in_the_end(&error));
            let too_much = counts && shared.standing.troubled();
            if is_last || too_much {
                let is_gone = too_much && !self.another_proves(key);
                return Err(self.give_up(&error, is_gone));
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
        let shared = Arc::clone(&self.shared);
        match self.try_once(false, &job)? {
            Try::Done(done) => Ok(done),
            Try::Refused(error) => Err(error),
            Try::Failed(error) => {
                let is_gone = match class(&error) {
                    // The token may have no room for what was to be made; what is there can sign.
                    Class::Resources => false,
                    _ => counts_in_the_end(&error) && shared.standing.troubled(),
                };
                Err(self.give_up(&error, is_gone))
            }
        }
    }

    /// Whether another key than the one that fails signs: then the token is well, and that key is not.
    fn another_proves(&mut self, key: Option<KeyId>) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(other) = shared.keyring.some(1, key).pop() else { return false };
        let proves = (0..PROOFS).any(|_| {
            let proved = self.try_once(false, |shared: &Shared, session: &OpenSession| {
                prove_key(shared, session, &other)
            });
            matches!(proved, Ok(Try::Done(())))
        });
        if proves {
            shared.standing.worked();
            let hsm = &shared.config.name;
            tracing::error!(%hsm, ?key, other = %other.0, "a key fails again and again, and another signs");
        }
        proves
    }

    /// The job has failed for good.
    fn give_up(&self, error: &Error, is_gone: bool) -> SignerError {
        let (shared, class) = (&self.shared, class(error));
        tracing::error!(hsm = %shared.config.name, error = explained(error), "the HSM failed");
        metrics::counter!("claviger_hsm_failures_total", "class" => class.name()).increment(1);
        match class {
            Class::TokenGone | Class::ModuleGone => {
                shared.standing.fell(&describe(error), class == Class::ModuleGone);
            }
            _ if is_gone => shared.standing.fell(&describe(error), false),
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
        let step = || shared.watch.begin(self.seat);
        step();
        let session = match shared.desk.take(self.seat) {
            Some(session) if !handles_lost => Ok(session),
            kept => {
                shared.desk.discard_any(kept);
                renew(&shared, handles_lost, &step)
            }
        };
        let (outcome, session) = match session {
            Ok(session) => (job(&shared, &session), Some(session)),
            Err(fault) => (Err(fault), None),
        };
        let (tried, is_lost) = self.settle(outcome, session);
        drop(pass);
        if is_lost {
            step();
            muster(&shared);
        }
        // Not before: closing a session and looking through the others are calls that may hang as well.
        if !shared.watch.end(self.seat) {
            // Its caller was told long ago that nothing came. Whatever came now must not count.
            self.is_replaced = true;
            return Err(SignerError::Unavailable("the HSM has not answered in time".to_owned()));
        }
        Ok(tried)
    }

    /// Puts the session back, or away. Answers whether the others must be looked through too.
    fn settle<T>(&self, outcome: Result<T, Fault>, session: Option<OpenSession>) -> (Try<T>, bool) {
        let Shared { desk, standing, .. } = &*self.shared;
        match outcome {
            Ok(done) => {
                desk.put_any(self.seat, session);
                (Try::Done(done), false)
            }
            // Perhaps the handle means another key by now: nothing of this session is used again.
            Err(Fault::Refused(SignerError::WrongSignature)) => {
                desk.discard_any(session);
                (Try::Refused(SignerError::WrongSignature), false)
            }
            Err(Fault::Refused(error)) => {
                desk.put_any(self.seat, session);
                if let SignerError::Condemned(why) = &error {
                    standing.condemn(why);
                }
                (Try::Refused(error), false)
            }
            Err(Fault::Module(error)) => {
                let is_lost = self.lay_down(session, class(&error));
                (Try::Failed(error), is_lost)
            }
        }
    }

    /// Gives up its session, inside the module: another thread has its place.
    pub(super) fn leave(&self) {
        let shared = &self.shared;
        if let Some(_pass) = shared.module.gate.enter(GATE_LIMIT) {
            shared.desk.discard_any(shared.desk.take(self.seat));
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
/// and no other thread has done it since. `step` tells the watch that one call has come back.
pub(super) fn renew(
    shared: &Shared,
    handles_lost: bool,
    step: &dyn Fn(),
) -> Result<OpenSession, Fault> {
    let slot = shared.slot()?;
    let renewed = renew_in(shared, slot, handles_lost, step);
    if let Err(Fault::Module(error)) = &renewed
        && class(error) == Class::TokenGone
    {
        // It may be in another one: after a restart of the module, or of its device.
        *lock(&shared.slot) = None;
    }
    renewed
}

fn renew_in(
    shared: &Shared,
    slot: Slot,
    handles_lost: bool,
    step: &dyn Fn(),
) -> Result<OpenSession, Fault> {
    let generation = shared.keyring.generation();
    let epoch = shared.desk.epoch();
    let may_write = shared.config.read_write_sessions;
    let session = OpenSession::open(&shared.module, slot, may_write, epoch)?;
    shared.desk.only(&session);
    step();
    // One login and one enumeration for all that wait, and nobody waits so long that it looks stalled itself.
    let limit = shared.config.limits.stalled.mul_f32(0.8);
    let Some(_one) = shared.renewing.close(limit) else {
        let why = "another thread logs in, or finds all keys again";
        if shared.watch.has_stalled() || shared.probing.has_stalled() {
            shared.standing.fell("a thread does not come back from its login", false);
        }
        return Err(Fault::Refused(SignerError::Unavailable(why.to_owned())));
    };
    step();
    let logged_in = shared.login.ensure(&shared.module, slot, &session)?;
    let untouched = shared.keyring.generation() == generation;
    if logged_in || (handles_lost && untouched) {
        shared.keyring.doubt();
        shared.keyring.replace(enumerate(&session, step)?);
    }
    step();
    Ok(session)
}
