//! Wrapped keys over a real SoftHSM: made inside, kept outside, unwrapped to sign, and nothing left behind.

#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    dead_code,
    reason = "a test crate: a panic is how a test fails, and uses a part of the helpers"
)]

#[path = "hsm/softhsm.rs"]
mod softhsm;

use alloy::primitives::keccak256;
use claviger::core::evm::message::message_bytes;
use claviger::core::id::HsmName;
use claviger::core::key::{CkaId, Custody, OperatorKey, WrappedKey};
use claviger::core::key_report::WRAPPING_EXCEPTIONS;
use claviger::hsm::{Exceptions, Hsm, HsmConfig, WrappingConfig, is_signed_by};
use claviger::ports::signer::{Signer, SignerError};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use ethers_core::k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use softhsm::{Outsider, SO_PIN, Token, in_own_process, new_key, operator_key, permit};

fn wrapping_id() -> CkaId {
    CkaId::new(b"wrap".to_vec())
}

/// What SoftHSM's wrapping keys lack.
fn excepted(names: &[&str]) -> Exceptions {
    names.iter().map(|name| ((*name).to_owned(), "a test".to_owned())).collect()
}

fn config(token: &Token, exceptions: &[&str], cache: usize) -> HsmConfig {
    HsmConfig {
        sessions: 1,
        wrapping: Some(WrappingConfig { key: wrapping_id(), exceptions: excepted(exceptions) }),
        wrapped_cache: cache,
        ..token.config()
    }
}

fn open(token: &Token, cache: usize) -> Hsm {
    assert_eq!(token.wrapping_key(&wrapping_id()).lacks, ["not-trusted"]);
    Hsm::open(vec![config(token, &["not-trusted"], cache)]).unwrap()
}

async fn new_wrapped(hsm: &Hsm, number: u8) -> OperatorKey {
    let (public_key, wrapped) = hsm.create_wrapped(&HsmName::default()).await.unwrap();
    let key = operator_key(CkaId::new(vec![number; 16]), number, public_key);
    OperatorKey { custody: Custody::Wrapped(wrapped), ..key }
}

fn blob(key: &OperatorKey) -> WrappedKey {
    match &key.custody {
        Custody::Wrapped(wrapped) => wrapped.clone(),
        Custody::Token => panic!("not wrapped"),
    }
}

fn with_blob(key: &OperatorKey, blob: Vec<u8>) -> OperatorKey {
    let under = wrapping_id();
    OperatorKey { custody: Custody::Wrapped(WrappedKey { blob, under }), ..key.clone() }
}

/// Two implementations say that it is this key's.
async fn assert_signs(hsm: &Hsm, key: &OperatorKey, text: &str) {
    let signature = hsm.sign(permit(key, text)).await.unwrap();
    let digest = keccak256(message_bytes(text));
    assert!(is_signed_by(&digest, &signature, &key.public_key));
    let plain = Signature::from_scalars(signature.r, signature.s).unwrap();
    let id = RecoveryId::new(signature.y_parity, false);
    let recovered = VerifyingKey::recover_from_prehash(digest.as_slice(), &plain, id).unwrap();
    assert_eq!(recovered.to_encoded_point(false).as_bytes(), key.public_key.as_bytes());
}

fn unusable<T: std::fmt::Debug>(answer: Result<T, SignerError>) -> String {
    match answer {
        Err(SignerError::KeyUnusable(why)) => why,
        other => panic!("not unusable: {other:?}"),
    }
}

/// How many objects there are that are not of the token.
fn session_objects(session: &Session) -> usize {
    session.find_objects(&[Attribute::Token(false)]).unwrap().len()
}

fn find(session: &Session, id: &CkaId) -> ObjectHandle {
    let found = session.find_objects(&[Attribute::Id(id.as_bytes().to_vec())]).unwrap();
    assert_eq!(found.len(), 1);
    found[0]
}

fn refused(answer: Result<impl std::fmt::Debug, Error>, values: &[RvError]) {
    match answer {
        Err(Error::Pkcs11(value, _)) if values.contains(&value) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrapped_keys_are_made_and_sign_and_nothing_stays_in_the_hsm() {
    in_own_process(
        "wrapped_keys_are_made_and_sign_and_nothing_stays_in_the_hsm",
        async |token: Token| {
            let hsm = open(&token, 0);
            let outsider = Outsider::new();
            let session = outsider.session();
            let token_objects = session.find_objects(&[]).unwrap().len();
            let mut keys = Vec::new();
            for number in 1..=20 {
                keys.push(new_wrapped(&hsm, number).await);
            }
            for (index, key) in keys.iter().enumerate() {
                assert_eq!(blob(key).under, wrapping_id());
                assert_eq!(blob(key).blob.len(), 72);
                let others = keys.iter().filter(|other| other.address == key.address).count();
                assert_eq!(others, 1);
                // It needs no enrolment, and passes one.
                assert_signs(&hsm, key, &format!("first {index}")).await;
                hsm.enroll(key).await.unwrap();
                assert_signs(&hsm, key, &format!("second {index}")).await;
            }
            assert_eq!(session_objects(&session), 0);
            assert_eq!(session.find_objects(&[]).unwrap().len(), token_objects);
            // Keys of the token are beside them.
            assert_signs(&hsm, &new_key(&hsm, 77).await, "an object").await;
        },
    );
}

#[test]
fn a_session_keeps_as_many_unwrapped_keys_as_it_may_and_the_unused_go_first() {
    in_own_process(
        "a_session_keeps_as_many_unwrapped_keys_as_it_may_and_the_unused_go_first",
        async |token: Token| {
            let hsm = open(&token, 3);
            let outsider = Outsider::new();
            let session = outsider.session();
            let mut keys = Vec::new();
            for number in 1..=5 {
                keys.push(new_wrapped(&hsm, number).await);
                assert_eq!(session_objects(&session), 0);
            }
            let unwrapped = || {
                let from = |from| format!("claviger_hsm_unwrapped_total{{from=\"{from}\"}}");
                (token.metric(&from("blob")), token.metric(&from("cache")))
            };
            for (index, blobs, cached, objects) in [
                (0, 1.0, 0.0, 1),
                (1, 2.0, 0.0, 2),
                (2, 3.0, 0.0, 3),
                (0, 3.0, 1.0, 3),
                // 1 is the longest unused.
                (3, 4.0, 1.0, 3),
                (0, 4.0, 2.0, 3),
                (2, 4.0, 3.0, 3),
                (1, 5.0, 3.0, 3),
                (3, 6.0, 3.0, 3),
            ] {
                assert_signs(&hsm, &keys[index], "once more").await;
                assert_eq!(unwrapped(), (blobs, cached), "{index}");
                assert_eq!(session_objects(&session), objects, "{index}");
            }
            assert!(hsm.close(std::time::Duration::from_secs(10)));
        },
    );
}

#[test]
fn a_blob_that_is_not_the_pinned_keys_signs_nothing() {
    in_own_process("a_blob_that_is_not_the_pinned_keys_signs_nothing", async |token: Token| {
        let hsm = open(&token, 8);
        let outsider = Outsider::new();
        let session = outsider.session();
        let (a, b) = (new_wrapped(&hsm, 1).await, new_wrapped(&hsm, 2).await);
        assert_signs(&hsm, &a, "before").await;
        // Another key's blob in the row: it unwraps, and what it signs does not leave.
        let swapped = with_blob(&a, blob(&b).blob);
        assert!(matches!(
            hsm.sign(permit(&swapped, "swapped")).await,
            Err(SignerError::WrongSignature)
        ));
        assert!(matches!(hsm.ready(&a), Err(SignerError::KeyUnusable(_))), "others go first");
        assert!(matches!(hsm.enroll(&swapped).await, Err(SignerError::WrongSignature)));
        // Once its row is right again and it signs, nothing stands against it.
        assert_signs(&hsm, &a, "put right").await;
        assert!(hsm.ready(&a).is_ok());
        // A key of the token does not become a wrapped one.
        let kept = new_key(&hsm, 9).await;
        let claimed = OperatorKey { custody: Custody::Wrapped(blob(&b)), ..kept.clone() };
        let why = unusable(hsm.sign(permit(&claimed, "claimed")).await);
        assert!(why.contains("is a key of the token"), "{why}");
        assert_signs(&hsm, &kept, "as ever").await;
        // Bytes that are none.
        let good = blob(&a).blob;
        let mut bent: Vec<Vec<u8>> = (0..good.len())
            .map(|at| {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << (at % 8);
                bytes
            })
            .collect();
        bent.extend([good[..64].to_vec(), good[..8].to_vec(), vec![0; 72], vec![7; 4096]]);
        bent.push([good.as_slice(), &[0; 8]].concat());
        bent.push(Vec::new());
        for bytes in bent {
            let what = hex::encode(&bytes);
            let why = unusable(hsm.sign(permit(&with_blob(&a, bytes), "bent")).await);
            assert!(why.contains("do not unwrap"), "{what}: {why}");
        }
        let elsewhere = WrappedKey { under: CkaId::new(vec![9]), ..blob(&a) };
        let elsewhere = OperatorKey { custody: Custody::Wrapped(elsewhere), ..a.clone() };
        let why = unusable(hsm.sign(permit(&elsewhere, "elsewhere")).await);
        assert!(why.contains("wrapped under 09"), "{why}");
        assert_signs(&hsm, &a, "after").await;
        assert_signs(&hsm, &b, "after").await;
        assert!(session_objects(&session) <= 2, "{}", session_objects(&session));
    });
}

#[test]
fn without_its_wrapping_key_a_token_has_no_wrapped_keys_and_the_others_sign() {
    in_own_process(
        "without_its_wrapping_key_a_token_has_no_wrapped_keys_and_the_others_sign",
        async |token: Token| {
            let hsm = open(&token, 0);
            let (kept, wrapped) = (new_key(&hsm, 1).await, new_wrapped(&hsm, 2).await);
            let outsider = Outsider::new();
            let session = outsider.session();
            session.destroy_object(find(&session, &wrapping_id())).unwrap();
            let why = unusable(hsm.sign(permit(&wrapped, "gone")).await);
            assert!(why.contains("no wrapping key"), "{why}");
            assert!(
                unusable(hsm.create_wrapped(&HsmName::default()).await).contains("no wrapping")
            );
            assert_signs(&hsm, &kept, "still here").await;
            // Nothing more is taken for wrapped keys, and that says nothing about each.
            assert!(hsm.ready(&wrapped).is_err_and(|error| error.is_unavailable()));
            assert!(hsm.enroll(&wrapped).await.is_err());
            assert!(hsm.ready(&wrapped).is_err_and(|error| error.is_unavailable()));
            assert!(hsm.ready(&kept).is_ok());
            assert!(hsm.close(std::time::Duration::from_secs(10)));

            // Another one in its place opens none of the old blobs.
            drop(session);
            token.wrapping_key(&wrapping_id());
            let hsm = Hsm::open(vec![config(&token, &["not-trusted"], 0)]).unwrap();
            let why = unusable(hsm.sign(permit(&wrapped, "another")).await);
            assert!(why.contains("do not unwrap"), "{why}");
            assert_signs(&hsm, &new_wrapped(&hsm, 3).await, "new").await;
            assert!(hsm.close(std::time::Duration::from_secs(10)));

            let hsm = token.open(1, 4);
            assert!(unusable(hsm.sign(permit(&wrapped, "x")).await).contains("no wrapping_key"));
            assert_eq!(hsm.wrapping_key(&HsmName::default()), None);
        },
    );
}

#[test]
fn wrapped_keys_sign_again_after_sessions_and_the_login_were_lost() {
    in_own_process(
        "wrapped_keys_sign_again_after_sessions_and_the_login_were_lost",
        async |token: Token| {
            let hsm = open(&token, 8);
            let outsider = Outsider::new();
            let keys = [new_wrapped(&hsm, 1).await, new_wrapped(&hsm, 2).await];
            for key in &keys {
                assert_signs(&hsm, key, "before").await;
            }
            outsider.session().logout().unwrap();
            for key in &keys {
                assert_signs(&hsm, key, "logged out").await;
            }
            Outsider::new().0.finalize().unwrap();
            let flags = cryptoki::context::CInitializeFlags::OS_LOCKING_OK;
            let arguments = cryptoki::context::CInitializeArgs::new(flags);
            Outsider::new().0.initialize(arguments).unwrap();
            for key in &keys {
                assert_signs(&hsm, key, "restarted").await;
            }
            assert_signs(&hsm, &new_wrapped(&hsm, 3).await, "and a new one").await;
        },
    );
}

/// `CKA_SENSITIVE` true and `CKA_EXTRACTABLE` false, as a `CK_ATTRIBUTE` has them.
const SENSITIVE: (usize, &u8) = (0x103, &1);
const EXTRACTABLE: (usize, &u8) = (0x162, &0);

/// An unwrap template that fixes these only.
fn unwrap_template(flags: &[(usize, &'static u8)]) -> Attribute {
    let words = flags
        .iter()
        .flat_map(|(kind, value)| [*kind, std::ptr::from_ref::<u8>(value).expose_provenance(), 1]);
    let bytes: Vec<u8> = words.flat_map(usize::to_ne_bytes).collect();
    Attribute::VendorDefined((AttributeType::VendorDefined(0x4000_0212), bytes))
}

/// A wrapping key as another tool may have made it.
fn foreign_wrapping_key(session: &Session, change: &[Attribute]) -> ObjectHandle {
    let mut template = vec![
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
        Attribute::Derive(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::Id(wrapping_id().as_bytes().to_vec()),
    ];
    for attribute in change {
        let kind = attribute.attribute_type();
        template.retain(|other| other.attribute_type() != kind);
        template.push(attribute.clone());
    }
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap()
}

#[test]
fn a_wrapping_key_that_could_give_keys_away_is_refused_unless_it_is_said_why() {
    in_own_process(
        "a_wrapping_key_that_could_give_keys_away_is_refused_unless_it_is_said_why",
        async |token: Token| {
            for (change, except, reason) in [
                (vec![Attribute::Decrypt(true)], None, "Decrypt is not false"),
                (vec![Attribute::Encrypt(true)], None, "Encrypt is not false"),
                (vec![Attribute::Sign(true)], None, "Sign is not false"),
                (vec![Attribute::Derive(true)], None, "Derive is not false"),
                (vec![Attribute::Unwrap(false)], None, "Unwrap is not true"),
                (vec![Attribute::Extractable(true)], None, "Extractable is not false"),
                (vec![Attribute::Sensitive(false)], None, "Sensitive is not true"),
                (vec![Attribute::Private(false)], Some("not-private"), "Private is not true"),
                (vec![], Some("not-trusted"), "Trusted is not true"),
                (
                    vec![unwrap_template(&[EXTRACTABLE])],
                    Some("no-unwrap-template"),
                    "read in plain",
                ),
                (vec![unwrap_template(&[SENSITIVE])], Some("no-unwrap-template"), "taken out"),
                (
                    vec![unwrap_template(&[SENSITIVE, EXTRACTABLE])],
                    Some("no-unwrap-template"),
                    "used to derive others",
                ),
                (vec![Attribute::Modifiable(true)], Some("modifiable"), "Modifiable is not false"),
                (vec![Attribute::Copyable(true)], Some("copyable"), "Copyable is not false"),
                (vec![], Some("no-unwrap-template"), "unwrap keys so that they can be read"),
            ] {
                let id = {
                    // Opens the module, and logs in.
                    let hsm = token.open(1, 4);
                    let outsider = Outsider::new();
                    let session = outsider.session();
                    let handle = foreign_wrapping_key(&session, &change);
                    drop((session, hsm));
                    handle
                };
                let exceptions = |without: Option<&str>| {
                    let all = [
                        "not-trusted",
                        "no-unwrap-template",
                        "not-private",
                        "modifiable",
                        "copyable",
                    ];
                    all.into_iter().filter(|name| Some(*name) != without).collect::<Vec<_>>()
                };
                let hsm = Hsm::open(vec![config(&token, &exceptions(except), 0)]).unwrap();
                let why = unusable(hsm.create_wrapped(&HsmName::default()).await);
                assert!(why.contains(reason), "{id}: {why}, not {reason}");
                drop(hsm);
                let hsm = Hsm::open(vec![config(&token, &exceptions(None), 0)]).unwrap();
                let made = hsm.create_wrapped(&HsmName::default()).await;
                assert_eq!(made.is_ok(), except.is_some(), "{reason}: {made:?}");
                let outsider = Outsider::new();
                let session = outsider.session();
                assert_eq!(session_objects(&session), 0);
                session.destroy_object(find(&session, &wrapping_id())).unwrap();
            }
            assert_eq!(WRAPPING_EXCEPTIONS.len(), 7);
        },
    );
}

#[test]
fn who_has_a_session_cannot_read_a_wrapped_key() {
    in_own_process("who_has_a_session_cannot_read_a_wrapped_key", async |token: Token| {
        let hsm = open(&token, 4);
        let key = new_wrapped(&hsm, 1).await;
        assert_signs(&hsm, &key, "before").await;
        let outsider = Outsider::new();
        let session = outsider.session();
        let wrapping = find(&session, &wrapping_id());
        let blob = blob(&key).blob;
        let not_permitted = [RvError::KeyFunctionNotPermitted];
        // The blob is no ciphertext to anybody.
        for mechanism in [Mechanism::AesEcb, Mechanism::AesCbc([0; 16])] {
            refused(session.decrypt(&mechanism, wrapping, &blob), &not_permitted);
            refused(session.encrypt(&mechanism, wrapping, &[0; 16]), &not_permitted);
        }
        // It cannot be unwrapped to be read, nor without saying what it may.
        let base = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::EC)];
        for more in [
            vec![Attribute::Sensitive(false), Attribute::Extractable(true)],
            vec![Attribute::Sensitive(true), Attribute::Extractable(true)],
            vec![Attribute::Sensitive(false), Attribute::Extractable(false)],
            vec![Attribute::Private(false)],
            vec![],
        ] {
            let template = [base.as_slice(), &more].concat();
            let unwrapped =
                session.unwrap_key(&Mechanism::AesKeyWrapPad, wrapping, &blob, &template);
            refused(unwrapped, &[RvError::TemplateInconsistent]);
        }
        // Nor can the wrapping key be made to serve otherwise.
        for change in [Attribute::Decrypt(true), Attribute::Encrypt(true), Attribute::Sign(true)] {
            refused(
                session.update_attributes(wrapping, std::slice::from_ref(&change)),
                &[RvError::ActionProhibited, RvError::AttributeReadOnly],
            );
            refused(
                session.copy_object(wrapping, &[change]),
                &[RvError::ActionProhibited, RvError::AttributeReadOnly],
            );
        }
        // What is unwrapped now says nothing.
        let live = session
            .find_objects(&[Attribute::Token(false), Attribute::Class(ObjectClass::PRIVATE_KEY)])
            .unwrap();
        assert_eq!(live.len(), 1);
        let told = session.get_attributes(live[0], &[AttributeType::Value]).unwrap();
        assert!(told.is_empty(), "{told:?}");
        refused(
            session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, live[0]),
            &[RvError::KeyUnextractable],
        );
        refused(
            session.update_attributes(live[0], &[Attribute::Extractable(true)]),
            &[RvError::AttributeReadOnly],
        );
    });
}

#[test]
fn softhsms_officer_can_vouch_only_for_a_wrapping_key_that_is_not_private() {
    in_own_process(
        "softhsms_officer_can_vouch_only_for_a_wrapping_key_that_is_not_private",
        async |token: Token| {
            {
                let module = Outsider::new();
                let flags = cryptoki::context::CInitializeFlags::OS_LOCKING_OK;
                module.0.initialize(cryptoki::context::CInitializeArgs::new(flags)).unwrap();
                let session = module.session();
                session.login(UserType::So, Some(&SO_PIN.to_owned().into())).unwrap();
                let private = [Attribute::Private(true), Attribute::Trusted(true)];
                let template = [
                    Attribute::Token(true),
                    Attribute::ValueLen(32.into()),
                    private[0].clone(),
                    private[1].clone(),
                ];
                refused(
                    session.generate_key(&Mechanism::AesKeyGen, &template),
                    &[RvError::UserNotLoggedIn],
                );
                let public = [Attribute::Private(false), Attribute::Trusted(true)];
                foreign_wrapping_key(&session, &public);
                session.logout().unwrap();
                drop(session);
                module.0.finalize().unwrap();
            }
            // Its keys may be wrapped under trusted keys only; for the price that it needs no PIN.
            let excepted = ["not-private", "no-unwrap-template"];
            let hsm = Hsm::open(vec![config(&token, &excepted, 4)]).unwrap();
            assert_signs(&hsm, &new_wrapped(&hsm, 1).await, "under a trusted key").await;

            let outsider = Outsider::new();
            let session = outsider.session();
            let wrapping = find(&session, &wrapping_id());
            let curve = vec![0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];
            let (_, private) = session
                .generate_key_pair(
                    &Mechanism::EccKeyPairGen,
                    &[Attribute::Token(false), Attribute::EcParams(curve)],
                    &[
                        Attribute::Token(false),
                        Attribute::Sensitive(true),
                        Attribute::Extractable(true),
                        Attribute::WrapWithTrusted(true),
                    ],
                )
                .unwrap();
            let mine = session
                .generate_key(
                    &Mechanism::AesKeyGen,
                    &[
                        Attribute::Token(false),
                        Attribute::ValueLen(32.into()),
                        Attribute::Wrap(true),
                    ],
                )
                .unwrap();
            refused(
                session.wrap_key(&Mechanism::AesKeyWrapPad, mine, private),
                &[RvError::KeyNotWrappable],
            );
            assert_eq!(
                session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, private).unwrap().len(),
                72
            );
        },
    );
}
