//! Key objects in the token: made, found, and checked to be what we pinned.

use crate::core::key::{CkaId, PublicKey};
use crate::core::key_report::{KeyException, KeyFlag, KeyReport, refused, tell};
use crate::hsm::fault::{Fault, unusable};
use crate::hsm::login::is_logged_in;
use crate::hsm::point::{SECP256K1_OID, public_key};
use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The token objects with one `CKA_ID`. Handles are the application's: all its sessions share them.
#[derive(Clone, Default)]
pub(super) struct Found {
    private: Vec<ObjectHandle>,
    public: Vec<ObjectHandle>,
    others: usize,
}

impl Found {
    fn add(&mut self, handle: ObjectHandle, class: Option<ObjectClass>) {
        match class {
            Some(ObjectClass::PRIVATE_KEY) => self.private.push(handle),
            Some(ObjectClass::PUBLIC_KEY) => self.public.push(handle),
            _ => self.others = self.others.saturating_add(1),
        }
    }

    /// The private object, and the one that knows the point: some modules keep no public objects, and there
    /// it is the private one too.
    fn pair(&self) -> Result<(ObjectHandle, ObjectHandle), Fault> {
        let private = match self.private.as_slice() {
            [one] => *one,
            [] => return Err(unusable("the token has no private key with this id")),
            _ => return Err(unusable("the token has several private keys with this id")),
        };
        match self.public.as_slice() {
            [one] => Ok((private, *one)),
            [] => Ok((private, private)),
            _ => Err(unusable("the token has several public keys with this id")),
        }
    }

    /// Whether nothing at all has this id.
    pub(super) const fn is_empty(&self) -> bool {
        self.private.is_empty() && self.public.is_empty() && self.others == 0
    }
}

/// All EC keys of the token by their ids, in one enumeration. `step` is called for each object.
pub(super) fn enumerate(
    session: &Session,
    step: &dyn Fn(),
) -> Result<HashMap<CkaId, Found>, Error> {
    let template = [Attribute::Token(true), Attribute::KeyType(KeyType::EC)];
    let mut all: HashMap<CkaId, Found> = HashMap::new();
    for handle in session.find_objects(&template)? {
        step();
        let (mut class, mut id) = (None, None);
        let wanted = [AttributeType::Class, AttributeType::Id];
        for attribute in session.get_attributes(handle, &wanted)? {
            match attribute {
                Attribute::Class(value) => class = Some(value),
                Attribute::Id(value) => id = Some(CkaId::new(value)),
                _ => {}
            }
        }
        if let Some(id) = id {
            all.entry(id).or_default().add(handle, class);
        }
    }
    must_be_logged_in(session)?;
    Ok(all)
}

/// Whatever has this id now. Costs as much as the token has objects: never on the way of a signature.
pub(super) fn search(session: &Session, id: &CkaId) -> Result<Found, Fault> {
    if id.as_bytes().is_empty() {
        return Err(unusable("an empty CKA_ID names no key"));
    }
    let template = [Attribute::Token(true), Attribute::Id(id.as_bytes().to_vec())];
    let mut found = Found::default();
    for handle in session.find_objects(&template)? {
        let class = session.get_attributes(handle, &[AttributeType::Class])?;
        let class = class.into_iter().find_map(|attribute| match attribute {
            Attribute::Class(class) => Some(class),
            _ => None,
        });
        found.add(handle, class);
    }
    must_be_logged_in(session)?;
    Ok(found)
}

/// Without a login private objects are invisible (section 4.4), and a key that is there would look
/// missing. Asked after a search, so that a login lost before it shows.
pub(super) fn must_be_logged_in(session: &Session) -> Result<(), Error> {
    if is_logged_in(session)? {
        return Ok(());
    }
    Err(Error::Pkcs11(RvError::UserNotLoggedIn, Function::FindObjects))
}

/// Makes the pair (`C_GenerateKeyPair`, section 5.18.2, with `CKM_EC_KEY_PAIR_GEN`,
/// section 6.3). Needs a session that may write.
pub(super) fn generate(session: &Session, id: &CkaId, label: &str) -> Result<(), Error> {
    let id = || Attribute::Id(id.as_bytes().to_vec());
    let label = || Attribute::Label(label.as_bytes().to_vec());
    let public = [
        Attribute::Token(true),
        Attribute::Verify(true),
        Attribute::EcParams(SECP256K1_OID.to_vec()),
        id(),
        label(),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        id(),
        label(),
    ];
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
    Ok(())
}

/// The private key's handle and the public key of what was found, if it is exactly one pair that may
/// sign and do nothing else, and whose private half never was and never will be readable; or if the
/// operator has said that this one may be otherwise.
pub(super) fn checked(
    session: &Session,
    found: &Found,
    exception: Option<&KeyException>,
) -> Result<(ObjectHandle, PublicKey), Fault> {
    let (private, with_point) = found.pair()?;
    let flags = flags(session, private)?;
    let refused = refused(&flags, exception);
    if !refused.is_empty() {
        return Err(unusable(format!("its attributes are wrong: {}", tell(&flags, &refused))));
    }
    Ok((private, read_public_key(session, with_point)?))
}

/// What the token tells of the pair, right or wrong.
pub(super) fn describe_pair(
    session: &Session,
    found: &Found,
    exception: Option<&KeyException>,
) -> Result<KeyReport, Fault> {
    let (private, with_point) = found.pair()?;
    let (mut label, mut mechanisms) = (None, None);
    for wanted in [AttributeType::Label, AttributeType::AllowedMechanisms] {
        for attribute in session.get_attributes(private, &[wanted])? {
            match attribute {
                Attribute::Label(text) => label = Some(String::from_utf8_lossy(&text).into_owned()),
                Attribute::AllowedMechanisms(list) if !list.is_empty() => {
                    mechanisms = Some(list.iter().map(ToString::to_string).collect());
                }
                _ => {}
            }
        }
    }
    Ok(KeyReport {
        public_key: read_public_key(session, with_point)?,
        label: label.filter(|label| !label.is_empty()),
        flags: flags(session, private)?,
        mechanisms,
        exception: exception.cloned(),
    })
}

/// `CKA_LABEL` and `CKA_ID` of all objects of the token. `step` is called for each.
pub(super) fn names(
    session: &Session,
    step: &dyn Fn(),
) -> Result<(BTreeSet<String>, BTreeSet<Vec<u8>>), Error> {
    let (mut labels, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for handle in session.find_objects(&[Attribute::Token(true)])? {
        step();
        for wanted in [AttributeType::Label, AttributeType::Id] {
            for attribute in session.get_attributes(handle, &[wanted])? {
                match attribute {
                    Attribute::Label(text) if !text.is_empty() => {
                        labels.insert(String::from_utf8_lossy(&text).into_owned());
                    }
                    Attribute::Id(id) if !id.is_empty() => {
                        ids.insert(id);
                    }
                    _ => {}
                }
            }
        }
    }
    must_be_logged_in(session)?;
    Ok((labels, ids))
}

/// Every attribute that a key is judged by, each asked for alone: in a template of several, a module that
/// stops at the first that it does not know would leave the others looking false.
fn flags(
    session: &Session,
    object: ObjectHandle,
) -> Result<BTreeMap<KeyFlag, Option<bool>>, Error> {
    let mut flags = BTreeMap::new();
    for flag in KeyFlag::ALL {
        let value = session.get_attributes(object, &[attribute_of(flag)])?;
        let value = value.into_iter().next().and_then(|value| match value {
            Attribute::Sensitive(value)
            | Attribute::Extractable(value)
            | Attribute::Private(value)
            | Attribute::Token(value)
            | Attribute::Sign(value)
            | Attribute::AlwaysSensitive(value)
            | Attribute::NeverExtractable(value)
            | Attribute::Decrypt(value)
            | Attribute::Unwrap(value)
            | Attribute::Derive(value)
            | Attribute::Local(value) => Some(value),
            _ => None,
        });
        flags.insert(flag, value);
    }
    Ok(flags)
}

const fn attribute_of(flag: KeyFlag) -> AttributeType {
    match flag {
        KeyFlag::Sensitive => AttributeType::Sensitive,
        KeyFlag::Extractable => AttributeType::Extractable,
        KeyFlag::Private => AttributeType::Private,
        KeyFlag::Token => AttributeType::Token,
        KeyFlag::Sign => AttributeType::Sign,
        KeyFlag::AlwaysSensitive => AttributeType::AlwaysSensitive,
        KeyFlag::NeverExtractable => AttributeType::NeverExtractable,
        KeyFlag::Decrypt => AttributeType::Decrypt,
        KeyFlag::Unwrap => AttributeType::Unwrap,
        KeyFlag::Derive => AttributeType::Derive,
        KeyFlag::Local => AttributeType::Local,
    }
}

/// The public key of an object, which must be on the curve.
pub(super) fn read_public_key(session: &Session, object: ObjectHandle) -> Result<PublicKey, Fault> {
    let mut point = None;
    for wanted in [AttributeType::EcParams, AttributeType::EcPoint] {
        for attribute in session.get_attributes(object, &[wanted])? {
            match attribute {
                Attribute::EcParams(curve) if curve != SECP256K1_OID => {
                    return Err(unusable("it is not on the curve secp256k1"));
                }
                Attribute::EcPoint(value) => point = Some(value),
                _ => {}
            }
        }
    }
    let point = point.ok_or_else(|| unusable("the token does not tell its public key"))?;
    public_key(&point).ok_or_else(|| unusable("its CKA_EC_POINT is not a point of secp256k1"))
}
