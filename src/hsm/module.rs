//! The PKCS#11 module in this process, its tokens, and the login that all sessions share.

use crate::hsm::fault::{condemns_pin, describe, return_value, unavailable};
use crate::hsm::lock;
use crate::hsm::unwrapped::Unwrapped;
use crate::ports::signer::SignerError;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use secrecy::SecretString;
use std::cell::{RefCell, RefMut};
use std::ops::Deref;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// How often `C_Initialize` is tried, and how long the first pause is; each next one is twice as long.
/// Two processes that start together on one token can make one of them fail.
const START_TRIES: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(50);

/// An initialised module. Finalised when dropped, so it must outlive its sessions: whoever has
/// sessions holds this too, and drops it after them.
pub(super) struct Module {
    pkcs11: Pkcs11,
}

impl Module {
    /// Loads and initialises it (PKCS#11 v3.1, section 5.4.1), with the system's locks.
    pub(super) fn start(path: &Path) -> Result<Self, SignerError> {
        let pkcs11 = Pkcs11::new(path).map_err(|error| {
            let (path, error) = (path.display(), describe(&error));
            SignerError::Unavailable(format!("the PKCS#11 module {path} does not load: {error}"))
        })?;
        let mut pause = START_PAUSE;
        for _ in 1..START_TRIES {
            match initialize(&pkcs11) {
                Ok(()) => return Ok(Self { pkcs11 }),
                Err(error) if return_value(&error) == Some(RvError::GeneralError) => {
                    tracing::warn!(error = describe(&error), "the module did not start, again");
                }
                Err(error) => return Err(unavailable(&error)),
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2);
        }
        initialize(&pkcs11).map_err(|error| unavailable(&error))?;
        Ok(Self { pkcs11 })
    }

    /// The binding, for calls that need no session.
    pub(super) const fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// The slots whose token can be read, with what it says about itself (sections 5.5.1, 5.5.3).
    pub(super) fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, SignerError> {
        let slots = self.pkcs11.get_slots_with_token().map_err(|error| unavailable(&error))?;
        let read = |slot| Some((slot, self.pkcs11.get_token_info(slot).ok()?));
        Ok(slots.into_iter().filter_map(read).collect())
    }

    /// The slot of the one initialised token with this label.
    pub(super) fn slot_of(&self, label: &str) -> Result<Slot, SignerError> {
        let named = |token: &TokenInfo| token.token_initialized() && token.label() == label;
        let mut slots = self.tokens()?.into_iter().filter(|(_, token)| named(token));
        match (slots.next(), slots.next()) {
            (Some((slot, _)), None) => Ok(slot),
            (None, _) => Err(SignerError::Unavailable(format!("no token is labelled {label:?}"))),
            (Some(_), Some(_)) => {
                Err(SignerError::Unavailable(format!("more than one token is labelled {label:?}")))
            }
        }
    }

    /// A session that cannot change the token (section 5.6.1).
    pub(super) fn open(&self, slot: Slot) -> Result<OpenSession, Error> {
        self.pkcs11.open_ro_session(slot).map(OpenSession::new)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Err(error) = self.pkcs11.clone().finalize() {
            tracing::warn!(error = describe(&error), "the module did not end cleanly");
        }
    }
}

fn initialize(pkcs11: &Pkcs11) -> Result<(), Error> {
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
}

/// A session that is counted as long as it is open, with the keys that were unwrapped into it.
pub(super) struct OpenSession(Session, RefCell<Unwrapped>);

impl OpenSession {
    fn new(session: Session) -> Self {
        metrics::gauge!("claviger_hsm_sessions").increment(1.0);
        Self(session, RefCell::default())
    }

    pub(super) const fn get(&self) -> &Session {
        &self.0
    }

    /// The keys that were unwrapped into it, if nobody uses them now.
    pub(super) fn unwrapped(&self) -> Option<RefMut<'_, Unwrapped>> {
        self.1.try_borrow_mut().ok()
    }
}

impl Deref for OpenSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.get()
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        metrics::gauge!("claviger_hsm_sessions").decrement(1.0);
    }
}

/// Whether the user is logged in, as this session sees it (section 5.6.4).
pub(super) fn is_logged_in(session: &Session) -> Result<bool, Error> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
}

/// The login of this process. It belongs to the application, not to a session (PKCS#11 v3.1, section
/// 5.6.8), and ends with the last session. The PIN is kept for the next login only, and forgotten
/// once the token has refused it.
pub(super) struct Login(Mutex<Pin>);

enum Pin {
    Ready(SecretString),
    Condemned(String),
}

impl Login {
    pub(super) const fn new(pin: SecretString) -> Self {
        Self(Mutex::new(Pin::Ready(pin)))
    }

    /// Logs in unless that is already so; answers whether it was needed. A PIN that the token once
    /// refused is never sent again: the next wrong one may lock the token. For the same reason it is
    /// not sent at all when the token says that one try is left.
    pub(super) fn ensure(
        &self,
        module: &Module,
        slot: Slot,
        session: &Session,
    ) -> Result<bool, SignerError> {
        let mut pin = lock(&self.0);
        let secret = match &*pin {
            Pin::Ready(secret) => secret,
            Pin::Condemned(why) => return Err(SignerError::Unavailable(why.clone())),
        };
        if is_logged_in(session).map_err(|error| unavailable(&error))? {
            return Ok(false);
        }
        let token = module.pkcs11.get_token_info(slot).map_err(|error| unavailable(&error))?;
        let refusal = if token.user_pin_locked() {
            "CKF_USER_PIN_LOCKED: the token's user PIN is locked".to_owned()
        } else if token.user_pin_final_try() {
            "CKF_USER_PIN_FINAL_TRY: one try is left before the token locks its user PIN, and it is \
             left to a person"
                .to_owned()
        } else {
            match session.login(UserType::User, Some(secret)) {
                Ok(()) => {
                    metrics::counter!("claviger_hsm_logins_total", "outcome" => "ok").increment(1);
                    return Ok(true);
                }
                Err(error) if return_value(&error) == Some(RvError::UserAlreadyLoggedIn) => {
                    return Ok(false);
                }
                Err(error) if condemns_pin(&error) => {
                    metrics::counter!("claviger_hsm_logins_total", "outcome" => "refused")
                        .increment(1);
                    describe(&error)
                }
                Err(error) => return Err(unavailable(&error)),
            }
        };
        let why = format!("{refusal}; this process will not try that PIN again");
        tracing::error!(reason = why, "the login was refused");
        *pin = Pin::Condemned(why.clone());
        Err(SignerError::Unavailable(why))
    }
}
