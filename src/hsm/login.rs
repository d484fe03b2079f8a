//! The login of this process in a token.

use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe};
use crate::hsm::lock;
use crate::hsm::module::Module;
use crate::ports::signer::SignerError;
use cryptoki::error::Error;
use cryptoki::error::RvError;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use secrecy::SecretString;
use std::sync::{Arc, Mutex};

/// Whether the user is logged in, as this session sees it (section 5.6.4).
pub(super) fn is_logged_in(session: &Session) -> Result<bool, Error> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
}

/// The PIN of one file, for all tokens that share the file: one that a token has refused is sent to none of
/// them again.
pub(super) struct Secret(Mutex<Pin>);

enum Pin {
    Ready(SecretString),
    Condemned(String),
}

impl Secret {
    pub(super) const fn new(pin: SecretString) -> Self {
        Self(Mutex::new(Pin::Ready(pin)))
    }
}

/// The login belongs to the application, not to a session (PKCS#11 v3.1, section 5.6.8), and ends with the
/// last session. The PIN is kept for the next login only, and forgotten once a token has refused it.
pub(super) struct Login {
    secret: Arc<Secret>,
    /// What this token has against the PIN, though it may be right for others.
    refused: Mutex<Option<String>>,
}

impl Login {
    pub(super) const fn new(secret: Arc<Secret>) -> Self {
        Self { secret, refused: Mutex::new(None) }
    }

    /// Logs in unless that is already so; answers whether it was needed. A PIN that a token once refused is
    /// never sent again: the next wrong one may lock the token. For the same reason it is not sent at all
    /// when the token says that one try is left.
    pub(super) fn ensure(
        &self,
        module: &Module,
        slot: Slot,
        session: &Session,
    ) -> Result<bool, Fault> {
        // Held over the call: of two threads with one wrong PIN the second must know of the first.
        let mut pin = lock(&self.secret.0);
        let condemned = |why: &str| Err(Fault::Refused(SignerError::Condemned(why.to_owned())));
        if is_logged_in(session)? {
            return Ok(false);
        }
        if let Some(why) = &*lock(&self.refused) {
            return condemned(why);
        }
        let secret = match &*pin {
            Pin::Ready(secret) => secret,
            Pin::Condemned(why) => return condemned(why),
        };
        let token = module.pkcs11().get_token_info(slot)?;
        let (refusal, is_wrong) = if token.user_pin_locked() {
            ("CKF_USER_PIN_LOCKED: the token's user PIN is locked".to_owned(), false)
        } else if token.user_pin_final_try() {
            let left = "CKF_USER_PIN_FINAL_TRY: one try is left before the token locks its user PIN, \
                        and it is left to a person";
            (left.to_owned(), false)
        } else {
            match session.login(UserType::User, Some(secret)) {
                Ok(()) => {
                    metrics::counter!("claviger_hsm_logins_total", "outcome" => "ok").increment(1);
                    return Ok(true);
                }
                Err(error) if class(&error) == Class::AlreadyDone => return Ok(false),
                Err(error) if class(&error) == Class::PinCondemned => {
                    metrics::counter!("claviger_hsm_logins_total", "outcome" => "refused")
                        .increment(1);
                    (describe(&error), is_wrong(&error))
                }
                Err(error) => return Err(error.into()),
            }
        };
        let why = format!("{refusal}; this process will not try that PIN again");
        tracing::error!(reason = why, "the login was refused");
        *lock(&self.refused) = Some(why.clone());
        if is_wrong {
            *pin = Pin::Condemned(why.clone());
        }
        condemned(&why)
    }
}

/// Whether the PIN itself is wrong, and not only what this token thinks of its age or of earlier tries.
const fn is_wrong(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)
    )
}
