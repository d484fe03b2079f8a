//! The signer over a real SoftHSM: what leaves is right, what is wrong stays in, what was lost comes
//! back.

#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test crate: a panic is how a test fails"
)]

#[path = "hsm/softhsm.rs"]
mod softhsm;

use alloy::primitives::{Address, keccak256};
use claviger::core::evm::message::message_bytes;
use claviger::core::id::HsmName;
use claviger::core::key::{CkaId, OperatorKey};
use claviger::core::permit::RawSignature;
use claviger::hsm::{Activity, Hsm, HsmConfig};
use claviger::ports::signer::{Signer, SignerError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass};
use ethers_core::k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use ethers_core::types::{H256, RecoveryMessage, Signature as EthersSignature, U256};
use futures::StreamExt;
use futures::future::join_all;
use softhsm::{LABEL, Outsider, Token, in_own_process, new_key, operator_key, permit, place};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const SECP256K1: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];
const HALF_ORDER: &str = "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0";

/// Two other implementations must recover the key's address, with this very parity.
fn assert_signed_by(key: &OperatorKey, text: &str, signature: &RawSignature) {
    assert!(signature.s.as_slice() <= hex::decode(HALF_ORDER).unwrap().as_slice(), "high s");
    let digest = keccak256(message_bytes(text));
    let ethers = EthersSignature {
        r: U256::from_big_endian(&signature.r),
        s: U256::from_big_endian(&signature.s),
        v: 27 + u64::from(signature.y_parity),
    };
    let hash = RecoveryMessage::Hash(H256::from_slice(digest.as_slice()));
    assert_eq!(ethers.recover(hash).unwrap().as_bytes(), key.address.as_slice());
    let plain = Signature::from_scalars(signature.r, signature.s).unwrap();
    let id = RecoveryId::new(signature.y_parity, false);
    let recovered = VerifyingKey::recover_from_prehash(digest.as_slice(), &plain, id).unwrap();
    let point = recovered.to_encoded_point(false);
    assert_eq!(point.as_bytes(), key.public_key.as_bytes());
    assert_eq!(Address::from_raw_public_key(&point.as_bytes()[1..]), key.address);
}

async fn assert_signs(hsm: &Hsm, key: &OperatorKey, text: &str) {
    let signature = hsm.sign(permit(key, text)).await.unwrap();
    assert_signed_by(key, text, &signature);
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn unusable<T: std::fmt::Debug>(answer: Result<T, SignerError>) -> String {
    match answer {
        Err(SignerError::KeyUnusable(why)) => why,
        other => panic!("not KeyUnusable: {other:?}"),
    }
}

fn unavailable<T: std::fmt::Debug>(answer: Result<T, SignerError>) -> String {
    match answer {
        Err(SignerError::Unavailable(why) | SignerError::Condemned(why)) => why,
        Err(SignerError::Down { reason, .. }) => reason,
        other => panic!("not Unavailable: {other:?}"),
    }
}

#[test]
fn two_thousand_signatures_of_several_keys_verify_and_recover() {
    in_own_process(
        "two_thousand_signatures_of_several_keys_verify_and_recover",
        async |token: Token| {
            let hsm = token.open(2, 64);
            let mut keys = Vec::new();
            for number in 1..=8 {
                keys.push(new_key(&hsm, number).await);
            }
            let (hsm, keys) = (&hsm, &keys);
            let begun = Instant::now();
            let signed: Vec<_> = futures::stream::iter(0..2_000)
                .map(|number| async move {
                    let (key, text) = (&keys[number % 8], format!("message {number}"));
                    (key, hsm.sign(permit(key, &text)).await.unwrap(), text)
                })
                .buffer_unordered(32)
                .collect()
                .await;
            let rate = 2_000.0 / begun.elapsed().as_secs_f64();
            let zero_r = signed.iter().filter(|(_, signature, _)| signature.r[0] == 0).count();
            let odd = signed.iter().filter(|(_, signature, _)| signature.y_parity).count();
            for (key, signature, text) in &signed {
                assert_signed_by(key, text, signature);
            }
            let count =
                |raw| token.metric(&format!("claviger_hsm_signatures_total{{raw={raw:?}}}"));
            let (high, low, wrong) = (count("high_s"), count("low_s"), count("wrong"));
            println!(
                "{rate:.0} signatures/s; high s before: {high}, low: {low}, wrong: {wrong}; \
                 r with a leading zero byte: {zero_r}; odd y: {odd}"
            );
            for line in token.metrics().lines().filter(|line| line.contains("sign_duration")) {
                println!("{line}");
            }
            assert!((high + low - 2_008.0).abs() < 0.5 && wrong < 0.5);
            // Fair coins and a byte: bounds that chance does not reach.
            assert!((800.0..1_210.0).contains(&high) && (800..1_200).contains(&odd));
            assert!((token.metric("claviger_hsm_sessions") - 2.0).abs() < 0.1);
        },
    );
}

#[test]
fn a_full_queue_answers_overloaded_at_once() {
    in_own_process("a_full_queue_answers_overloaded_at_once", async |token: Token| {
        let hsm = token.open(1, 4);
        let key = new_key(&hsm, 1).await;
        let permits: Vec<_> = (0..400).map(|n| permit(&key, &n.to_string())).collect();
        let mut waiting: Vec<_> = permits.into_iter().map(|permit| hsm.sign(permit)).collect();
        // One poll of each, on one thread, before any answer is taken: none of them may block.
        let begun = Instant::now();
        let first = futures::future::poll_fn(|context| {
            let poll = |future: &mut _| futures::FutureExt::poll_unpin(future, context);
            std::task::Poll::Ready(waiting.iter_mut().map(poll).collect::<Vec<_>>())
        })
        .await;
        let spent = begun.elapsed();
        let full = |poll: &&std::task::Poll<_>| {
            matches!(poll, std::task::Poll::Ready(Err(SignerError::Overloaded)))
        };
        let overloaded = first.iter().filter(full).count();
        let pending: Vec<_> = waiting
            .into_iter()
            .zip(&first)
            .filter_map(|(future, poll)| poll.is_pending().then_some(future))
            .collect();
        println!("{overloaded} of 400 overloaded in {spent:?}, {} pending", pending.len());
        assert!(overloaded >= 300, "{overloaded}");
        let taken = pending.len();
        let done = join_all(pending).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(done, taken);
        assert_signs(&hsm, &key, "there is room again").await;
    });
}

#[test]
fn a_key_signs_only_when_enrolled_with_its_pinned_public_key() {
    in_own_process(
        "a_key_signs_only_when_enrolled_with_its_pinned_public_key",
        async |token: Token| {
            let hsm = token.open(2, 64);
            let (first_id, second_id) = (CkaId::new(vec![1; 16]), CkaId::new(vec![2; 16]));
            let first = hsm.create_key(&place(&first_id), "first").await.unwrap();
            let key = operator_key(first_id.clone(), 1, first);
            assert!(unusable(hsm.sign(permit(&key, "early")).await).contains("not enrolled"));

            let second = hsm.create_key(&place(&second_id), "second").await.unwrap();
            let swapped = operator_key(first_id.clone(), 1, second);
            assert!(unusable(hsm.enroll(&swapped).await).contains("not the pinned one"));
            assert!(unusable(hsm.sign(permit(&swapped, "swapped")).await).contains("enrolled"));
            let mut misaddressed = key.clone();
            misaddressed.address = second.address();
            assert!(unusable(hsm.enroll(&misaddressed).await).contains("address"));

            hsm.enroll(&key).await.unwrap();
            assert_signs(&hsm, &key, "now").await;
            let other_pin = operator_key(first_id.clone(), 1, second);
            assert!(unusable(hsm.sign(permit(&other_pin, "x")).await).contains("another public"));

            assert_eq!(hsm.find_key(&place(&first_id)).await.unwrap(), Some(first));
            assert_eq!(hsm.find_key(&place(&CkaId::new(vec![9; 16]))).await.unwrap(), None);
            let missing = operator_key(CkaId::new(vec![9; 16]), 9, first);
            assert!(unusable(hsm.enroll(&missing).await).contains("no private key"));
            assert!(unusable(hsm.find_key(&place(&CkaId::new(vec![]))).await).contains("empty"));

            let again = hsm.create_key(&place(&first_id), "again").await;
            assert!(unusable(again).contains("already"));
            let third = CkaId::new(vec![3; 16]);
            let both = join_all([
                hsm.create_key(&place(&third), "a"),
                hsm.create_key(&place(&third), "b"),
            ])
            .await;
            assert_eq!(both.iter().filter(|made| made.is_ok()).count(), 1, "{both:?}");

            // An enrolled key that turns out to be another one loses its right to sign.
            assert!(unusable(hsm.enroll(&swapped).await).contains("not the pinned one"));
            assert!(unusable(hsm.sign(permit(&key, "late")).await).contains("not enrolled"));
        },
    );
}

#[test]
fn a_created_key_cannot_be_read_out() {
    in_own_process("a_created_key_cannot_be_read_out", async |token: Token| {
        let hsm = token.open(1, 4);
        let key = new_key(&hsm, 1).await;
        let outsider = Outsider::new();
        let session = outsider.session();
        let id = Attribute::Id(key.cka_id.as_bytes().to_vec());
        let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), id];
        let found = session.find_objects(&template).unwrap();
        assert_eq!(found.len(), 1);
        let value = session.get_attribute_info(found[0], &[AttributeType::Value]).unwrap();
        assert!(matches!(value[0], AttributeInfo::Sensitive), "{value:?}");
        assert!(session.get_attributes(found[0], &[AttributeType::Value]).unwrap().is_empty());
        let opened = session.update_attributes(found[0], &[Attribute::Extractable(true)]);
        assert!(opened.is_err());
    });
}

#[test]
fn keys_made_carelessly_elsewhere_are_refused() {
    in_own_process("keys_made_carelessly_elsewhere_are_refused", async |token: Token| {
        let hsm = token.open(1, 4);
        let outsider = Outsider::new();
        let session = outsider.session();
        let make = |id: u8, oid: &[u8], extra: &[Attribute]| {
            let id = Attribute::Id(vec![id; 16]);
            let public = [Attribute::Token(true), Attribute::EcParams(oid.to_vec()), id.clone()];
            let private = [Attribute::Token(true), Attribute::Private(true), id];
            let private = [&private, extra].concat();
            session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private).unwrap()
        };
        let sensitive = [Attribute::Sensitive(true), Attribute::Extractable(false)];
        let narrow = [Attribute::Sign(true), Attribute::Decrypt(false), Attribute::Unwrap(false)];
        let signing = [&sensitive[..], &narrow].concat();
        let readable = [Attribute::Sensitive(true), Attribute::Extractable(true)];
        make(1, &SECP256K1, &[&readable[..], &[Attribute::Sign(true)]].concat());
        make(2, &SECP256K1, &[&signing[..], &[Attribute::Derive(true)]].concat());
        make(3, &SECP256K1, &[&sensitive[..], &[Attribute::Sign(false)]].concat());
        let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        make(4, &p256, &signing);
        make(5, &SECP256K1, &signing);
        make(5, &SECP256K1, &signing);
        let (_, private) = make(6, &SECP256K1, &signing);
        session.destroy_object(private).unwrap();
        let why = [
            "CKA_EXTRACTABLE",
            "CKA_DERIVE",
            "CKA_SIGN",
            "curve",
            "several private",
            "no private key",
        ];
        for (id, why) in (1_u8..).zip(why) {
            let id = CkaId::new(vec![id; 16]);
            let told = unusable(hsm.find_key(&place(&id)).await);
            assert!(told.contains(why), "{told}");
            assert!(unusable(hsm.create_key(&place(&id), "over it").await).contains("already"));
        }
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    in_own_process("a_wrong_pin_is_tried_once", async |token: Token| {
        let pin_file = token.file("wrong-pin", "user-0815");
        let opened = Hsm::open(vec![HsmConfig { pin_file, sessions: 4, ..token.config() }]);
        let why = unavailable(opened.map(drop));
        assert!(why.contains("C_Login: CKR_PIN_INCORRECT"), "{why}");
        assert!(!why.contains("0815"), "{why}");
        let refused = "claviger_hsm_logins_total{outcome=\"refused\"}";
        assert!((token.metric(refused) - 1.0).abs() < 0.1);

        // The token counted it, and the right PIN still works and clears the mark.
        let hsm = token.open(2, 4);
        assert!((token.metric("claviger_hsm_logins_total{outcome=\"ok\"}") - 1.0).abs() < 0.1);
        let key = new_key(&hsm, 1).await;

        // The PIN is changed behind our back: one try, then no more by this process.
        let outsider = Outsider::new();
        let session = outsider.session();
        Outsider::change_pin(&session);
        session.logout().unwrap();
        let (first, second) = join_all([0, 1].map(|n| hsm.sign(permit(&key, &n.to_string()))))
            .await
            .into_iter()
            .map(unavailable)
            .fold((String::new(), String::new()), |(_, one), two| (one, two));
        assert!(first.contains("CKR_PIN_INCORRECT"), "{first}");
        assert!(second.contains("CKR_PIN_INCORRECT"), "{second}");
        assert!(unavailable(hsm.health().await).contains("will not try that PIN again"));
        assert!((token.metric(refused) - 2.0).abs() < 0.1);
        let slot = session.get_session_info().unwrap().slot_id();
        let flags = outsider.0.get_token_info(slot).unwrap();
        assert!(flags.user_pin_count_low() && !flags.user_pin_locked());
    });
}

#[test]
fn a_pin_file_that_others_can_read_is_refused_before_the_module_is_touched() {
    in_own_process(
        "a_pin_file_that_others_can_read_is_refused_before_the_module_is_touched",
        async |token: Token| {
            fs::set_permissions(&token.pin_file, fs::Permissions::from_mode(0o644)).unwrap();
            let why = unavailable(Hsm::open(vec![token.config()]).map(drop));
            assert!(why.contains("mode 644") && why.contains("chmod 600"), "{why}");
            assert!(unavailable(token.init("another")).contains("mode 644"));
            assert!(!token.metrics().contains("claviger_hsm_logins_total"));
        },
    );
}

#[test]
fn a_lost_login_and_lost_sessions_come_back_and_the_keys_are_checked_again() {
    in_own_process(
        "a_lost_login_and_lost_sessions_come_back_and_the_keys_are_checked_again",
        async |token: Token| {
            let outsider = Outsider::new();
            let hsm = token.open(2, 64);
            let keys = [new_key(&hsm, 1).await, new_key(&hsm, 2).await];
            for round in 0..20 {
                outsider.session().logout().unwrap();
                let texts: Vec<_> = (0..16).map(|n| format!("{round}/{n}")).collect();
                let signing = texts.iter().zip(keys.iter().cycle());
                join_all(signing.map(|(text, key)| assert_signs(&hsm, key, text))).await;
            }
            let logins = token.metric("claviger_hsm_logins_total{outcome=\"ok\"}");
            assert!((logins - 21.0).abs() < 0.1, "one login for all that wait: {logins}");
            // Without a login private keys are invisible: that must not look like "no such key".
            outsider.session().logout().unwrap();
            assert!(hsm.find_key(&place(&keys[0].cka_id)).await.unwrap().is_some());
            outsider.session().logout().unwrap();
            assert!(
                unusable(hsm.create_key(&place(&keys[0].cka_id), "x").await).contains("already")
            );
            outsider.session().logout().unwrap();
            assert!(hsm.health().await.unwrap().contains("logged in, 2 keys"));

            // A key that is gone when the handles are found anew is an alarm.
            let session = outsider.session();
            let id = Attribute::Id(keys[1].cka_id.as_bytes().to_vec());
            for object in session.find_objects(&[id]).unwrap() {
                session.destroy_object(object).unwrap();
            }
            assert!(unusable(hsm.sign(permit(&keys[1], "gone")).await).contains("no private key"));
            assert_signs(&hsm, &keys[0], "still here").await;

            // So is another key in its place, and it signs nothing.
            let id = || Attribute::Id(keys[0].cka_id.as_bytes().to_vec());
            for object in session.find_objects(&[id()]).unwrap() {
                session.destroy_object(object).unwrap();
            }
            hsm.create_key(&place(&keys[0].cka_id), "in its place").await.unwrap();
            let why = unusable(hsm.sign(permit(&keys[0], "swapped")).await);
            assert!(why.contains("not the pinned one"), "{why}");
        },
    );
}

#[test]
fn a_module_that_was_restarted_is_found_again() {
    in_own_process("a_module_that_was_restarted_is_found_again", async |token: Token| {
        let hsm = token.open(2, 64);
        let keys = [new_key(&hsm, 1).await, new_key(&hsm, 2).await];
        Outsider::new().0.finalize().unwrap();
        let why = unavailable(hsm.sign(permit(&keys[0], "down")).await);
        assert!(why.contains("CKR_CRYPTOKI_NOT_INITIALIZED"), "{why}");
        // It is initialised again by itself, and keys are found again.
        until("the module is back", || hsm.is_up(&HsmName::default()).is_ok()).await;
        assert_signs(&hsm, &keys[0], "up again").await;
        let restarts = "claviger_hsm_recoveries_total{rung=\"restart\"}";
        assert!((token.metric(restarts) - 1.0).abs() < 0.1);
        // Somebody else does both: sessions and handles begin anew, with the numbers of the old ones.
        let flags = cryptoki::context::CInitializeFlags::OS_LOCKING_OK;
        for round in 0..10 {
            Outsider::new().0.finalize().unwrap();
            let arguments = cryptoki::context::CInitializeArgs::new(flags);
            Outsider::new().0.initialize(arguments).unwrap();
            let texts: Vec<_> = (0..16).map(|n| format!("{round}/{n}")).collect();
            let signing = texts.iter().zip(keys.iter().cycle());
            join_all(signing.map(|(text, key)| assert_signs(&hsm, key, text))).await;
        }
        assert!((token.metric(restarts) - 1.0).abs() < 0.1, "no job has failed since");
        let wrong = token.metric("claviger_hsm_signatures_total{raw=\"wrong\"}");
        assert!(wrong < 0.5, "{wrong}");
        assert!(token.metrics().contains("claviger_hsm_sessions"));
        let open = || token.metric("claviger_hsm_sessions");
        until("two sessions are open", || (open() - 2.0).abs() < 0.1).await;
    });
}

#[test]
fn a_token_is_made_once_and_opened_again_after_close() {
    in_own_process("a_token_is_made_once_and_opened_again_after_close", async |token: Token| {
        assert!(unavailable(token.init(LABEL)).contains("exists already"));
        assert!(unavailable(token.init(&"x".repeat(33))).contains("32 bytes"));
        token.init("a second one").unwrap();
        let missing = HsmConfig { token_label: "none".to_owned(), ..token.config() };
        assert!(unavailable(Hsm::open(vec![missing]).map(drop)).contains("no token is labelled"));
        let module = HsmConfig { module: "/nowhere.so".into(), ..token.config() };
        assert!(unavailable(Hsm::open(vec![module]).map(drop)).contains("does not load"));

        let hsm = token.open(2, 4);
        let key = new_key(&hsm, 1).await;
        let second = unavailable(Hsm::open(vec![token.config()]).map(drop));
        assert!(second.contains("CKR_CRYPTOKI_ALREADY_INITIALIZED"), "{second}");
        assert_signs(&hsm, &key, "a second opening does no harm").await;
        println!("{}", hsm.health().await.unwrap());
        assert!(futures::poll!(hsm.sign(permit(&key, "nobody waits"))).is_pending());
        assert!(hsm.close(Duration::from_secs(10)));
        assert!(token.metric("claviger_hsm_sessions").abs() < 0.1);

        let hsm = token.open(2, 4);
        assert!(unusable(hsm.sign(permit(&key, "early")).await).contains("not enrolled"));
        hsm.enroll(&key).await.unwrap();
        assert_signs(&hsm, &key, "after a restart").await;
        assert_eq!(hsm.activities().len(), 2);
        assert!(!hsm.activities().contains(&Activity::Gone));
        assert!(hsm.close(Duration::from_secs(10)));
    });
}
