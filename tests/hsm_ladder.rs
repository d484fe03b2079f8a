//! The recovery ladder over a real SoftHSM behind a module that fails when it is told to: what is lost comes
//! back by itself, one token keeps no other from signing, and a PIN is sent once.

#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    reason = "a test crate: a panic is how a test fails"
)]

mod support {
    pub mod pkcs11_faults;
    pub mod services;
    pub mod test_key;
}
#[path = "hsm/ladder_stage.rs"]
mod ladder_stage;
#[path = "hsm/softhsm.rs"]
mod softhsm;

use claviger::core::id::HsmName;
use claviger::core::key::{CkaId, KeyPlace, OperatorKey, PublicKey};
use claviger::core::key_report::{KeyException, KeyFlag};
use claviger::hsm::{Activity, Hsm, HsmConfig, Limits};
use claviger::ports::signer::{HsmNews, Signer, SignerError};
use ethers_core::k256::ecdsa::SigningKey;
use futures::future::join_all;
use ladder_stage::{LIMIT, faulty_calls, is_up, news, set, signs, until, with_faults};
use softhsm::{LABEL, Outsider, Token, new_key, operator_key, place};
use std::time::{Duration, Instant};
use support::test_key;

const SPARE: &str = "spare";
/// How many calls failed, or waited.
fn faults(token: &Token) -> usize {
    faulty_calls(token).len()
}

/// So many sessions are open, and no more were lost sight of.
async fn sessions(token: &Token, count: u32) {
    let line = "claviger_hsm_sessions";
    assert!(token.metrics().contains(line));
    let what = format!("{count} sessions");
    until(&what, || (token.metric(line) - f64::from(count)).abs() < 0.1).await;
}

async fn assert_signs(hsm: &Hsm, key: &OperatorKey, text: &str) {
    if let Err(error) = signs(hsm, key, text).await {
        panic!("{text}: {error}");
    }
}

/// Limits that a test can wait for.
fn quick() -> Limits {
    Limits { keep_alive: Duration::from_millis(40), ..Limits::default() }
}

/// Where threads hang, and the test waits until that is seen.
fn impatient() -> Limits {
    Limits { stalled: Duration::from_millis(1_500), ..quick() }
}

fn two_tokens(token: &Token) -> Vec<HsmConfig> {
    token.init(SPARE).unwrap();
    let spare =
        HsmConfig { name: HsmName::new(SPARE), token_label: SPARE.to_owned(), ..token.config() };
    vec![token.config(), spare]
}

async fn new_spare_key(hsm: &Hsm, number: u8) -> OperatorKey {
    let cka_id = CkaId::new(vec![number; 16]);
    let place = KeyPlace { hsm: HsmName::new(SPARE), cka_id: cka_id.clone() };
    let public_key = hsm.create_key(&place, "spare key").await.unwrap();
    let mut key = operator_key(cka_id, number, public_key);
    key.hsm = HsmName::new(SPARE);
    hsm.enroll(&key).await.unwrap();
    key
}

#[test]
fn a_token_that_is_gone_is_down_at_once_told_once_and_back_without_a_restart() {
    with_faults(
        "a_token_that_is_gone_is_down_at_once_told_once_and_back_without_a_restart",
        async |token: Token| {
            let hsm = token.open(2, 64);
            let key = new_key(&hsm, 1).await;
            set(&token, "* CKR_DEVICE_ERROR");
            let all = join_all((0..16).map(|n| {
                let (hsm, key) = (&hsm, &key);
                async move { signs(hsm, key, &n.to_string()).await }
            }))
            .await;
            for answer in all {
                let Err(SignerError::Down { reason, retry_after_s }) = answer else {
                    panic!("{answer:?}");
                };
                assert!(reason.contains("CKR_DEVICE_ERROR"), "{reason}");
                assert!((1..=30).contains(&retry_after_s));
            }
            assert!(matches!(hsm.ready(&key), Err(SignerError::Down { .. })));
            assert!(matches!(
                hsm.create_key(&place(&CkaId::new(vec![8; 16])), "x").await,
                Err(SignerError::Down { .. })
            ));
            assert!(hsm.health().await.unwrap_err().to_string().contains("CKR_DEVICE_ERROR"));
            let up = "claviger_hsm_up{hsm=\"default\"}";
            assert!(token.metric(up) < 0.5);
            // Probes go on, and callers make none.
            let seen = faults(&token);
            until("it is probed", || faults(&token) > seen + 4).await;
            assert_eq!(news(&hsm), ["down"]);
            set(&token, "");
            until("it is up again", || is_up(&hsm, "default")).await;
            assert_signs(&hsm, &key, "again").await;
            assert_eq!((hsm.ready(&key).is_ok(), token.metric(up) > 0.5), (true, true));
            assert_eq!(news(&hsm), ["down", "up"]);
            let last = hsm.events()[1].number;
            hsm.events_recorded(last);
            assert!(hsm.events().is_empty());
            assert!(token.metric("claviger_hsm_retries_total{class=\"token_gone\"}") >= 1.0);
            sessions(&token, 2).await;
        },
    );
}

#[test]
fn the_last_rung_restarts_the_module_and_no_job_of_a_sibling_token_fails() {
    with_faults(
        "the_last_rung_restarts_the_module_and_no_job_of_a_sibling_token_fails",
        async |token: Token| {
            let hsm = Hsm::open(two_tokens(&token)).unwrap();
            let key = new_key(&hsm, 1).await;
            let spare = new_spare_key(&hsm, 2).await;
            set(&token, "* CKR_DEVICE_REMOVED UNTIL_INITIALIZE @spare");
            assert!(signs(&hsm, &spare, "gone").await.unwrap_err().is_unavailable());
            assert!(hsm.ready(&key).is_ok() && hsm.ready(&spare).is_err());
            let mut count = 0;
            let begun = Instant::now();
            while !is_up(&hsm, SPARE) {
                let texts: Vec<_> = (0..8).map(|n| format!("{count}/{n}")).collect();
                join_all(texts.iter().map(|text| assert_signs(&hsm, &key, text))).await;
                count += 8;
                assert!(begun.elapsed() < LIMIT, "the spare token never came back");
            }
            assert_signs(&hsm, &spare, "back").await;
            assert_signs(&hsm, &key, "and its sibling").await;
            println!("{count} signatures by the sibling until the module was restarted");
            let restarts = "claviger_hsm_recoveries_total{rung=\"restart\"}";
            assert!((token.metric(restarts) - 1.0).abs() < 0.1);
            assert!(token.metric("claviger_hsm_signatures_total{raw=\"wrong\"}") < 0.5);
            assert_eq!(news(&hsm), ["down", "up"]);
            assert!(hsm.events().iter().all(|event| event.hsm.as_str() == SPARE));
            sessions(&token, 4).await;
            faults(&token);
        },
    );
}

#[test]
fn sessions_that_are_closed_under_load_cost_no_job_and_one_login() {
    with_faults(
        "sessions_that_are_closed_under_load_cost_no_job_and_one_login",
        async |token: Token| {
            let hsm = token.open(4, 256);
            let keys = [new_key(&hsm, 1).await, new_key(&hsm, 2).await];
            for round in 1..=20_u8 {
                let how = ["CLOSE_ALL_SESSIONS", "LOGOUT", "RESTART"][usize::from(round % 3)];
                set(&token, &format!("C_Sign {how} 1"));
                let texts: Vec<_> = (0..64).map(|n| format!("{round}/{n}")).collect();
                let signing = texts.iter().zip(keys.iter().cycle());
                join_all(signing.map(|(text, key)| assert_signs(&hsm, key, text))).await;
                let logins = token.metric("claviger_hsm_logins_total{outcome=\"ok\"}");
                let expected = f64::from(round) + 1.0;
                assert!((logins - expected).abs() < 0.1, "{how}: {logins} logins, not {expected}");
            }
            assert!(token.metric("claviger_hsm_signatures_total{raw=\"wrong\"}") < 0.5);
            sessions(&token, 4).await;
            assert!(news(&hsm).is_empty());
        },
    );
}

#[test]
fn a_login_that_is_lost_while_nobody_asks_is_renewed_before_anybody_does() {
    with_faults(
        "a_login_that_is_lost_while_nobody_asks_is_renewed_before_anybody_does",
        async |token: Token| {
            let config = HsmConfig { limits: quick(), ..token.config() };
            let hsm = Hsm::open(vec![config]).unwrap();
            let key = new_key(&hsm, 1).await;
            Outsider::new().session().logout().unwrap();
            let logins = || token.metric("claviger_hsm_logins_total{outcome=\"ok\"}");
            until("it is logged in again", || logins() > 1.5).await;
            assert_signs(&hsm, &key, "as if nothing had been").await;
            assert!((logins() - 2.0).abs() < 0.1);
        },
    );
}

#[test]
fn a_thread_that_does_not_come_back_is_replaced_and_its_late_signature_is_thrown_away() {
    with_faults(
        "a_thread_that_does_not_come_back_is_replaced_and_its_late_signature_is_thrown_away",
        async |token: Token| {
            let config = HsmConfig { sessions: 1, limits: impatient(), ..token.config() };
            let hsm = Hsm::open(vec![config]).unwrap();
            let key = new_key(&hsm, 1).await;
            set(&token, "C_Sign WAIT 1");
            let late = signs(&hsm, &key, "late");
            let others = async {
                until("it hangs", || faults(&token) == 1).await;
                assert_signs(&hsm, &key, "by the thread in its place").await;
                let stalled = "claviger_hsm_stalled_threads{hsm=\"default\"}";
                assert!((token.metric(stalled) - 1.0).abs() < 0.1);
                assert!(hsm.activities().iter().any(|it| matches!(it, Activity::Replaced(_))));
                set(&token, "");
                until("it has ended", || hsm.activities().len() == 1).await;
                until("that is told", || token.metric(stalled) < 0.5).await;
            };
            let (late, ()) = futures::future::join(late, others).await;
            let late = late.unwrap_err().to_string();
            assert!(late.contains("not answered in time"), "{late}");
            assert_signs(&hsm, &key, "and on").await;
            assert!(news(&hsm).is_empty(), "the token was up all the time");
        },
    );
}

#[test]
fn where_no_thread_comes_back_nobody_waits_and_nothing_is_finalised() {
    with_faults(
        "where_no_thread_comes_back_nobody_waits_and_nothing_is_finalised",
        async |token: Token| {
            let config = HsmConfig { sessions: 2, limits: impatient(), ..token.config() };
            let hsm = Hsm::open(vec![config]).unwrap();
            let key = new_key(&hsm, 1).await;
            set(&token, "C_Sign WAIT");
            let begun = Instant::now();
            let all = join_all((0..32).map(|n| {
                let (hsm, key) = (&hsm, &key);
                async move { (n, signs(hsm, key, &n.to_string()).await, begun.elapsed()) }
            }));
            let others = async {
                until("it is down", || !is_up(&hsm, "default")).await;
                assert!(faults(&token) <= 4, "twice the sessions, and no more");
                // The restart is tried, and is not done while threads are inside.
                until("probes were tried", || {
                    matches!(hsm.ready(&key), Err(SignerError::Down { retry_after_s, .. }) if retry_after_s > 1)
                })
                .await;
                set(&token, "");
                until("it is up again", || is_up(&hsm, "default")).await;
                assert_signs(&hsm, &key, "after all").await;
            };
            let (all, ()) = futures::future::join(all, others).await;
            let failed = all.iter().filter(|(_, answer, _)| answer.is_err()).count();
            // Those whose thread was not replaced come back with what they have.
            assert!(failed >= 30, "{failed}");
            let waited = all.iter().filter(|(_, answer, _)| answer.is_err()).map(|it| it.2).max();
            println!("the last one that was refused waited {waited:?}");
            until("only two are left", || hsm.activities().len() == 2).await;
            assert_eq!(news(&hsm), ["down", "up"]);
            faults(&token);
        },
    );
}

#[test]
fn three_errors_that_say_nothing_in_a_row_bring_the_token_down_and_two_do_not() {
    with_faults(
        "three_errors_that_say_nothing_in_a_row_bring_the_token_down_and_two_do_not",
        async |token: Token| {
            let hsm = token.open(1, 64);
            let key = new_key(&hsm, 1).await;
            set(&token, "C_Sign CKR_GENERAL_ERROR 1");
            assert_signs(&hsm, &key, "once more").await;
            set(&token, "C_Sign CKR_FUNCTION_FAILED 2");
            let error = signs(&hsm, &key, "twice").await.unwrap_err();
            assert!(matches!(error, SignerError::Unavailable(_)), "{error}");
            assert_signs(&hsm, &key, "well again").await;
            set(&token, "C_Sign CKR_GENERAL_ERROR");
            assert!(matches!(
                signs(&hsm, &key, "a").await.unwrap_err(),
                SignerError::Unavailable(_)
            ));
            assert!(matches!(signs(&hsm, &key, "b").await.unwrap_err(), SignerError::Down { .. }));
            set(&token, "");
            until("it is up again", || is_up(&hsm, "default")).await;
            // Nothing is asked twice that would fail twice, and nobody is refused for it.
            set(&token, "C_Sign CKR_KEY_FUNCTION_NOT_PERMITTED");
            let seen = faults(&token);
            assert!(signs(&hsm, &key, "c").await.is_err() && is_up(&hsm, "default"));
            assert_eq!(faults(&token), seen + 1);
            set(&token, "C_Sign CKR_HOST_MEMORY");
            assert!(signs(&hsm, &key, "d").await.is_err() && is_up(&hsm, "default"));
            let failures = "claviger_hsm_failures_total{class=\"resources\"}";
            assert!((token.metric(failures) - 1.0).abs() < 0.1);
        },
    );
}

#[test]
fn a_pin_that_one_token_has_refused_is_sent_to_no_token_that_shares_its_file() {
    with_faults(
        "a_pin_that_one_token_has_refused_is_sent_to_no_token_that_shares_its_file",
        async |token: Token| {
            let configs = two_tokens(&token);
            let hsm = Hsm::open(configs.clone()).unwrap();
            let (key, spare) = (new_key(&hsm, 1).await, new_spare_key(&hsm, 2).await);
            let outsider = Outsider::new();
            let session = outsider.session();
            Outsider::change_pin(&session);
            set(&token, "C_Login LOG");
            session.logout().unwrap();
            outsider.session_of(SPARE).logout().unwrap();
            let all = join_all((0..8).map(|n| {
                let (hsm, key) = (&hsm, &key);
                async move { signs(hsm, key, &n.to_string()).await }
            }))
            .await;
            assert!(all.iter().all(|it| matches!(it, Err(SignerError::Condemned(_)))), "{all:?}");
            let error = signs(&hsm, &spare, "the same file").await.unwrap_err();
            assert!(matches!(error, SignerError::Condemned(_)), "{error}");
            assert_eq!(faults(&token), 1, "one login was tried");
            assert_eq!(news(&hsm), ["down", "down"]);
            assert!(hsm.health().await.is_err());
            drop(hsm);

            // A start is ended by it, though another token would be there, and before that is asked.
            set(&token, "C_Login LOG\n# again");
            let opened = Hsm::open(configs).map(drop);
            assert!(matches!(opened, Err(SignerError::Condemned(_))), "{opened:?}");
            assert_eq!(faults(&token), 2);
        },
    );
}

#[test]
fn a_token_that_is_not_there_at_the_start_is_down_until_it_comes_and_the_other_serves() {
    with_faults(
        "a_token_that_is_not_there_at_the_start_is_down_until_it_comes_and_the_other_serves",
        async |token: Token| {
            let configs = two_tokens(&token);
            let hsm = Hsm::open(configs.clone()).unwrap();
            let (key, spare) = (new_key(&hsm, 1).await, new_spare_key(&hsm, 2).await);
            assert!(hsm.close(LIMIT));
            set(&token, "* CKR_TOKEN_NOT_PRESENT @spare");
            let hsm = Hsm::open(configs.clone()).unwrap();
            hsm.enroll(&key).await.unwrap();
            assert!(hsm.enroll(&spare).await.unwrap_err().is_unavailable());
            assert_signs(&hsm, &key, "served").await;
            assert!(matches!(hsm.ready(&spare), Err(SignerError::Down { .. })));
            let told = hsm.health().await.unwrap();
            assert_eq!(told.lines().count(), 2, "{told}");
            set(&token, "");
            until("it has come", || is_up(&hsm, SPARE)).await;
            assert_signs(&hsm, &spare, "enrolled before it signs").await;
            assert_eq!(news(&hsm), ["down", "up"]);
            assert!(hsm.close(LIMIT));
            // Alone, it is an error of the start.
            set(&token, "* CKR_TOKEN_NOT_PRESENT @spare");
            let alone = Hsm::open(configs[1..].to_vec()).map(drop).unwrap_err().to_string();
            assert!(alone.contains("no token is labelled") || alone.contains("CKR_"), "{alone}");
        },
    );
}

#[test]
fn a_standby_signs_by_the_same_key_while_its_home_is_down_and_no_longer() {
    with_faults(
        "a_standby_signs_by_the_same_key_while_its_home_is_down_and_no_longer",
        async |token: Token| {
            let made = SigningKey::from_slice(&[7; 32]).unwrap();
            let id = CkaId::new(vec![7; 16]);
            let mut configs = two_tokens(&token);
            let allows = [KeyFlag::AlwaysSensitive, KeyFlag::NeverExtractable].into();
            let exception =
                KeyException { cka_id: id.clone(), allows, reason: "one key in two".to_owned() };
            for config in &mut configs {
                config.exceptions = vec![exception.clone()];
            }
            configs[0].standby_for = Some(HsmName::new(SPARE));
            let hsm = Hsm::open(configs).unwrap();
            test_key::put(&Outsider::new().session_of(SPARE), &made, id.as_bytes());
            test_key::put(&Outsider::new().session_of(LABEL), &made, id.as_bytes());
            let point = made.verifying_key().to_encoded_point(false);
            let mut key = operator_key(id, 7, PublicKey::from_sec1(point.as_bytes()).unwrap());
            key.hsm = HsmName::new(SPARE);
            hsm.enroll(&key).await.unwrap();
            // One that the standby does not have is no error, and is served by its home alone.
            let only = new_spare_key(&hsm, 8).await;
            let standby = "claviger_hsm_standby_total{outcome=\"signed\"}";
            assert_signs(&hsm, &key, "at home").await;
            assert!(token.metric(standby) < 0.5);

            set(&token, "* CKR_DEVICE_ERROR @spare");
            let texts: Vec<_> = (0..16).map(|n| n.to_string()).collect();
            join_all(texts.iter().map(|text| assert_signs(&hsm, &key, text))).await;
            assert!((token.metric(standby) - 16.0).abs() < 0.1);
            assert!(hsm.ready(&key).is_ok() && hsm.ready(&only).is_err());
            assert!(signs(&hsm, &only, "x").await.unwrap_err().is_unavailable());
            // Nothing is made in a standby.
            let place = KeyPlace { hsm: HsmName::new(SPARE), cka_id: CkaId::new(vec![9; 16]) };
            assert!(hsm.create_key(&place, "new").await.unwrap_err().is_unavailable());
            let place = KeyPlace { hsm: HsmName::default(), ..place };
            assert_eq!(hsm.find_key(&place).await.unwrap(), None);

            set(&token, "");
            until("the home is up again", || is_up(&hsm, SPARE)).await;
            let before = token.metric(standby);
            assert_signs(&hsm, &key, "at home again").await;
            assert!((token.metric(standby) - before).abs() < 0.1);
        },
    );
}

#[test]
fn a_wrong_signature_is_told_with_its_key_and_request_and_the_next_one_is_right() {
    with_faults(
        "a_wrong_signature_is_told_with_its_key_and_request_and_the_next_one_is_right",
        async |token: Token| {
            let hsm = token.open(2, 64);
            let (key, other) = (new_key(&hsm, 1).await, new_key(&hsm, 2).await);
            for how in ["WRONG", "OTHER_KEY", "RANDOM", "SHORT"] {
                set(&token, &format!("C_Sign {how} 1"));
                let answer = signs(&hsm, &key, how).await;
                assert!(matches!(answer, Err(SignerError::WrongSignature)), "{how}: {answer:?}");
                assert_signs(&hsm, &key, "right").await;
                assert_signs(&hsm, &other, "right too").await;
            }
            let events = hsm.events();
            let [event] = events.as_slice() else { panic!("{events:?}") };
            assert_eq!(event.times, 4, "told as one");
            let HsmNews::WrongSignature { key: told, request } = event.news else {
                panic!("{event:?}");
            };
            assert_eq!((told, request.is_some()), (key.id, true));

            // Three in a row, and it is not asked any more until it is enrolled again; others are.
            set(&token, "C_Sign WRONG");
            for text in ["one", "two", "three"] {
                let answer = signs(&hsm, &key, text).await;
                assert!(matches!(answer, Err(SignerError::WrongSignature)), "{answer:?}");
            }
            let seen = faults(&token);
            let answer = signs(&hsm, &key, "four").await;
            assert!(matches!(answer, Err(SignerError::KeyUnusable(_))), "{answer:?}");
            assert!(matches!(hsm.ready(&key), Err(SignerError::KeyUnusable(_))));
            assert_eq!(faults(&token), seen, "it was not asked");
            set(&token, "");
            assert!(signs(&hsm, &key, "still not").await.is_err());
            assert_signs(&hsm, &other, "the other one").await;
            hsm.enroll(&key).await.unwrap();
            assert_signs(&hsm, &key, "enrolled again").await;
        },
    );
}
