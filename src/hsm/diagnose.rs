//! What is wrong with a token's set-up, step by step, for `doctor`: the first thing that is, and what to do.
//!
//! The PIN is sent once at most, and never where the token says that the next wrong one locks it.

use crate::hsm::HsmConfig;
use crate::hsm::errors::Class;
use crate::hsm::fault::{class, describe, return_value};
use crate::hsm::pin::read_pin;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::UserType;
use cryptoki::slot::{Slot, TokenInfo};
use std::path::Path;

/// A fault, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

fn diagnosis(what: impl Into<String>, advice: impl Into<String>) -> Diagnosis {
    Diagnosis { what: what.into(), advice: advice.into() }
}

/// Whether the PIN file can be used. The module is not touched.
///
/// # Errors
/// What is wrong with it.
pub fn diagnose_pin_file(path: &Path) -> Result<(), Diagnosis> {
    let told = match read_pin(path) {
        Ok(_) => return Ok(()),
        Err(error) => error.to_string(),
    };
    let advice = if !path.exists() {
        "write the user PIN into it, mode 600, owned by the server's account; or put `pin_file` right"
    } else if told.contains("has mode") {
        "change the PIN too: others could read it"
    } else {
        "it must hold the PIN and at most one line end, and be readable by the server's account alone"
    };
    Err(diagnosis(told.trim_start_matches("the HSM is not available: "), advice))
}

/// Loads the module, finds the token, logs in, and ends the module again. Blocks. The module must not be in
/// use in this process.
///
/// # Errors
/// The first thing that is wrong.
pub fn diagnose(config: &HsmConfig) -> Result<(), Diagnosis> {
    let pkcs11 = load(&config.module)?;
    let outcome = with_module(&pkcs11, config);
    let _ = pkcs11.finalize();
    outcome
}

fn load(path: &Path) -> Result<Pkcs11, Diagnosis> {
    let shown = path.display();
    if !path.exists() {
        return Err(diagnosis(
            format!("there is no PKCS#11 module at {shown}"),
            "install the HSM's client software, or put `module` right",
        ));
    }
    let pkcs11 = Pkcs11::new(path).map_err(|error| {
        diagnosis(
            format!("{shown} is not a PKCS#11 module: {}", describe(&error)),
            "put `module` right: it must be the vendor's shared library for this machine's architecture",
        )
    })?;
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    match pkcs11.initialize(arguments) {
        Ok(()) => Ok(pkcs11),
        Err(error) => Err(diagnosis(
            format!("the module {shown} does not start: {}", describe(&error)),
            "look at the module's own configuration and log (its address, its certificates, its environment \
             variables), and whether its daemon runs",
        )),
    }
}

fn with_module(pkcs11: &Pkcs11, config: &HsmConfig) -> Result<(), Diagnosis> {
    let (slot, token) = find(pkcs11, config)?;
    if token.user_pin_locked() {
        return Err(diagnosis(
            format!(
                "the user PIN of {:?} is locked (CKF_USER_PIN_LOCKED); it was not tried",
                config.token_label
            ),
            "the security officer has to set a new one; find out who tried wrong ones",
        ));
    }
    if token.user_pin_final_try() {
        return Err(diagnosis(
            format!(
                "one try is left before {:?} locks its user PIN (CKF_USER_PIN_FINAL_TRY); it was not used",
                config.token_label
            ),
            "make sure of the PIN, and log in once with the vendor's tool: that clears it",
        ));
    }
    log_in(pkcs11, slot, config)
}

fn find(pkcs11: &Pkcs11, config: &HsmConfig) -> Result<(Slot, TokenInfo), Diagnosis> {
    let slots = pkcs11.get_slots_with_token().map_err(|error| {
        diagnosis(
            format!("the module lists no tokens: {}", describe(&error)),
            "look whether the device is connected and its network is up",
        )
    })?;
    let read = |slot: Slot| Some((slot, pkcs11.get_token_info(slot).ok()?));
    let all: Vec<_> = slots.into_iter().filter_map(read).collect();
    let labels: Vec<String> = all
        .iter()
        .filter(|(_, token)| token.token_initialized())
        .map(|(_, token)| format!("{:?}", token.label()))
        .collect();
    let mut ours = all
        .into_iter()
        .filter(|(_, token)| token.token_initialized() && token.label() == config.token_label);
    match (ours.next(), ours.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(diagnosis(
            format!("more than one token is labelled {:?}", config.token_label),
            "give each token a label of its own",
        )),
        (None, _) if labels.is_empty() => Err(diagnosis(
            format!("no token is labelled {:?}: the module has none at all", config.token_label),
            "look whether the device is connected, and whether the module reads the right configuration \
             (for SoftHSM, `softhsm_conf`)",
        )),
        (None, _) => Err(diagnosis(
            format!(
                "no token is labelled {:?}; there are {}",
                config.token_label,
                labels.join(", ")
            ),
            "put `token_label` right, or look whether the device is connected",
        )),
    }
}

fn log_in(pkcs11: &Pkcs11, slot: Slot, config: &HsmConfig) -> Result<(), Diagnosis> {
    let pin = read_pin(&config.pin_file)
        .map_err(|error| diagnosis(error.to_string(), "see the line of the PIN file"))?;
    let session = pkcs11.open_ro_session(slot).map_err(|error| {
        diagnosis(
            format!("the token opens no session: {}", describe(&error)),
            "see whether others hold all its sessions, and how many the device has",
        )
    })?;
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) => Ok(()),
        Err(error) => Err(refused(&error, &config.pin_file)),
    }
}

fn refused(error: &Error, pin_file: &Path) -> Diagnosis {
    let told = describe(error);
    match return_value(error) {
        Some(RvError::PinLocked) => diagnosis(
            format!("the token's user PIN is locked ({told}); it was tried once"),
            "the security officer has to set a new one; find out who tried wrong ones",
        ),
        Some(RvError::UserPinNotInitialized) => diagnosis(
            format!("the token has no user PIN yet ({told})"),
            "the security officer has to set one",
        ),
        Some(RvError::PinExpired) => diagnosis(
            format!("the token's user PIN has expired ({told}); it was tried once"),
            format!(
                "set a new one with the vendor's tool, and write it into {}",
                pin_file.display()
            ),
        ),
        _ if class(error) == Class::PinCondemned => diagnosis(
            format!(
                "the token refuses the PIN ({told}); it was tried once, and is not tried again"
            ),
            format!(
                "write the right one into {}; a few wrong tries lock the token",
                pin_file.display()
            ),
        ),
        _ => diagnosis(
            format!("the login failed: {told}"),
            "look at the device and the module's log",
        ),
    }
}
