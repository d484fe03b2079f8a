//! Wrapping keys: made, found, and checked before anything is wrapped under one or unwrapped with it.
//!
//! A wrapping key is an AES-256 object of the token that wraps and unwraps other keys
//! (`CKM_AES_KEY_WRAP_PAD`, PKCS#11 v3.1, section 6.13.3; RFC 5649) and does nothing else. What it says of
//! itself is not enough: `C_UnwrapKey` takes the new key's attributes from its caller, so whoever has a
//! session could unwrap a key to read it. `CKA_UNWRAP_TEMPLATE` (section 4.10) forbids that, and whether the
//! module heeds it is tried out with a key that is thrown away.

use crate::core::key::{CkaId, WrappedKey};
use crate::core::key_report::{
    COPYABLE, MODIFIABLE, NO_UNWRAP_TEMPLATE, NOT_ALWAYS_SENSITIVE, NOT_NEVER_EXTRACTABLE,
    NOT_PRIVATE, NOT_TRUSTED,
};
use crate::hsm::fault::{Fault, describe, return_value, unavailable, unusable};
use crate::hsm::lock;
use crate::hsm::login::{Login, Secret};
use crate::hsm::module::Module;
use crate::hsm::pin::read_pin;
use crate::hsm::trial::{UNWRAP_TEMPLATES, must_not_unwrap_readable, must_unwrap};
use crate::hsm::unwrapped::wrap_new;
use crate::ports::signer::SignerError;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// What a wrapping key lacks, and why it is used all the same: by the names of [`WRAPPING_EXCEPTIONS`](crate::core::key_report::WRAPPING_EXCEPTIONS).
pub type Exceptions = BTreeMap<String, String>;

/// Which key of a token wraps others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappingConfig {
    /// Its `CKA_ID`.
    pub key: CkaId,
    /// What it lacks, by name, with the reason why it is used all the same.
    pub exceptions: Exceptions,
}

/// The wrapping key of a token, found and checked once in each generation of handles.
pub(super) struct Wrapping {
    config: Option<WrappingConfig>,
    verdict: Mutex<Verdict>,
    /// The answer to a look that nobody waits for.
    asked: Mutex<Option<oneshot::Receiver<Result<(), SignerError>>>>,
}

/// What the last look found.
#[derive(Default)]
struct Verdict {
    last: Option<Looked>,
    /// How often it was forgotten: a look that began before says nothing of what is there now.
    forgotten: u64,
}

/// What a look found, and in which generation. A bad one is looked at again.
struct Looked {
    generation: u64,
    at: Instant,
    found: Result<WrappingKey, SignerError>,
}

/// How long a wrapping key that is missing or bad stays so without another look.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Wrapping {
    pub(super) fn new(config: Option<WrappingConfig>) -> Self {
        Self { config, verdict: Mutex::default(), asked: Mutex::default() }
    }

    /// Its id, if one is configured.
    pub(super) fn id(&self) -> Option<&CkaId> {
        self.config.as_ref().map(|config| &config.key)
    }

    /// The wrapping key in this generation of handles. Nothing is locked while the module is asked: threads
    /// that look at the same time each look for themselves, and one that does not come back keeps no other.
    ///
    /// # Errors
    /// Unusable, where none is configured, or it is missing or not as it must be: an alarm.
    pub(super) fn usable(&self, session: &Session, generation: u64) -> Result<WrappingKey, Fault> {
        let Some(config) = &self.config else {
            return Err(unusable("no wrapping_key is configured for its token"));
        };
        let forgotten = {
            let verdict = lock(&self.verdict);
            let known = verdict.last.as_ref().filter(|looked| looked.generation == generation);
            match known.map(|looked| (&looked.found, looked.at.elapsed())) {
                Some((Ok(key), _)) => return Ok(key.clone()),
                Some((Err(error), since)) if since < LOOK_AGAIN => {
                    return Err(error.clone().into());
                }
                _ => verdict.forgotten,
            }
        };
        let found = match find_wrapping_key(session, &config.key, &config.exceptions) {
            Ok(key) => Ok(key),
            Err(Fault::Refused(error)) => Err(error),
            // The module's own trouble says nothing about the key.
            Err(other) => return Err(other),
        };
        if let Err(error) = &found {
            tracing::error!(%error, "ALARM: wrapped keys of this token cannot be used");
        }
        let mut verdict = lock(&self.verdict);
        let newer = verdict.last.as_ref().is_some_and(|looked| looked.generation > generation);
        if !newer && verdict.forgotten == forgotten {
            verdict.last = Some(Looked { generation, at: Instant::now(), found: found.clone() });
        }
        drop(verdict);
        found.map_err(Fault::from)
    }

    /// Why the wrapping key could not be used when it was looked at last. If that was some time ago, `look` is
    /// called to look again.
    pub(super) fn trouble(
        &self,
        look: impl FnOnce(oneshot::Sender<Result<(), SignerError>>),
    ) -> Option<SignerError> {
        let (error, is_old) = {
            let verdict = lock(&self.verdict);
            let looked = verdict.last.as_ref()?;
            (looked.found.as_ref().err()?.clone(), looked.at.elapsed() >= LOOK_AGAIN)
        };
        if is_old {
            let mut asked = lock(&self.asked);
            let is_under_way =
                asked.as_mut().is_some_and(|it| matches!(it.try_recv(), Err(TryRecvError::Empty)));
            if !is_under_way {
                let (answer, answered) = oneshot::channel();
                look(answer);
                *asked = Some(answered);
            }
        }
        Some(error)
    }

    /// Looks again at the next use: one was made now.
    pub(super) fn forget(&self) {
        let mut verdict = lock(&self.verdict);
        verdict.last = None;
        verdict.forgotten = verdict.forgotten.saturating_add(1);
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
    /// What it lacks, because this module did not take it, by the names of exceptions; and
    /// `allowed-mechanisms`, which needs none. The others must be excepted in the configuration, with a reason,
    /// before the key is used.
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
    let copyable = (COPYABLE, Attribute::Copyable(false));
    let mechanisms = vec![MechanismType::AES_KEY_WRAP_PAD];
    let mechanisms = ("allowed-mechanisms", Attribute::AllowedMechanisms(mechanisms));
    // All templates with all options, then with less; what a module does not take is left out last.
    let strict = UNWRAP_TEMPLATES.into_iter().map(Some).chain([None]);
    let mut last = None;
    for template in strict {
        for options in [vec![&copyable, &mechanisms], vec![&copyable], vec![&mechanisms], vec![]] {
            let mut all = plain_template(id, label);
            all.extend(options.iter().map(|(_, attribute)| attribute.clone()));
            all.extend(template.map(|template| template()));
            let handle = match session.generate_key(&Mechanism::AesKeyGen, &all) {
                Ok(handle) => handle,
                Err(error) if is_not_taken(&error) => {
                    last = Some(describe(&error));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // One under which nothing unwraps is no use, and its template is not what the module can do.
            let key = WrappingKey { id: id.clone(), handle, is_trusted: false };
            let works =
                wrap_new(session, &key).and_then(|(_, blob)| must_unwrap(session, &key, &blob));
            if let Err(fault) = works {
                session.destroy_object(handle)?;
                let Fault::Refused(error) = fault else { return Err(fault) };
                last = Some(error.to_string());
                break;
            }
            let mut lacks = vec![NOT_TRUSTED];
            let is_out = |name: &str| options.iter().all(|(other, _)| *other != name);
            lacks.extend([copyable.0, mechanisms.0].into_iter().filter(|name| is_out(name)));
            lacks.extend(template.is_none().then_some(NO_UNWRAP_TEMPLATE));
            return Ok(MadeWrappingKey { id: id.clone(), lacks });
        }
    }
    let why = last.unwrap_or_default();
    Err(unusable(format!(
        "the module makes no AES key that wraps and unwraps and cannot be modified: {why}"
    )))
}

fn plain_template(id: &CkaId, label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        // Never left out: who may modify it makes it decrypt.
        Attribute::Modifiable(false),
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

/// Whether a module says that it does not take one of the attributes.
fn is_not_taken(error: &Error) -> bool {
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
    if !exceptions.contains_key(NO_UNWRAP_TEMPLATE) {
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
        AlwaysSensitive, Copyable, Decrypt, Derive, Encrypt, Extractable, Modifiable,
        NeverExtractable, Private, Sensitive, Sign, Trusted, Unwrap, Wrap,
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
    told(Private, true, Some(NOT_PRIVATE))?;
    // Modules of before v2.20 do not know all of these. Where one does not tell whether a key was ever readable,
    // generation inside the token stands for it. A key that can be modified or copied is made to decrypt by
    // whoever has a session, and what it wrapped is no secret then.
    for (attribute, wanted, excepted) in [
        (AlwaysSensitive, true, NOT_ALWAYS_SENSITIVE),
        (NeverExtractable, true, NOT_NEVER_EXTRACTABLE),
        (Modifiable, false, MODIFIABLE),
        (Copyable, false, COPYABLE),
    ] {
        if flag(session, handle, attribute)?.is_some() {
            told(attribute, wanted, Some(excepted))?;
        }
    }
    match flag(session, handle, Trusted)? {
        // The module does not know it.
        None => Ok(false),
        Some(_) => Ok(told(Trusted, true, Some(NOT_TRUSTED))? == Some(true)),
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
        ("CKA_MODIFIABLE", AttributeType::Modifiable),
        ("CKA_COPYABLE", AttributeType::Copyable),
    ];
    let mut told = BTreeMap::new();
    for (name, attribute) in all {
        let value = flag(session, handle, attribute)?;
        let value = value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
        told.insert(name.to_owned(), value);
    }
    let mechanisms = session.get_attributes(handle, &[AttributeType::AllowedMechanisms])?;
    for mechanism in mechanisms {
        if let Attribute::AllowedMechanisms(list) = mechanism {
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            told.insert("CKA_ALLOWED_MECHANISMS".to_owned(), list.join(" "));
        }
    }
    told.insert(NEEDS_EXCEPTIONS.to_owned(), lacks(session, id, handle)?.join(" "));
    Ok(Some(told))
}

/// What the answer of [`describe_wrapping`] calls the exceptions that the key needs, by name, if any.
pub const NEEDS_EXCEPTIONS: &str = "needs_exceptions";

/// The exceptions without which the key would be refused; what none can allow is not among them.
fn lacks(session: &Session, id: &CkaId, handle: ObjectHandle) -> Result<Vec<&'static str>, Fault> {
    use AttributeType::{
        AlwaysSensitive, Copyable, Modifiable, NeverExtractable, Private, Trusted,
    };
    let mut lacks = Vec::new();
    for (attribute, wrong, name) in [
        (Trusted, false, NOT_TRUSTED),
        (AlwaysSensitive, false, NOT_ALWAYS_SENSITIVE),
        (NeverExtractable, false, NOT_NEVER_EXTRACTABLE),
        (Modifiable, true, MODIFIABLE),
        (Copyable, true, COPYABLE),
    ] {
        if flag(session, handle, attribute)? == Some(wrong) {
            lacks.push(name);
        }
    }
    if flag(session, handle, Private)? != Some(true) {
        lacks.push(NOT_PRIVATE);
    }
    let is_trusted = flag(session, handle, Trusted)? == Some(true);
    let key = WrappingKey { id: id.clone(), handle, is_trusted };
    match must_not_unwrap_readable(session, &key) {
        Ok(()) => {}
        Err(Fault::Refused(_)) => lacks.push(NO_UNWRAP_TEMPLATE),
        // It does not even wrap.
        Err(Fault::Module(error)) => {
            tracing::warn!(error = describe(&error), "a wrapping key was not tried out");
        }
    }
    Ok(lacks)
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
        | Attribute::Modifiable(flag)
        | Attribute::Copyable(flag)
        | Attribute::Derive(flag) => Some(flag),
        _ => None,
    }))
}
