//! What each return value of PKCS#11 (v3.1, section 5.1) means here, and what is done about it: one table,
//! in the order of the standard's header. `docs/hsm/errors.md` is the same table for people.

use cryptoki::error::RvError;

/// What is done about a return value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The handles of objects mean nothing any more: keys are found again, and the job is done once more.
    HandlesLost,
    /// The login is lost: one login for all threads, keys are found again, and the job is done once more.
    LoginLost,
    /// The session is not there any more: it is forgotten, never closed, since its number may be another's by
    /// now; the job is done once more in a new one.
    SessionLost,
    /// The session is there and in no state to be used: it is closed, and the job is done once more in a
    /// new one.
    SessionSpoiled,
    /// What was asked for is so already: success.
    AlreadyDone,
    /// The token will not have this PIN: it is never sent again.
    PinCondemned,
    /// The token or its device is gone: once more, then the token is down, and probed.
    TokenGone,
    /// The module has forgotten this process: the token is down, and the module is initialised anew.
    ModuleGone,
    /// Something has run out: the job fails, and is counted.
    Resources,
    /// It says nothing about itself: once more in a new session; the third in a row in a token counts as
    /// [`Self::TokenGone`].
    Trouble,
    /// We asked for what cannot be, or the token is not as configured: the job fails, for a person to see.
    OurFault,
    /// The module does not do this: the job fails, for a person to see.
    Unsupported,
    /// The vendor's own, or one of a later standard: treated like [`Self::Trouble`].
    Vendor,
}

impl Class {
    /// The name in metrics and documents.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::HandlesLost => "handles_lost",
            Self::LoginLost => "login_lost",
            Self::SessionLost => "session_lost",
            Self::SessionSpoiled => "session_spoiled",
            Self::AlreadyDone => "already_done",
            Self::PinCondemned => "pin_condemned",
            Self::TokenGone => "token_gone",
            Self::ModuleGone => "module_gone",
            Self::Resources => "resources",
            Self::Trouble => "trouble",
            Self::OurFault => "our_fault",
            Self::Unsupported => "unsupported",
            Self::Vendor => "vendor",
        }
    }

    /// Whether each such error counts, also one that a second try cures.
    pub(super) const fn counts_each(self) -> bool {
        matches!(self, Self::Trouble | Self::Vendor)
    }

    /// Whether a job that failed by it for good counts: a token that is well gives no such errors for long.
    pub(super) const fn counts_in_the_end(self) -> bool {
        matches!(
            self,
            Self::SessionLost
                | Self::LoginLost
                | Self::SessionSpoiled
                | Self::HandlesLost
                | Self::Resources
        )
    }

    /// Whether the job is done once more.
    pub(super) const fn is_tried_again(self) -> bool {
        match self {
            Self::HandlesLost
            | Self::LoginLost
            | Self::SessionLost
            | Self::SessionSpoiled
            | Self::TokenGone
            | Self::Trouble
            | Self::Vendor => true,
            Self::AlreadyDone
            | Self::PinCondemned
            | Self::ModuleGone
            | Self::Resources
            | Self::OurFault
            | Self::Unsupported => false,
        }
    }
}

/// The table: one arm for each value the binding knows and no wildcard, so that a value that a later version
/// of it learns stops the build here.
macro_rules! table {
    ($($value:ident $class:ident $meaning:literal)*) => {
        /// What is done about a return value.
        pub(super) const fn class_of(value: RvError) -> Class {
            match value {
                $(RvError::$value => Class::$class,)*
                RvError::VendorDefined(_) | RvError::UnknownErrorCode(_) => Class::Vendor,
            }
        }

        /// What a return value means here.
        pub(super) const fn meaning(value: RvError) -> &'static str {
            match value {
                $(RvError::$value => $meaning,)*
                RvError::VendorDefined(_) => "the vendor's own: look it up in the module's manual",
                RvError::UnknownErrorCode(_) => "of a standard that is newer than this program",
            }
        }

        #[cfg(test)]
        const ALL: &[RvError] =
            &[$(RvError::$value,)* RvError::VendorDefined(0), RvError::UnknownErrorCode(0)];
    };
}

table! {
    Cancel OurFault "a call back asked to stop; there are none here"
    HostMemory Resources "this machine has no memory left"
    SlotIdInvalid TokenGone "the slot is gone; tokens are found by label, so it may have another number"
    GeneralError Trouble "anything; some modules say it for a lost connection"
    FunctionFailed Trouble "anything; some modules say it for a lost connection"
    ArgumentsBad OurFault "an argument that the module does not take"
    NoEvent OurFault "nobody waits for slot events here"
    NeedToCreateThreads OurFault "the module may not make threads; it is initialised so that it may"
    CantLock OurFault "the module cannot use the system's locks, which several threads need"
    AttributeReadOnly OurFault "an attribute that cannot be set"
    AttributeSensitive OurFault "an attribute that cannot be read; no private part is ever asked for"
    AttributeTypeInvalid OurFault "an attribute that the module does not know"
    AttributeValueInvalid OurFault "an attribute's value that the module does not take"
    ActionProhibited OurFault "the token's policy forbids it"
    DataInvalid OurFault "what was to be signed is not what the mechanism takes"
    DataLenRange OurFault "what was to be signed has another length than the mechanism takes"
    DeviceError TokenGone "the token or the way to it has failed"
    DeviceMemory Resources "the token has no room left"
    DeviceRemoved TokenGone "the token was taken out during the call"
    EncryptedDataInvalid OurFault "a wrapped key is damaged"
    EncryptedDataLenRange OurFault "a wrapped key has a length that it cannot have"
    FunctionCanceled Trouble "the call was given up in the middle"
    FunctionNotParallel OurFault "of an old standard; nobody asks for it here"
    FunctionNotSupported Unsupported "the module does not have this function"
    CurveNotSupported Unsupported "the module does not have secp256k1"
    KeyHandleInvalid HandlesLost "the key's handle is none: the token was reset, or the key is gone"
    KeySizeRange OurFault "a key of a size that the mechanism does not take"
    KeyTypeInconsistent OurFault "a key of another kind than the mechanism takes"
    KeyNotNeeded OurFault "a key was given where none is needed"
    KeyChanged OurFault "saved state; nobody saves any here"
    KeyNeeded OurFault "saved state; nobody saves any here"
    KeyIndigestible OurFault "keys are not digested here"
    KeyFunctionNotPermitted OurFault "the key's attributes forbid this use"
    KeyNotWrappable OurFault "the key cannot be wrapped"
    KeyUnextractable OurFault "the key is not extractable, so it cannot be wrapped"
    MechanismInvalid Unsupported "the module does not have this mechanism, or not for this key"
    MechanismParamInvalid OurFault "a parameter that the mechanism does not take"
    ObjectHandleInvalid HandlesLost "the object's handle is none: the token was reset, or it is gone"
    OperationActive SessionSpoiled "another operation is under way in this session"
    OperationNotInitialized SessionSpoiled "the operation was ended from outside"
    PinIncorrect PinCondemned "the PIN is wrong; each try may be the one that locks the token"
    PinInvalid PinCondemned "the PIN has characters that the token does not take"
    PinLenRange PinCondemned "the PIN is too short or too long"
    PinExpired PinCondemned "the PIN must be changed by a person"
    PinLocked PinCondemned "the PIN is locked: too many wrong tries"
    SessionClosed SessionLost "the session was closed during the call"
    SessionCount Resources "the token has no session left; other programs use it too"
    SessionHandleInvalid SessionLost "the session is gone: closed from outside, expired, or the device was reset"
    SessionParallelNotSupported OurFault "of an old standard; nobody asks for it here"
    SessionReadOnly OurFault "the session may not write; see `read_write_sessions`"
    SessionExists OurFault "the token cannot be initialised while sessions are open"
    SessionReadOnlyExists OurFault "the security officer cannot log in beside sessions that cannot write"
    SessionReadWriteSoExists OurFault "the security officer is logged in: no other session until that is over"
    SignatureInvalid OurFault "the module verifies nothing here"
    SignatureLenRange OurFault "the module verifies nothing here"
    TemplateIncomplete OurFault "a template without an attribute that the module wants"
    TemplateInconsistent OurFault "a template whose attributes the module does not take together"
    TokenNotPresent TokenGone "no token is in the slot"
    TokenNotRecognized TokenGone "the module does not know the token in the slot"
    TokenWriteProtected OurFault "the token takes no new objects"
    UnwrappingKeyHandleInvalid HandlesLost "the wrapping key's handle is none"
    UnwrappingKeySizeRange OurFault "the wrapping key is not of a size that the mechanism takes"
    UnwrappingKeyTypeInconsistent OurFault "the wrapping key is not of the kind that the mechanism takes"
    UserAlreadyLoggedIn AlreadyDone "another thread was first"
    UserNotLoggedIn LoginLost "the login is gone"
    UserPinNotInitialized PinCondemned "the token has no user PIN yet"
    UserTypeInvalid OurFault "the token does not know this kind of user"
    UserAnotherAlreadyLoggedIn OurFault "somebody else is logged in to the token in this process"
    UserTooManyTypes Resources "more kinds of users are logged in than the token takes"
    WrappedKeyInvalid OurFault "a wrapped key is damaged, or was wrapped by another key"
    WrappedKeyLenRange OurFault "a wrapped key has a length that it cannot have"
    WrappingKeyHandleInvalid HandlesLost "the wrapping key's handle is none"
    WrappingKeySizeRange OurFault "the wrapping key is not of a size that the mechanism takes"
    WrappingKeyTypeInconsistent OurFault "the wrapping key is not of the kind that the mechanism takes"
    RandomSeedNotSupported Unsupported "the token takes no seed; nobody gives one"
    RandomNoRng Unsupported "the token has no random numbers"
    DomainParamsInvalid Unsupported "the module does not have secp256k1"
    BufferTooSmall OurFault "an answer is longer than the room for it"
    SavedStateInvalid OurFault "saved state; nobody saves any here"
    InformationSensitive OurFault "something that cannot be read"
    StateUnsaveable OurFault "saved state; nobody saves any here"
    CryptokiNotInitialized ModuleGone "the module was finalised, or has forgotten that it was initialised"
    CryptokiAlreadyInitialized AlreadyDone "somebody else in this process has initialised the module"
    MutexBad OurFault "a lock of ours; the system's are used"
    MutexNotLocked OurFault "a lock of ours; the system's are used"
    NewPinMode OurFault "a one-time password's; there are none here"
    NextOtp OurFault "a one-time password's; there are none here"
    ExceededMaxIterations Trouble "the token gave up on finding a number"
    FipsSelfTestFailed TokenGone "the token has failed its own test and does nothing more"
    LibraryLoadFailed ModuleGone "the module could not load a library of its own"
    PinTooWeak OurFault "a new PIN that the token does not take"
    PublicKeyInvalid OurFault "a public key that is none"
    FunctionRejected Trouble "a person at the device said no, or nobody said yes in time"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::fault::ckr_name;
    use std::collections::BTreeSet;

    fn name(value: RvError) -> String {
        match value {
            RvError::VendorDefined(_) => "CKR_VENDOR_DEFINED and above".to_owned(),
            RvError::UnknownErrorCode(_) => "any other".to_owned(),
            value => ckr_name(value),
        }
    }

    #[test]
    fn the_page_for_people_is_this_table() {
        let page = include_str!("../../docs/hsm/errors.md");
        let told: Vec<&str> = page.lines().filter(|line| line.starts_with("| `CKR_")).collect();
        let told: Vec<&str> = told
            .into_iter()
            .chain(page.lines().filter(|it| it.starts_with("| any other")))
            .collect();
        let known: Vec<String> = ALL
            .iter()
            .map(|value| {
                let class = class_of(*value);
                let name = name(*value);
                let name = if name.starts_with("CKR_") { format!("`{name}`") } else { name };
                format!("| {name} | `{}` | {} |", class.name(), meaning(*value))
            })
            .collect();
        for (told, known) in told.iter().zip(&known) {
            assert_eq!(told, known, "docs/hsm/errors.md");
        }
        assert_eq!(
            told.len(),
            known.len(),
            "docs/hsm/errors.md should have:\n{}",
            known.join("\n")
        );
        let classes: BTreeSet<&str> = ALL.iter().map(|value| class_of(*value).name()).collect();
        for class in classes {
            assert!(page.contains(&format!("\n- `{class}`:")), "the page explains {class}");
        }
    }

    #[test]
    fn a_refused_pin_is_never_tried_again_and_neither_is_what_would_fail_again() {
        for value in ALL {
            let class = class_of(*value);
            if name(*value).starts_with("CKR_PIN_") && *value != RvError::PinTooWeak {
                assert_eq!(class, Class::PinCondemned, "{value:?}");
            }
            if matches!(class, Class::PinCondemned | Class::OurFault | Class::Unsupported) {
                assert!(!class.is_tried_again(), "{value:?}");
            }
        }
    }

    #[test]
    fn what_is_tried_again_is_also_counted_so_that_nothing_is_tried_for_ever() {
        for value in ALL {
            let class = class_of(*value);
            let falls = matches!(class, Class::TokenGone | Class::ModuleGone);
            let counts = class.counts_each() || class.counts_in_the_end();
            assert!(!class.is_tried_again() || counts != falls, "{value:?}");
        }
        assert!(class_of(RvError::SessionCount).counts_in_the_end());
        assert!(!class_of(RvError::KeyFunctionNotPermitted).counts_in_the_end());
    }

    #[test]
    fn a_session_whose_number_may_be_another_s_is_told_from_one_that_is_ours() {
        assert_eq!(class_of(RvError::SessionHandleInvalid), Class::SessionLost);
        assert_eq!(class_of(RvError::SessionClosed), Class::SessionLost);
        assert_eq!(class_of(RvError::OperationActive), Class::SessionSpoiled);
        assert_eq!(class_of(RvError::OperationNotInitialized), Class::SessionSpoiled);
    }
}
