//! What is done about a token that is down: probes, and at the end of the ladder a new start of the module.
//! One thread for each token, so that a probe which does not come back keeps no other token waiting.

use crate::hsm::condition::Rung;
use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe};
use crate::hsm::ladder::{muster, renew};
use crate::hsm::lock;
use crate::hsm::module::{OpenSession, Restart};
use crate::hsm::object::enumerate;
use crate::hsm::worker::{Shared, prove};
use crate::ports::signer::SignerError;
use crossbeam_channel::Sender;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long the last rung waits for the threads inside the module to come out.
const RESTART_LIMIT: Duration = Duration::from_secs(2);
/// How many keys prove themselves before a token counts as up again; the others are checked at their next use.
const PROOFS: usize = 3;

/// Works until the token's line ends.
pub(super) fn run(shared: &Arc<Shared>, _running: &Sender<Infallible>) {
    let mut last_stuck = None;
    while let Some(rung) = shared.standing.next() {
        let life = shared.module.life();
        let outcome = match rung {
            Rung::Probe => probe(shared),
            Rung::Restart => restart(shared, life, &mut last_stuck).and_then(|()| probe(shared)),
        };
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
fn probe(shared: &Arc<Shared>) -> Result<(), Fault> {
    let refuse = |why: &str| Err(Fault::Refused(SignerError::Unavailable(why.to_owned())));
    if !shared.watch.has_free() {
        return refuse("no HSM thread comes back");
    }
    if shared.desk.has_any() {
        muster(shared);
    }
    let Some(_pass) = shared.module.gate.enter(RESTART_LIMIT) else {
        return refuse("the module is being restarted");
    };
    *lock(&shared.slot) = Some(shared.module.slot_of(&shared.config.token_label)?);
    let session = renew(shared, false)?;
    shared.keyring.doubt();
    shared.keyring.replace(enumerate(&session)?);
    prove_some(shared, &session)?;
    fill(shared, session)
}

/// Some keys prove themselves. One that is not as it was pinned is an alarm at its next use, and keeps no
/// other from signing; a wrong signature says that the token is not right.
fn prove_some(shared: &Shared, session: &OpenSession) -> Result<(), Fault> {
    for (key, cka_id, public_key) in shared.keyring.some(PROOFS) {
        let proved = shared
            .keyring
            .usable(session, key, &public_key)
            .and_then(|handle| prove(session, handle, &cka_id, &public_key));
        match proved {
            Ok(()) => {}
            Err(Fault::Refused(error @ SignerError::KeyUnusable(_))) => {
                tracing::error!(hsm = %shared.config.name, %key, %error, "the key may not sign");
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

/// The login lasts as long as a session of the token is open: all workers get theirs now.
fn fill(shared: &Shared, session: OpenSession) -> Result<(), Fault> {
    let seats = shared.config.sessions;
    shared.desk.fill(seats, session);
    while !shared.desk.is_full(seats) {
        shared.desk.fill(seats, renew(shared, false)?);
    }
    Ok(())
}
