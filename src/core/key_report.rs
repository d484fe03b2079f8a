//! What a token says of a key, what it must say, and where an operator has allowed it to say otherwise.

use crate::core::key::{CkaId, PublicKey};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a new key's label in the token begins with: its purpose.
const PURPOSE: &str = "claviger operator ";
/// The longest label that is given to an object, in bytes: YubiHSM 2 takes 40, others 64 or more.
pub const TOKEN_LABEL_BYTES_MAX: usize = 40;

/// `CKA_LABEL` of an operator key: its purpose and the name that people know it by. Of a name that does not
/// fit, its beginning and eight digits of its SHA-256, so that two names still give two labels.
#[must_use]
pub fn token_label(name: &str) -> String {
    let whole = format!("{PURPOSE}{name}");
    if whole.len() <= TOKEN_LABEL_BYTES_MAX {
        return whole;
    }
    let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    let digits = hex::encode(digest.first_chunk::<4>().unwrap_or(&[0; 4]));
    let room = TOKEN_LABEL_BYTES_MAX.saturating_sub(PURPOSE.len()).saturating_sub(9);
    let beginning: String = name.chars().take(room).collect();
    format!("{PURPOSE}{beginning}~{digits}")
}

/// `CKA_TRUSTED` is false: no security officer vouches for the wrapping key.
pub const NOT_TRUSTED: &str = "not-trusted";
/// `CKA_PRIVATE` is false: without a login the wrapping key can be seen, and used.
pub const NOT_PRIVATE: &str = "not-private";
/// `CKA_ALWAYS_SENSITIVE` is false: it could be read once, so perhaps it was not made in the token.
pub const NOT_ALWAYS_SENSITIVE: &str = "not-always-sensitive";
/// `CKA_NEVER_EXTRACTABLE` is false: it could be taken out once.
pub const NOT_NEVER_EXTRACTABLE: &str = "not-never-extractable";
/// What it unwraps can be unwrapped to be read.
pub const NO_UNWRAP_TEMPLATE: &str = "no-unwrap-template";
/// `CKA_MODIFIABLE` is true: it can be made to decrypt what it wrapped.
pub const MODIFIABLE: &str = "modifiable";
/// `CKA_COPYABLE` is true: so can its copy.
pub const COPYABLE: &str = "copyable";

/// What exceptions may allow a wrapping key.
pub const WRAPPING_EXCEPTIONS: [&str; 7] = [
    NOT_TRUSTED,
    NOT_PRIVATE,
    NOT_ALWAYS_SENSITIVE,
    NOT_NEVER_EXTRACTABLE,
    NO_UNWRAP_TEMPLATE,
    MODIFIABLE,
    COPYABLE,
];

/// A boolean attribute of a private key object (PKCS#11 v3.1, sections 4.9 and 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyFlag {
    /// It cannot be read in plain.
    Sensitive,
    /// It can be wrapped and taken out.
    Extractable,
    /// It is seen by who has logged in only.
    Private,
    /// It outlives the session.
    Token,
    /// It signs.
    Sign,
    /// It was never readable.
    AlwaysSensitive,
    /// It could never be taken out.
    NeverExtractable,
    /// It decrypts.
    Decrypt,
    /// It unwraps other keys.
    Unwrap,
    /// Other keys are derived with it.
    Derive,
    /// It was made in this token.
    Local,
}

impl KeyFlag {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 11] = [
        Self::Sensitive,
        Self::Extractable,
        Self::AlwaysSensitive,
        Self::NeverExtractable,
        Self::Private,
        Self::Token,
        Self::Sign,
        Self::Decrypt,
        Self::Unwrap,
        Self::Derive,
        Self::Local,
    ];

    /// The name in the standard.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sensitive => "CKA_SENSITIVE",
            Self::Extractable => "CKA_EXTRACTABLE",
            Self::Private => "CKA_PRIVATE",
            Self::Token => "CKA_TOKEN",
            Self::Sign => "CKA_SIGN",
            Self::AlwaysSensitive => "CKA_ALWAYS_SENSITIVE",
            Self::NeverExtractable => "CKA_NEVER_EXTRACTABLE",
            Self::Decrypt => "CKA_DECRYPT",
            Self::Unwrap => "CKA_UNWRAP",
            Self::Derive => "CKA_DERIVE",
            Self::Local => "CKA_LOCAL",
        }
    }

    /// What it must be.
    #[must_use]
    pub const fn wanted(self) -> bool {
        !matches!(self, Self::Extractable | Self::Decrypt | Self::Unwrap | Self::Derive)
    }

    /// Whether a module that does not know it is as wrong as one that says otherwise. Where an older module
    /// does not know the others, generation inside the token stands for them.
    #[must_use]
    const fn must_be_told(self) -> bool {
        matches!(
            self,
            Self::Sensitive | Self::Extractable | Self::Private | Self::Token | Self::Sign
        )
    }

    /// What an exception calls a key that has it wrong. None may be without the last two: such a key would
    /// not sign, or not be found again.
    #[must_use]
    pub const fn exception(self) -> Option<&'static str> {
        match self {
            Self::Sensitive => Some("not-sensitive"),
            Self::Extractable => Some("extractable"),
            Self::Private => Some("not-private"),
            Self::AlwaysSensitive => Some("not-always-sensitive"),
            Self::NeverExtractable => Some("not-never-extractable"),
            Self::Decrypt => Some("decrypt"),
            Self::Unwrap => Some("unwrap"),
            Self::Derive => Some("derive"),
            Self::Local => Some("not-local"),
            Self::Token | Self::Sign => None,
        }
    }

    /// Reads [`Self::exception`].
    ///
    /// # Errors
    /// The names that there are.
    pub fn from_exception(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|flag| flag.exception() == Some(name)).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.into_iter().filter_map(Self::exception).collect();
            format!("unknown attribute `{name}`; known: {}", known.join(", "))
        })
    }
}

/// An operator's word that a key may be used although it is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyException {
    /// Which key of the token.
    pub cka_id: CkaId,
    /// What may be wrong with it.
    pub allows: BTreeSet<KeyFlag>,
    /// Why.
    pub reason: String,
}

impl KeyException {
    /// What it allows, as the configuration names it.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.allows.iter().filter_map(|flag| flag.exception()).collect()
    }
}

/// A key pair as its token tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// The public key.
    pub public_key: PublicKey,
    /// `CKA_LABEL` of the private key, if it has one.
    pub label: Option<String>,
    /// Each attribute that was asked for; `None` where the module does not know it.
    pub flags: BTreeMap<KeyFlag, Option<bool>>,
    /// `CKA_ALLOWED_MECHANISMS`, if the module knows it and it is not empty.
    pub mechanisms: Option<Vec<String>>,
    /// The exception that the configuration has for this key, if there is one.
    pub exception: Option<KeyException>,
}

impl KeyReport {
    /// The attributes that are not what they must be.
    #[must_use]
    pub fn wrong(&self) -> Vec<KeyFlag> {
        wrong(&self.flags)
    }

    /// Those of them that no exception allows.
    #[must_use]
    pub fn refused(&self) -> Vec<KeyFlag> {
        refused(&self.flags, self.exception.as_ref())
    }

    /// What the exception allows without need.
    #[must_use]
    pub fn unneeded(&self) -> Vec<KeyFlag> {
        let wrong = self.wrong();
        let allowed = self.exception.iter().flat_map(|exception| &exception.allows);
        allowed.copied().filter(|flag| !wrong.contains(flag)).collect()
    }

    /// These attributes with their values, in a phrase.
    #[must_use]
    pub fn tell(&self, flags: &[KeyFlag]) -> String {
        tell(&self.flags, flags)
    }

    /// Name and value of each attribute: `true`, `false`, or `unknown` to the module.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.flags.iter().map(|(flag, value)| (flag.name(), value_name(*value)))
    }
}

/// The attributes that are not what they must be. Where a key was made says nothing more where the token tells
/// whether it could ever be read or taken out: a copy that a token's own means have made is not local either.
#[must_use]
pub fn wrong(flags: &BTreeMap<KeyFlag, Option<bool>>) -> Vec<KeyFlag> {
    let is_told = |flag| flags.get(&flag).copied().flatten().is_some();
    let history = is_told(KeyFlag::AlwaysSensitive) || is_told(KeyFlag::NeverExtractable);
    let is_wrong = |flag: &KeyFlag| match flags.get(flag).copied().flatten() {
        Some(_) if history && *flag == KeyFlag::Local => false,
        Some(value) => value != flag.wanted(),
        None => flag.must_be_told(),
    };
    KeyFlag::ALL.into_iter().filter(is_wrong).collect()
}

/// Those of them that no exception allows.
#[must_use]
pub fn refused(
    flags: &BTreeMap<KeyFlag, Option<bool>>,
    exception: Option<&KeyException>,
) -> Vec<KeyFlag> {
    let mut found = wrong(flags);
    found.retain(|flag| exception.is_none_or(|exception| !exception.allows.contains(flag)));
    found
}

/// Attributes with their values, in a phrase: `CKA_SENSITIVE is false, CKA_EXTRACTABLE is true`.
#[must_use]
pub fn tell(values: &BTreeMap<KeyFlag, Option<bool>>, flags: &[KeyFlag]) -> String {
    let one = |flag: &KeyFlag| {
        let value = values.get(flag).copied().flatten();
        format!("{} is {}", flag.name(), value_name(value))
    };
    flags.iter().map(one).collect::<Vec<_>>().join(", ")
}

const fn value_name(value: Option<bool>) -> &'static str {
    match value {
        Some(true) => "true",
        Some(false) => "false",
        None => "unknown",
    }
}

/// A token as it tells itself (`CK_TOKEN_INFO`, PKCS#11 v3.1, section 3.2), and what lies in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenReport {
    /// Its label.
    pub label: String,
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// The version of its firmware.
    pub firmware: String,
    /// `CKA_LABEL` of its objects.
    pub labels: BTreeSet<String>,
    /// `CKA_ID` of its objects.
    pub ids: BTreeSet<Vec<u8>>,
}

impl fmt::Display for TokenReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, manufacturer, model, serial, firmware, .. } = self;
        write!(f, "{label} ({manufacturer} {model}, serial {serial}, firmware {firmware})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> BTreeMap<KeyFlag, Option<bool>> {
        KeyFlag::ALL.into_iter().map(|flag| (flag, Some(flag.wanted()))).collect()
    }

    fn exception(allows: &[KeyFlag]) -> KeyException {
        let allows = allows.iter().copied().collect();
        KeyException { cka_id: CkaId::new(vec![1]), allows, reason: "a test".to_owned() }
    }

    #[test]
    fn every_wrong_attribute_is_told_and_only_those_that_are_allowed_may_be() {
        use KeyFlag::{AlwaysSensitive, Extractable, Local, NeverExtractable, Sensitive};
        assert!(wrong(&right()).is_empty());
        let mut flags = right();
        flags.extend([(Extractable, Some(true)), (NeverExtractable, Some(false))]);
        assert_eq!(refused(&flags, None), [Extractable, NeverExtractable]);
        assert_eq!(
            tell(&flags, &refused(&flags, None)),
            "CKA_EXTRACTABLE is true, CKA_NEVER_EXTRACTABLE is false"
        );
        assert_eq!(refused(&flags, Some(&exception(&[Extractable]))), [NeverExtractable]);
        assert!(refused(&flags, Some(&exception(&[Extractable, NeverExtractable]))).is_empty());
        // What a module does not know is wrong only where everything hangs on it.
        for flag in KeyFlag::ALL {
            let mut flags = right();
            flags.insert(flag, None);
            assert_eq!(wrong(&flags).is_empty(), !flag.must_be_told(), "{flag:?}");
            flags.remove(&flag);
            assert_eq!(wrong(&flags).is_empty(), !flag.must_be_told(), "{flag:?}");
        }
        // A key that came from elsewhere is one that may be there still, where nothing else is told of that.
        let mut flags = right();
        flags.insert(Local, Some(false));
        assert!(wrong(&flags).is_empty());
        flags.extend([(AlwaysSensitive, None), (NeverExtractable, None)]);
        assert_eq!(wrong(&flags), [Local]);
        let mut flags = right();
        flags.insert(Sensitive, None);
        assert_eq!(tell(&flags, &[Sensitive]), "CKA_SENSITIVE is unknown");
    }

    #[test]
    fn an_exception_that_is_not_needed_is_known() {
        let report = KeyReport {
            public_key: PublicKey::from_sec1(&[4; 65]).unwrap(),
            label: None,
            flags: right(),
            mechanisms: None,
            exception: Some(exception(&[KeyFlag::Derive])),
        };
        assert_eq!(report.unneeded(), [KeyFlag::Derive]);
    }

    #[test]
    fn exceptions_have_names_and_there_is_none_for_what_a_key_cannot_do_without() {
        for flag in KeyFlag::ALL {
            match flag.exception() {
                Some(name) => assert_eq!(KeyFlag::from_exception(name), Ok(flag)),
                None => assert!(matches!(flag, KeyFlag::Token | KeyFlag::Sign)),
            }
        }
        let told = KeyFlag::from_exception("anything").unwrap_err();
        assert!(told.contains("not-sensitive, extractable"), "{told}");
    }

    #[test]
    fn labels_say_purpose_and_name_and_fit_every_token() {
        assert_eq!(token_label("op-1"), "claviger operator op-1");
        let (one, two) = (token_label(&"x".repeat(63)), token_label(&"x".repeat(64)));
        assert!(one.starts_with("claviger operator xxxxxxxxxxxxx~"), "{one}");
        assert_eq!((one.len(), two.len()), (TOKEN_LABEL_BYTES_MAX, TOKEN_LABEL_BYTES_MAX));
        assert_ne!(one, two);
    }
}
