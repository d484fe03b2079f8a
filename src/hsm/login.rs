//! The login of this process in a token.

use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe};
use crate::hsm::gate::Gate;
use crate::hsm::lock;
use crate::hsm::module::Module;
use crate::ports::signer::SignerError;
use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use secrecy::SecretString;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a login waits for another token's with the same PIN.
const TURN_LIMIT: Duration = Duration::from_secs(1);
/// So many logins in a row may fail for reasons that may be the PIN.
const DOUBTS_MAX: u32 = 3;

/// Whether the user is logged in, as this session sees it (section 5.6.4).
pub(super) fn is_logged_in(session: &Session) -> Result<bool, Error> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
}

/// The PIN of one file, for all tokens that share the file: one that a token has refused is sent to none of
/// them again.
pub(super) struct Secret {
    pin: Mutex<Pin>,
    /// Closed by whoever sends it: of two tokens with one wrong PIN the second must know of the first.
    turn: Gate,
}

enum Pin {
    Ready(SecretString),
    Condemned(String),
}

impl Secret {
    pub(super) fn new(pin: SecretString) -> Self {
        Self { pin: Mutex::new(Pin::Ready(pin)), turn: Gate::default() }
    }
}

/// The login belongs to the application, not to a session (PKCS#11 v3.1, section 5.6.8), and ends with the
/// last session. The PIN is kept for the next login only, and forgotten once a token has refused it.
pub(super) struct Login {
    secret: Arc<Secret>,
    /// The label of the one token that gets the PIN.
    label: String,
    /// What this token has against the PIN, though it may be right for others.
    refused: Mutex<Option<String>>,
    /// How many logins in a row failed for reasons that may be the PIN.
    doubts: AtomicU32,
}

/// What an error of `C_Login` says about the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The token has not looked at it.
    Unseen,
    /// It is not sent again.
    Refused,
    /// Some modules say so of a wrong one: not often.
    Doubtful,
}

/// Modules differ in what they say of a wrong PIN: `CKR_ARGUMENTS_BAD` for one of a wrong length, a handle
/// that is invalid for a user that does not exist, `CKR_GENERAL_ERROR` for anything.
const fn verdict(error: &Error) -> Verdict {
    match class(error) {
        Class::TokenGone | Class::SessionLost | Class::ModuleGone | Class::AlreadyDone => {
            Verdict::Unseen
        }
        Class::PinCondemned | Class::OurFault | Class::HandlesLost | Class::Unsupported => {
            Verdict::Refused
        }
        Class::LoginLost
        | Class::SessionSpoiled
        | Class::Resources
        | Class::Trouble
        | Class::Vendor => Verdict::Doubtful,
    }
}

/// Whether the token may have counted this as a wrong PIN. A start ends by it: each next one would send the
/// PIN once more.
pub(super) const fn may_be_the_pin(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(_, Function::Login)) && !matches!(verdict(error), Verdict::Unseen)
}

impl Login {
    pub(super) const fn new(secret: Arc<Secret>, label: String) -> Self {
        Self { secret, label, refused: Mutex::new(None), doubts: AtomicU32::new(0) }
    }

    /// Logs in unless that is already so; answers whether it was needed. A PIN that a token once refused is
    /// never sent again: the next wrong one may lock the token. For the same reason it is not sent at all
    /// when the token says that one try is left, nor to another token than the configured one, nor more than
    /// three times in a row when the token says something else about it.
    pub(super) fn ensure(
        &self,
        module: &Module,
        slot: Slot,
        session: &Session,
    ) -> Result<bool, Fault> {
        let token = module.pkcs11().get_token_info(slot)?;
        if token.label() != self.label {
            // After a restart of the module a slot may have another token.
            return Err(Error::Pkcs11(RvError::SlotIdInvalid, Function::GetTokenInfo).into());
        }
        if is_logged_in(session)? {
            return Ok(false);
        }
        let condemned = |why: &str| Err(Fault::Refused(SignerError::Condemned(why.to_owned())));
        if let Some(why) = &*lock(&self.refused) {
            return condemned(why);
        }
        // A login of another token that hangs must not keep this one out.
        let _turn = self.secret.turn.close(TURN_LIMIT);
        let secret = match &*lock(&self.secret.pin) {
            Pin::Ready(secret) => secret.clone(),
            Pin::Condemned(why) => return condemned(why),
        };
        let (refusal, is_wrong) = if token.user_pin_locked() {
            ("CKF_USER_PIN_LOCKED: the token's user PIN is locked".to_owned(), false)
        } else if token.user_pin_final_try() {
            let left = "CKF_USER_PIN_FINAL_TRY: one try is left before the token locks its user PIN, \
                        and it is left to a person";
            (left.to_owned(), false)
        } else {
            let Err(error) = session.login(UserType::User, Some(&secret)) else {
                metrics::counter!("claviger_hsm_logins_total", "outcome" => "ok").increment(1);
                self.doubts.store(0, Ordering::Relaxed);
                return Ok(true);
            };
            let is_low = || {
                let now = module.pkcs11().get_token_info(slot);
                !token.user_pin_count_low() && now.is_ok_and(|now| now.user_pin_count_low())
            };
            match verdict(&error) {
                Verdict::Unseen if class(&error) == Class::AlreadyDone => return Ok(false),
                Verdict::Unseen => return Err(error.into()),
                Verdict::Doubtful if !is_low() && !self.is_last_doubt() => {
                    return Err(error.into());
                }
                Verdict::Doubtful | Verdict::Refused => {}
            }
            metrics::counter!("claviger_hsm_logins_total", "outcome" => "refused").increment(1);
            (describe(&error), is_wrong(&error))
        };
        let why = format!("{refusal}; this process will not try that PIN again");
        tracing::error!(reason = why, "the login was refused");
        *lock(&self.refused) = Some(why.clone());
        if is_wrong {
            *lock(&self.secret.pin) = Pin::Condemned(why.clone());
        }
        condemned(&why)
    }

    fn is_last_doubt(&self) -> bool {
        self.doubts.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= DOUBTS_MAX
    }
}

/// Whether the PIN itself is wrong, and not only what this token thinks of its age or of earlier tries.
const fn is_wrong(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_says_of_a_pin_is_told_from_a_token_that_is_gone() {
        let said = |value| verdict(&Error::Pkcs11(value, Function::Login));
        for value in [
            RvError::PinIncorrect,
            RvError::PinLocked,
            RvError::ArgumentsBad,
            RvError::ObjectHandleInvalid,
            RvError::FunctionNotSupported,
        ] {
            assert_eq!(said(value), Verdict::Refused, "{value:?}");
        }
        for value in [
            RvError::GeneralError,
            RvError::FunctionFailed,
            RvError::FunctionRejected,
            RvError::VendorDefined(0x8000_0001),
            RvError::HostMemory,
        ] {
            assert_eq!(said(value), Verdict::Doubtful, "{value:?}");
        }
        for value in [
            RvError::DeviceError,
            RvError::DeviceRemoved,
            RvError::SessionHandleInvalid,
            RvError::CryptokiNotInitialized,
        ] {
            assert_eq!(said(value), Verdict::Unseen, "{value:?}");
            assert!(!may_be_the_pin(&Error::Pkcs11(value, Function::Login)));
        }
        assert!(may_be_the_pin(&Error::Pkcs11(RvError::GeneralError, Function::Login)));
        assert!(!may_be_the_pin(&Error::Pkcs11(RvError::GeneralError, Function::OpenSession)));
    }
}
