//! What can go wrong on an HSM thread, and what is to be done about it.

use crate::hsm::errors::{Class, class_of, meaning};
use crate::ports::signer::SignerError;
use cryptoki::error::{Error, RvError};

/// Why a job on an HSM thread did not end well.
pub(super) enum Fault {
    /// The module said no: PKCS#11 return values (v3.1, section 5.1) and the binding's own errors.
    Module(Error),
    /// We said no; trying again would change nothing.
    Refused(SignerError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Module(error)
    }
}

impl From<SignerError> for Fault {
    fn from(error: SignerError) -> Self {
        Self::Refused(error)
    }
}

impl From<Fault> for SignerError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Module(error) => unavailable(&error),
            Fault::Refused(error) => error,
        }
    }
}

/// A key that must not be used, with the reason.
pub(super) fn unusable(why: impl Into<String>) -> Fault {
    Fault::Refused(SignerError::KeyUnusable(why.into()))
}

/// The module's error as the port tells it: the function's and the return value's standard names.
pub(super) fn unavailable(error: &Error) -> SignerError {
    SignerError::Unavailable(describe(error))
}

/// Function and return value by their standard names, such as `C_Sign: CKR_DEVICE_ERROR`. The
/// binding's own texts are paragraphs of the standard.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(value, function) => format!("C_{function:?}: {}", ckr_name(*value)),
        other => other.to_string(),
    }
}

/// The name in the standard: `PinIncorrect` is `CKR_PIN_INCORRECT`.
pub(super) fn ckr_name(value: RvError) -> String {
    match value {
        RvError::VendorDefined(code) => return format!("CKR_VENDOR_DEFINED ({code:#x})"),
        RvError::UnknownErrorCode(code) => return format!("unknown return value {code:#x}"),
        _ => {}
    }
    let mut name = String::from("CKR");
    for letter in format!("{value:?}").chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// The return value, if the module gave one.
pub(super) const fn return_value(error: &Error) -> Option<RvError> {
    match error {
        Error::Pkcs11(value, _) => Some(*value),
        _ => None,
    }
}

/// What is done about an error of the module; see [`crate::hsm::errors`]. The binding's own errors mean that
/// it does not understand the module, or lacks a function of it.
pub(super) const fn class(error: &Error) -> Class {
    match error {
        Error::Pkcs11(value, _) => class_of(*value),
        Error::LibraryLoading(_) => Class::ModuleGone,
        Error::NotSupported | Error::NullFunctionPointer | Error::MissingSymbol(_) => {
            Class::Unsupported
        }
        Error::TryFromInt(_)
        | Error::TryFromSlice(_)
        | Error::ParseInt(_)
        | Error::Utf8(_)
        | Error::NulError(_)
        | Error::InvalidValue
        | Error::PinNotSet => Class::OurFault,
    }
}

/// Whether a job that failed by it for good counts, of three in a row. A token without room says so of what it
/// is to keep; whether it is there is not in question.
pub(super) const fn counts_in_the_end(error: &Error) -> bool {
    class(error).counts_in_the_end() && !matches!(return_value(error), Some(RvError::DeviceMemory))
}

/// The return value with what it means here.
pub(super) fn explained(error: &Error) -> String {
    match return_value(error) {
        Some(value) => format!("{} ({})", describe(error), meaning(value)),
        None => describe(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    #[test]
    fn return_values_are_told_by_their_standard_names() {
        let told = |value| describe(&Error::Pkcs11(value, Function::Sign));
        assert_eq!(told(RvError::PinIncorrect), "C_Sign: CKR_PIN_INCORRECT");
        assert_eq!(told(RvError::SessionHandleInvalid), "C_Sign: CKR_SESSION_HANDLE_INVALID");
        assert_eq!(told(RvError::FipsSelfTestFailed), "C_Sign: CKR_FIPS_SELF_TEST_FAILED");
        assert!(told(RvError::VendorDefined(0x8000_0001)).contains("0x80000001"));
    }
}
