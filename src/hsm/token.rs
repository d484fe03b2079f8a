//! A new token, for development set-ups and first installations.

use crate::hsm::fault::unavailable;
use crate::hsm::module::Module;
use crate::hsm::pin::read_pin;
use crate::ports::signer::SignerError;
use cryptoki::session::UserType;
use std::path::Path;

/// `CK_TOKEN_INFO.label` has 32 bytes (PKCS#11 v3.1, section 3.2).
const LABEL_BYTES_MAX: usize = 32;

/// Initialises a token in a free slot: `C_InitToken` with the security officer's PIN, then
/// `C_InitPIN` with the user's (PKCS#11 v3.1, sections 5.5.7 and 5.5.8). Blocks. The module must not
/// be in use in this process.
///
/// # Errors
/// When a PIN file is not as [`crate::hsm::HsmConfig::pin_file`] must be, the label is empty or longer
/// than 32 bytes, a token with that label exists, no slot is free, or the module refuses. An
/// initialised token is never touched.
pub fn init_token(
    module: &Path,
    label: &str,
    so_pin_file: &Path,
    pin_file: &Path,
) -> Result<(), SignerError> {
    let (so_pin, pin) = (read_pin(so_pin_file)?, read_pin(pin_file)?);
    let refuse = |why: &str| Err(SignerError::Unavailable(why.to_owned()));
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || label.trim_end() != label {
        return refuse("a token's label has 1 to 32 bytes and does not end with a space");
    }
    let module = Module::start(module)?;
    let tokens = module.tokens()?;
    if tokens.iter().any(|(_, token)| token.token_initialized() && token.label() == label) {
        return refuse("a token with this label exists already");
    }
    let Some((free, _)) = tokens.iter().find(|(_, token)| !token.token_initialized()) else {
        return refuse("no slot has a token that may be initialised");
    };
    let told = |error| unavailable(&error);
    module.pkcs11().init_token(*free, &so_pin, label).map_err(told)?;
    // Modules may move a new token to another slot.
    let slot = module.slot_of(label)?;
    let session = module.pkcs11().open_rw_session(slot).map_err(told)?;
    session.login(UserType::So, Some(&so_pin)).map_err(told)?;
    session.init_pin(&pin).map_err(told)?;
    session.logout().map_err(told)
}
