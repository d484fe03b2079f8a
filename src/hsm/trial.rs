//! What a wrapping key unwraps cannot be read, whatever its caller asks: said by a template, and tried out.
//!
//! `C_UnwrapKey` takes the attributes of the new key from its caller. `CKA_UNWRAP_TEMPLATE` (PKCS#11 v3.1,
//! section 4.10) fixes them beforehand. Modules heed it in different ways and some not at all, so it is tried
//! with a key that is thrown away: first that the right template unwraps, or a refusal would prove nothing;
//! then that each wrong one is refused, and for what it asks.

use crate::hsm::fault::{Fault, describe, return_value, unusable};
use crate::hsm::unwrapped::{Temporary, unwrapped_template, wrap_new};
use crate::hsm::wrapping::WrappingKey;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::session::Session;

/// The number of `CKA_UNWRAP_TEMPLATE` (PKCS#11 v3.1, section 4.10.2).
const CKA_UNWRAP_TEMPLATE: u64 = 0x4000_0212;
const CKA_CLASS: usize = 0x0000;
const CKA_TOKEN: usize = 0x0001;
const CKA_PRIVATE: usize = 0x0002;
const CKA_KEY_TYPE: usize = 0x0100;
const CKA_SENSITIVE: usize = 0x0103;
const CKA_DECRYPT: usize = 0x0105;
const CKA_UNWRAP: usize = 0x0107;
const CKA_DERIVE: usize = 0x010c;
const CKA_EXTRACTABLE: usize = 0x0162;
static TRUE: u8 = 1;
static FALSE: u8 = 0;
/// `CKO_PRIVATE_KEY` and `CKK_EC`, which are the same number.
static PRIVATE_KEY_AND_EC: usize = 3;

/// Unwrap templates, the strictest first: modules differ in what one may hold. The least that there must be is
/// private, sensitive, not extractable, and good for nothing but signing.
pub(super) const UNWRAP_TEMPLATES: [fn() -> Attribute; 3] = [
    || array(&[&[class(), key_type(), flag(CKA_TOKEN, &FALSE)], &unreadable()]),
    || array(&[&[class(), key_type()], &unreadable()]),
    || array(&[&unreadable()]),
];

/// A `CK_ATTRIBUTE` as C has it (section 3.5: type, address of the value, length), of three machine words. The
/// values live as long as the program.
type Raw = [usize; 3];

fn flag(kind: usize, value: &'static u8) -> Raw {
    [kind, std::ptr::from_ref(value).expose_provenance(), size_of::<u8>()]
}

fn number(kind: usize, value: &'static usize) -> Raw {
    [kind, std::ptr::from_ref(value).expose_provenance(), size_of::<usize>()]
}

fn class() -> Raw {
    number(CKA_CLASS, &PRIVATE_KEY_AND_EC)
}

fn key_type() -> Raw {
    number(CKA_KEY_TYPE, &PRIVATE_KEY_AND_EC)
}

fn unreadable() -> [Raw; 6] {
    [
        flag(CKA_PRIVATE, &TRUE),
        flag(CKA_SENSITIVE, &TRUE),
        flag(CKA_EXTRACTABLE, &FALSE),
        flag(CKA_DECRYPT, &FALSE),
        flag(CKA_UNWRAP, &FALSE),
        flag(CKA_DERIVE, &FALSE),
    ]
}

/// The binding has no arrays of attributes, so this is their bytes.
fn array(parts: &[&[Raw]]) -> Attribute {
    let words = parts.iter().flat_map(|part| part.iter().flatten());
    let bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
    Attribute::VendorDefined((AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE), bytes))
}

/// Whether a module says that what is asked of the new object cannot be. Nothing else is a refusal: an error of
/// the device, or of the arguments, would be one for every template.
fn is_refusal(error: &Error) -> bool {
    matches!(
        return_value(error),
        Some(
            RvError::AttributeReadOnly
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::TemplateInconsistent
        )
    )
}

/// The template of a right key with these attributes instead of its own.
fn but(changes: &[Attribute]) -> Vec<Attribute> {
    let mut template = unwrapped_template();
    for change in changes {
        template.retain(|one| one.attribute_type() != change.attribute_type());
        template.push(change.clone());
    }
    template
}

/// Whether the right template unwraps.
///
/// # Errors
/// The module's own trouble, or that it does not.
pub(super) fn must_unwrap(session: &Session, key: &WrappingKey, blob: &[u8]) -> Result<(), Fault> {
    match session.unwrap_key(&Mechanism::AesKeyWrapPad, key.handle, blob, &unwrapped_template()) {
        Ok(handle) => {
            drop(Temporary::new(session, handle));
            Ok(())
        }
        Err(error) if is_refusal(&error) => {
            let why = describe(&error);
            Err(unusable(format!("with the wrapping key no key unwraps to sign: {why}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Wraps a new key, and unwraps it: as it must be, which must work; and in each way in which it could be read
/// or taken out, all of which the module must refuse.
///
/// # Errors
/// Unusable where one is not refused; the module's own trouble.
pub(super) fn must_not_unwrap_readable(session: &Session, key: &WrappingKey) -> Result<(), Fault> {
    let (_, blob) = wrap_new(session, key)?;
    must_unwrap(session, key, &blob)?;
    // As bytes of no kind, what is unwrapped could be derived from, piece by piece.
    let secret = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Derive(true),
    ];
    for (what, changes) in [
        ("read in plain", &[Attribute::Sensitive(false)][..]),
        ("taken out", &[Attribute::Extractable(true)]),
        ("read in plain", &[Attribute::Sensitive(false), Attribute::Extractable(true)]),
        ("used to derive others", &[Attribute::Derive(true)]),
        ("used as mere bytes", &secret),
    ] {
        match session.unwrap_key(&Mechanism::AesKeyWrapPad, key.handle, &blob, &but(changes)) {
            Ok(handle) => {
                drop(Temporary::new(session, handle));
                return Err(unusable(format!(
                    "with the wrapping key, whoever has a session can unwrap keys so that they can be {what}: \
                     it has no CKA_UNWRAP_TEMPLATE that forbids it, or the module does not heed it"
                )));
            }
            Err(error) if is_refusal(&error) => {}
            Err(error) => {
                let why = describe(&error);
                return Err(unusable(format!(
                    "it is not known whether keys can be unwrapped to be {what}: the module answers {why}, \
                     which is no word about the template"
                )));
            }
        }
    }
    Ok(())
}
