//! What is done about a token that is down: probes, and at the end of the ladder a new start of the module.
//! One thread for each token, so that a probe which does not come back keeps no other token waiting.

use crate::hsm::condition::Rung;
use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe};
use crate::hsm::ladder::{muster, renew};
use crate::hsm::lock;
use crate::hsm::module::{OpenSession, Restart};
use crate::hsm::object::enumerate;
use crate::hsm::worker::{Shared, prove_key};
use crate::ports::signer::{HsmNews, SignerError};
use crossbeam_channel::Sender;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long the last rung waits for the threads inside the module to come out.
const RESTART_LIMIT: Duration = Duration::from_secs(2);
/// How many keys prove themselves before a token counts as up again; the others are checked at their next use.
const PROOFS: usize = 3;

/// The cell of a thread that probes.
struct Seat<'a> {
    shared: &'a Shared,
    number: usize,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.shared.probing.gone(self.number);
    }
}

/// Works until the token's line ends, or another thread has taken the place of this one.
pub(super) fn run(shared: &Arc<Shared>, number: usize, _running: &Sender<Infallible>) {
    let _seat = Seat { shared, number };
    let step = || shared.probing.begin(number);
    let mut last_stuck = None;
    while let Some(rung) = shared.standing.next() {
        step();
        let life = shared.module.life();
        let outcome = match rung {
            Rung::Probe => probe(shared, &step),
            Rung::Restart => {
                restart(shared, life, &mut last_stuck).and_then(|()| probe(shared, &step))
            }
        };
        if !shared.probing.end(number) {
            return;
        }
        let hsm = &shared.config.name;
        match outcome {
            Ok(()) => shared.standing.rose(rung),
            Err(Fault::Refused(SignerError::Condemned(why))) => shared.standing.condemn(&why),
            Err(Fault::Refused(error)) => {
                tracing::warn!(%hsm, rung = rung.name(), %error, "the HSM is still down");
                shared.standing.failed(&error.to_string(), false);
            }
            Err(Fault::Module(error)) => {
                let told = describe(&error);
                tracing::warn!(%hsm, rung = rung.name(), error = told, "the HSM is still down");
                shared.standing.failed(&told, class(&error) == Class::ModuleGone);
            }
        }
    }
}

/// Finalises and initialises the module, for all its tokens.
fn restart(shared: &Shared, life: u64, last_stuck: &mut Option<u64>) -> Result<(), Fault> {
    let hsm = &shared.config.name;
    match shared.module.restart(life, RESTART_LIMIT)? {
        Restart::Done => tracing::warn!(%hsm, "the module was finalised and initialised"),
        Restart::Before => {}
        Restart::Occupied => {
            if last_stuck.replace(life) != Some(life) {
                tracing::error!(
                    %hsm,
                    "the module cannot be restarted: a thread does not come back from it"
                );
            }
        }
    }
    Ok(())
}

/// Looks whether the token is back, and makes all ready for the workers if so.
fn probe(shared: &Arc<Shared>, step: &dyn Fn()) -> Result<(), Fault> {
    let refuse = |why: &str| Err(Fault::Refused(SignerError::Unavailable(why.to_owned())));
    if !shared.watch.has_free() {
        return refuse("no HSM thread comes back");
    }
    step();
    if shared.desk.has_any() {
        muster(shared);
    }
    let Some(_pass) = shared.module.gate.enter(RESTART_LIMIT) else {
        return refuse("the module is being restarted");
    };
    step();
    *lock(&shared.slot) = Some(shared.module.slot_of(&shared.config.token_label)?);
    step();
    let session = renew(shared, false, step)?;
    shared.keyring.doubt();
    shared.keyring.replace(enumerate(&session, step)?);
    prove_some(shared, &session, step)?;
    fill(shared, session, step);
    Ok(())
}

/// Some keys prove themselves. If none does, the token is not right; one that does not keeps no other from
/// signing, and signs no more itself if its signature was wrong.
fn prove_some(shared: &Shared, session: &OpenSession, step: &dyn Fn()) -> Result<(), Fault> {
    let (mut proved, mut first, mut wrong) = (false, None, Vec::new());
    for key in shared.keyring.some(PROOFS, None) {
        step();
        let hsm = &shared.config.name;
        let fault = match prove_key(shared, session, &key) {
            Ok(()) => {
                proved = true;
                continue;
            }
            Err(fault) => fault,
        };
        match &fault {
            Fault::Module(error) => {
                let is_gone = [Class::TokenGone, Class::ModuleGone, Class::SessionLost];
                if is_gone.contains(&class(error)) {
                    return Err(fault);
                }
                tracing::error!(%hsm, key = %key.0, error = describe(error), "a key does not sign");
            }
            Fault::Refused(error) => {
                tracing::error!(%hsm, key = %key.0, %error, "the key may not sign");
                if matches!(error, SignerError::WrongSignature) {
                    wrong.push(key.0);
                }
            }
        }
        first.get_or_insert(fault);
    }
    for key in wrong {
        shared.standing.alarm(HsmNews::WrongSignature { key, request: None });
        if proved {
            shared.keyring.withdraw(key);
        }
    }
    match first {
        Some(Fault::Refused(error)) if !proved => Err(Fault::Refused(SignerError::Unavailable(
            format!("none of its keys proves itself: {error}"),
        ))),
        Some(fault) if !proved => Err(fault),
        _ => Ok(()),
    }
}

/// The login lasts as long as a session of the token is open, and one is. The workers get theirs now if that
/// can be had.
fn fill(shared: &Shared, session: OpenSession, step: &dyn Fn()) {
    let seats = shared.config.sessions;
    shared.desk.fill(seats, session);
    while !shared.desk.is_full(seats) {
        match renew(shared, false, step) {
            Ok(session) => shared.desk.fill(seats, session),
            Err(fault) => {
                let (hsm, error) = (&shared.config.name, SignerError::from(fault));
                tracing::warn!(%hsm, %error, "the HSM has fewer sessions than are configured");
                return;
            }
        }
    }
}
