//! Wrapping keys: made, found, and checked before anything is wrapped under one or unwrapped with it.
//!
//! A wrapping key is an AES-256 object of the token that wraps and unwraps other keys
//! (`CKM_AES_KEY_WRAP_PAD`, PKCS#11 v3.1, section 6.13.3; RFC 5649) and does nothing else. What it says of
//! itself is not enough: `C_UnwrapKey` takes the new key's attributes from its caller, so whoever has a
//! session could unwrap a key to read it. `CKA_UNWRAP_TEMPLATE` (section 4.10) forbids that, and whether the
//! module heeds it is tried out with a key that is thrown away.

use crate::core::key::{CkaId, WrappedKey};
use crate::hsm::fault::{Fault, describe, return_value, unavailable, unusable};
use crate::hsm::lock;
use crate::hsm::login::{Login, Secret};
use crate::hsm::module::Module;
use crate::hsm::pin::read_pin;
use crate::hsm::unwrapped::{Temporary, wrap_new};
use crate::ports::signer::SignerError;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a wrapping key lacks, and why it is used all the same: by the attribute's name.
pub type Exceptions = BTreeMap<String, String>;

/// `CKA_TRUSTED`: a security officer vouches for the wrapping key, and keys that may only be wrapped under
/// such a key can be.
const TRUSTED: &str = "trusted";
/// `CKA_PRIVATE`: without a login the wrapping key cannot be seen, or used.
const PRIVATE: &str = "private";
/// `CKA_NEVER_EXTRACTABLE` and `CKA_ALWAYS_SENSITIVE`: it was made in the token.
const MADE_INSIDE: &str = "made_inside";
/// `CKA_UNWRAP_TEMPLATE`: what it unwraps cannot be read, whatever the caller asks.
const UNWRAP_TEMPLATE: &str = "unwrap_template";

/// What may be excepted.
pub const MAY_BE_EXCEPTED: [&str; 4] = [TRUSTED, PRIVATE, MADE_INSIDE, UNWRAP_TEMPLATE];

/// The number of `CKA_UNWRAP_TEMPLATE` (PKCS#11 v3.1, section 4.10.2).
const CKA_UNWRAP_TEMPLATE: u64 = 0x4000_0212;
const CKA_PRIVATE: usize = 0x0002;
const CKA_SENSITIVE: usize = 0x0103;
const CKA_EXTRACTABLE: usize = 0x0162;
static TRUE: u8 = 1;
static FALSE: u8 = 0;

/// Which key of a token wraps others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappingConfig {
    /// Its `CKA_ID`.
    pub key: CkaId,
    /// What it lacks, each of [`MAY_BE_EXCEPTED`], with the reason why it is used all the same.
    pub exceptions: Exceptions,
}

/// The wrapping key of a token, found and checked once in each generation of handles.
pub(super) struct Wrapping {
    config: Option<WrappingConfig>,
    looked: Mutex<Option<Looked>>,
}

/// What the last look found, and in which generation. A bad one is looked at again.
struct Looked {
    generation: u64,
    at: Instant,
    found: Result<WrappingKey, SignerError>,
}

/// How long a wrapping key that is missing or bad stays so without another look.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Wrapping {
    pub(super) const fn new(config: Option<WrappingConfig>) -> Self {
        Self { config, looked: Mutex::new(None) }
    }

    /// Its id, if one is configured.
    pub(super) fn id(&self) -> Option<&CkaId> {
        self.config.as_ref().map(|config| &config.key)
    }

    /// The wrapping key in this generation of handles.
    ///
    /// # Errors
    /// Unusable, where none is configured, or it is missing or not as it must be: an alarm.
    pub(super) fn usable(&self, session: &Session, generation: u64) -> Result<WrappingKey, Fault> {
        let Some(config) = &self.config else {
            return Err(unusable("no wrapping_key is configured for its token"));
        };
        let mut looked = lock(&self.looked);
        if let Some(looked) = looked.as_ref().filter(|looked| looked.generation == generation) {
            match &looked.found {
                Ok(key) => return Ok(key.clone()),
                Err(error) if looked.at.elapsed() < LOOK_AGAIN => return Err(error.clone().into()),
                Err(_) => {}
            }
        }
        let found = match find_wrapping_key(session, &config.key, &config.exceptions) {
            Ok(key) => Ok(key),
            Err(Fault::Refused(error)) => Err(error),
            // The module's own trouble says nothing about the key.
            Err(other) => return Err(other),
        };
        if let Err(error) = &found {
            tracing::error!(%error, "ALARM: wrapped keys of this token cannot be used");
        }
        *looked = Some(Looked { generation, at: Instant::now(), found: found.clone() });
        found.map_err(Fault::from)
    }

    /// Looks again at the next use: one was made now.
    pub(super) fn forget(&self) {
        *lock(&self.looked) = None;
    }

    /// The wrapping key, for a blob that says under which one it was wrapped.
    pub(super) fn usable_for(
        &self,
        session: &Session,
        generation: u64,
        key: &WrappedKey,
    ) -> Result<WrappingKey, Fault> {
        if self.id().is_some_and(|id| *id != key.under) {
            let (under, ours) = (&key.under, self.id().map(CkaId::as_bytes).unwrap_or_default());
            let (under, ours) = (hex::encode(under.as_bytes()), hex::encode(ours));
            return Err(unusable(format!(
                "it is wrapped under {under}, and the wrapping key of its token is {ours}"
            )));
        }
        self.usable(session, generation)
    }
}

/// A wrapping key of this generation of handles.
#[derive(Clone, Debug)]
pub(super) struct WrappingKey {
    pub(super) id: CkaId,
    pub(super) handle: ObjectHandle,
    /// Whether it is trusted, so that new keys may be wrapped under trusted keys only.
    pub(super) is_trusted: bool,
}

/// What was made, for the record of whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeWrappingKey {
    /// Its `CKA_ID`.
    pub id: CkaId,
    /// Attributes that this module did not take, by the names of [`MAY_BE_EXCEPTED`] or of PKCS#11. A name of
    /// the former must be excepted in the configuration, with a reason, before the key is used.
    pub lacks: Vec<&'static str>,
}

/// Makes a wrapping key in a token: for development set-ups, and for tokens whose officers have no other
/// tool. Blocks. The module must not be in use in this process.
///
/// # Errors
/// When the module, the token or the login is not there, something has this id, or the module makes no such
/// key.
pub fn make_wrapping_key(
    module: &Path,
    token_label: &str,
    pin_file: &Path,
    id: &CkaId,
    label: &str,
) -> Result<MadeWrappingKey, SignerError> {
    let pin = read_pin(pin_file)?;
    let module = Module::start(module)?;
    let slot = module.slot_of(token_label)?;
    let session = module.pkcs11().open_rw_session(slot).map_err(|error| unavailable(&error))?;
    Login::new(Arc::new(Secret::new(pin)), token_label.to_owned())
        .ensure(&module, slot, &session)?;
    Ok(create_wrapping_key(&session, id, label)?)
}

/// Makes a wrapping key in a session of the user that may write. What not every module takes is left out, as
/// little as possible. It is never `CKA_TRUSTED`: PKCS#11 leaves that to the security officer, and SoftHSM
/// keeps half an object of each try. (SoftHSM's officer can make trusted keys only without `CKA_PRIVATE`:
/// such a key unwraps for everybody without a PIN, and stands unencrypted in the token's files. Private comes
/// first.) Nobody can change it later, so where an officer is to vouch for it, it is made by the vendor's tool.
///
/// # Errors
/// When something has this id, or the module makes no such key.
pub(super) fn create_wrapping_key(
    session: &Session,
    id: &CkaId,
    label: &str,
) -> Result<MadeWrappingKey, Fault> {
    if id.as_bytes().is_empty() {
        return Err(unusable("an empty CKA_ID names no key"));
    }
    if !session.find_objects(&[Attribute::Id(id.as_bytes().to_vec())])?.is_empty() {
        return Err(unusable("the token already has an object with this id"));
    }
    let options: [(&'static str, Vec<Attribute>); 3] = [
        ("modifiable", vec![Attribute::Modifiable(false), Attribute::Copyable(false)]),
        (
            "allowed_mechanisms",
            vec![Attribute::AllowedMechanisms(vec![MechanismType::AES_KEY_WRAP_PAD])],
        ),
        (UNWRAP_TEMPLATE, vec![unwrap_template()]),
    ];
    // All subsets of what is left out, the smallest first.
    let mut left_out: Vec<u8> = (0..1_u8 << options.len()).collect();
    left_out.sort_by_key(|mask| mask.count_ones());
    let mut last = None;
    for mask in left_out {
        let is_out = |index: usize| (mask >> index) & 1 == 1;
        let mut template = plain_template(id, label);
        for (index, (_, option)) in options.iter().enumerate() {
            if !is_out(index) {
                template.extend(option.iter().cloned());
            }
        }
        match session.generate_key(&Mechanism::AesKeyGen, &template) {
            Ok(_) => {
                let lacks = options.iter().enumerate();
                let lacks = lacks.filter(|(index, _)| is_out(*index)).map(|(_, (name, _))| *name);
                let lacks = std::iter::once(TRUSTED).chain(lacks).collect();
                return Ok(MadeWrappingKey { id: id.clone(), lacks });
            }
            Err(error) if is_about_the_template(&error) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    let why = last.map(|error| describe(&error)).unwrap_or_default();
    Err(unusable(format!("the module makes no AES key that wraps and unwraps: {why}")))
}

fn plain_template(id: &CkaId, label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::ValueLen(32.into()),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        Attribute::Id(id.as_bytes().to_vec()),
        Attribute::Label(label.as_bytes().to_vec()),
    ]
}

/// Whatever is unwrapped is private, sensitive and not extractable.
///
/// The binding has no arrays of attributes, so this is the `CK_ATTRIBUTE`s as C has them (section 3.5: type,
/// address of the value, length), each of three machine words. The values live as long as the program.
fn unwrap_template() -> Attribute {
    let word = usize::to_ne_bytes;
    let flag = |kind: usize, value: &'static u8| {
        [word(kind), word(std::ptr::from_ref(value).expose_provenance()), word(1)].concat()
    };
    let array =
        [flag(CKA_PRIVATE, &TRUE), flag(CKA_SENSITIVE, &TRUE), flag(CKA_EXTRACTABLE, &FALSE)];
    Attribute::VendorDefined((AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE), array.concat()))
}

/// Whether a module says that it does not take one of the attributes.
fn is_about_the_template(error: &Error) -> bool {
    matches!(
        return_value(error),
        Some(
            RvError::AttributeReadOnly
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::TemplateInconsistent
                | RvError::TemplateIncomplete
                | RvError::ArgumentsBad
                | RvError::FunctionFailed
        )
    )
}

/// Finds the wrapping key and checks it: what it says of itself, and that what it unwraps cannot be read.
///
/// # Errors
/// Unusable, with the reason, where it is not there or not as it must be.
pub(super) fn find_wrapping_key(
    session: &Session,
    id: &CkaId,
    exceptions: &Exceptions,
) -> Result<WrappingKey, Fault> {
    let template = [
        Attribute::Token(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Id(id.as_bytes().to_vec()),
    ];
    let named = hex::encode(id.as_bytes());
    let handle = match session.find_objects(&template)?.as_slice() {
        [one] => *one,
        [] => return Err(unusable(format!("the token has no wrapping key with the id {named}"))),
        _ => return Err(unusable(format!("the token has several keys with the id {named}"))),
    };
    let is_trusted = check_flags(session, handle, exceptions)?;
    let key = WrappingKey { id: id.clone(), handle, is_trusted };
    if !exceptions.contains_key(UNWRAP_TEMPLATE) {
        must_not_unwrap_readable(session, &key)?;
    }
    Ok(key)
}

/// Answers whether it is trusted.
fn check_flags(
    session: &Session,
    handle: ObjectHandle,
    exceptions: &Exceptions,
) -> Result<bool, Fault> {
    use AttributeType::{
        AlwaysSensitive, Decrypt, Derive, Encrypt, Extractable, NeverExtractable, Private,
        Sensitive, Sign, Trusted, Unwrap, Wrap,
    };
    let told =
        |attribute, wanted: bool, is_excepted: Option<&str>| -> Result<Option<bool>, Fault> {
            let found = flag(session, handle, attribute)?;
            let excepted = is_excepted.is_some_and(|name| exceptions.contains_key(name));
            if found == Some(wanted) || excepted {
                return Ok(found);
            }
            let why = match found {
                Some(_) => format!("the wrapping key's attribute {attribute:?} is not {wanted}"),
                None => format!("the wrapping key does not tell its attribute {attribute:?}"),
            };
            Err(unusable(why))
        };
    let kind = session.get_attributes(handle, &[AttributeType::KeyType])?;
    if kind != [Attribute::KeyType(KeyType::AES)] {
        return Err(unusable("the wrapping key is not an AES key"));
    }
    for (attribute, wanted) in [
        (Wrap, true),
        (Unwrap, true),
        (Encrypt, false),
        (Decrypt, false),
        (Sign, false),
        (Derive, false),
        (Sensitive, true),
        (Extractable, false),
    ] {
        told(attribute, wanted, None)?;
    }
    told(Private, true, Some(PRIVATE))?;
    for attribute in [AlwaysSensitive, NeverExtractable] {
        // Where an older module does not know these, generation inside the token stands for them.
        if flag(session, handle, attribute)?.is_some() {
            told(attribute, true, Some(MADE_INSIDE))?;
        }
    }
    match flag(session, handle, Trusted)? {
        // The module does not know it.
        None => Ok(false),
        Some(_) => Ok(told(Trusted, true, Some(TRUSTED))? == Some(true)),
    }
}

/// Wraps a new key and tries to unwrap it into one that could be read: the module must refuse.
fn must_not_unwrap_readable(session: &Session, key: &WrappingKey) -> Result<(), Fault> {
    let (_, blob) = wrap_new(session, key)?;
    let readable = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    match session.unwrap_key(&Mechanism::AesKeyWrapPad, key.handle, &blob, &readable) {
        Ok(handle) => {
            drop(Temporary::new(session, handle));
            Err(unusable(
                "with the wrapping key, whoever has a session can unwrap keys so that they can be read: it \
                 has no CKA_UNWRAP_TEMPLATE, or the module does not heed it",
            ))
        }
        Err(error) if is_about_the_template(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the token tells of a wrapping key, right or wrong, by the standard's names; `None` if it has no secret
/// key with this id.
pub(super) fn describe_wrapping(
    session: &Session,
    id: &CkaId,
) -> Result<Option<BTreeMap<String, String>>, Fault> {
    let template = [
        Attribute::Token(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Id(id.as_bytes().to_vec()),
    ];
    let [handle] = *session.find_objects(&template)?.as_slice() else {
        return Ok(None);
    };
    let all = [
        ("CKA_SENSITIVE", AttributeType::Sensitive),
        ("CKA_EXTRACTABLE", AttributeType::Extractable),
        ("CKA_ALWAYS_SENSITIVE", AttributeType::AlwaysSensitive),
        ("CKA_NEVER_EXTRACTABLE", AttributeType::NeverExtractable),
        ("CKA_PRIVATE", AttributeType::Private),
        ("CKA_TRUSTED", AttributeType::Trusted),
        ("CKA_WRAP", AttributeType::Wrap),
        ("CKA_UNWRAP", AttributeType::Unwrap),
        ("CKA_ENCRYPT", AttributeType::Encrypt),
        ("CKA_DECRYPT", AttributeType::Decrypt),
        ("CKA_SIGN", AttributeType::Sign),
        ("CKA_DERIVE", AttributeType::Derive),
    ];
    let mut told = BTreeMap::new();
    for (name, attribute) in all {
        let value = flag(session, handle, attribute)?;
        let value = value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
        told.insert(name.to_owned(), value);
    }
    Ok(Some(told))
}

/// One flag, asked for alone; `None` where the module does not tell it.
fn flag(
    session: &Session,
    object: ObjectHandle,
    attribute: AttributeType,
) -> Result<Option<bool>, Error> {
    let value = session.get_attributes(object, &[attribute])?;
    Ok(value.into_iter().next().and_then(|value| match value {
        Attribute::Sensitive(flag)
        | Attribute::Extractable(flag)
        | Attribute::Private(flag)
        | Attribute::Sign(flag)
        | Attribute::AlwaysSensitive(flag)
        | Attribute::NeverExtractable(flag)
        | Attribute::Encrypt(flag)
        | Attribute::Decrypt(flag)
        | Attribute::Wrap(flag)
        | Attribute::Unwrap(flag)
        | Attribute::Trusted(flag)
        | Attribute::Derive(flag) => Some(flag),
        _ => None,
    }))
}
