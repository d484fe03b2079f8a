//! Faults that do not say that the token is gone, and calls that hang where nobody asked for anything: all of
//! them end on the recovery ladder, behind a module that fails when it is told to.

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
}
#[path = "hsm/ladder_stage.rs"]
mod ladder_stage;
#[path = "hsm/softhsm.rs"]
mod softhsm;

use claviger::core::key::CkaId;
use claviger::hsm::{Activity, Hsm, HsmConfig, Limits};
use claviger::ports::signer::{Signer, SignerError};
use cryptoki::object::Attribute;
use futures::future::join_all;
use ladder_stage::{faulty_calls, is_up, news, set, signs, until, with_faults};
use softhsm::{Outsider, Token, new_key, place};
use std::time::{Duration, Instant};

const RESTARTS: &str = "claviger_hsm_recoveries_total{rung=\"restart\"}";
const REFUSED: &str = "claviger_hsm_logins_total{outcome=\"refused\"}";

/// How many calls of a function failed, or waited, or were told.
fn faults(token: &Token, function: &str) -> usize {
    faulty_calls(token).iter().filter(|call| *call == function).count()
}

fn open(token: &Token, sessions: usize, keep_alive: u64, stalled: u64) -> Hsm {
    let limits = Limits {
        keep_alive: Duration::from_millis(keep_alive),
        stalled: Duration::from_millis(stalled),
        ..Limits::default()
    };
    Hsm::open(vec![HsmConfig { sessions, limits, ..token.config() }]).unwrap()
}

#[test]
fn what_only_a_new_start_of_the_module_cures_is_cured_by_itself() {
    with_faults(
        "what_only_a_new_start_of_the_module_cures_is_cured_by_itself",
        async |token: Token| {
            let hsm = token.open(2, 64);
            let key = new_key(&hsm, 1).await;
            let faults = [
                "C_Sign CKR_SESSION_CLOSED",
                "C_Sign CKR_USER_NOT_LOGGED_IN",
                "C_SignInit CKR_KEY_HANDLE_INVALID",
                "C_SignInit CKR_OPERATION_ACTIVE",
            ];
            for (round, fault) in (1_u8..).zip(faults) {
                set(&token, &format!("{fault} UNTIL_INITIALIZE"));
                let mut asked = 0;
                while is_up(&hsm, "default") {
                    assert!(signs(&hsm, &key, "not yet").await.is_err(), "{fault}");
                    // What answers readiness says nothing about signatures.
                    let _ = hsm.health().await;
                    asked += 1;
                    assert!(asked <= 3, "{fault}: the third in a row is one too many");
                }
                until("it is up again", || is_up(&hsm, "default")).await;
                assert!((token.metric(RESTARTS) - f64::from(round)).abs() < 0.1, "{fault}");
                signs(&hsm, &key, "cured").await.unwrap();
            }
            assert_eq!(news(&hsm), ["down", "up"].repeat(faults.len()));
        },
    );
}

#[test]
fn a_token_without_a_session_left_is_down_and_comes_back() {
    with_faults("a_token_without_a_session_left_is_down_and_comes_back", async |token: Token| {
        let hsm = token.open(1, 64);
        let key = new_key(&hsm, 1).await;
        set(&token, "C_Sign CKR_SESSION_HANDLE_INVALID 1\nC_OpenSession CKR_SESSION_COUNT");
        for _ in 0..3 {
            assert!(is_up(&hsm, "default") && signs(&hsm, &key, "no session").await.is_err());
        }
        assert!(!is_up(&hsm, "default"));
        set(&token, "");
        until("it is up again", || is_up(&hsm, "default")).await;
        signs(&hsm, &key, "again").await.unwrap();
    });
}

#[test]
fn one_key_that_fails_takes_no_token_down_while_another_signs() {
    with_faults(
        "one_key_that_fails_takes_no_token_down_while_another_signs",
        async |token: Token| {
            let hsm = token.open(1, 64);
            let (key, other) = (new_key(&hsm, 1).await, new_key(&hsm, 2).await);
            for _ in 0..4 {
                // The proof of the other key is the third call.
                set(&token, "C_Sign CKR_FUNCTION_REJECTED 2");
                assert!(signs(&hsm, &key, "rejected").await.is_err());
                set(&token, "C_Sign CKR_FUNCTION_REJECTED 1");
                assert!(signs(&hsm, &key, "rejected again").await.is_err());
                assert!(is_up(&hsm, "default"));
            }
            assert!(news(&hsm).is_empty());
            signs(&hsm, &other, "as ever").await.unwrap();
            // Where the other one does not sign either, it is the token.
            set(&token, "C_Sign CKR_FUNCTION_REJECTED");
            assert!(signs(&hsm, &key, "rejected").await.is_err());
            assert!(signs(&hsm, &key, "rejected").await.is_err());
            assert!(!is_up(&hsm, "default"));
        },
    );
}

#[test]
fn a_slot_that_has_another_token_gets_no_pin() {
    with_faults("a_slot_that_has_another_token_gets_no_pin", async |token: Token| {
        let hsm = token.open(1, 64);
        let key = new_key(&hsm, 1).await;
        let outsider = Outsider::new();
        let session = outsider.session();
        set(&token, "C_Login LOG\nC_GetTokenInfo OTHER_LABEL");
        session.logout().unwrap();
        assert!(signs(&hsm, &key, "elsewhere").await.is_err() && !is_up(&hsm, "default"));
        let probed = faults(&token, "C_GetTokenInfo");
        until("it is searched", || faults(&token, "C_GetTokenInfo") > probed + 2).await;
        assert_eq!(faults(&token, "C_Login"), 0, "no PIN was sent");
        set(&token, "C_Login LOG");
        until("it is found again", || is_up(&hsm, "default")).await;
        signs(&hsm, &key, "found").await.unwrap();
        assert_eq!(faults(&token, "C_Login"), 1);
        // Once wrong, it is searched again at once.
        set(&token, "C_GetTokenInfo OTHER_LABEL 1");
        session.logout().unwrap();
        signs(&hsm, &key, "found at once").await.unwrap();
        assert_eq!(news(&hsm), ["down", "up"]);
    });
}

#[test]
fn a_pin_that_is_refused_in_other_words_is_not_sent_for_ever() {
    with_faults(
        "a_pin_that_is_refused_in_other_words_is_not_sent_for_ever",
        async |token: Token| {
            let outsider = Outsider::new();
            let words = [
                ("CKR_ARGUMENTS_BAD", 1),
                ("CKR_OBJECT_HANDLE_INVALID", 1),
                ("CKR_GENERAL_ERROR", 3),
                ("CKR_FUNCTION_REJECTED", 3),
            ];
            for (number, (word, most)) in (1_u8..).zip(words) {
                let hsm = token.open(2, 64);
                let key = new_key(&hsm, number).await;
                set(&token, &format!("C_Login {word}"));
                let (seen, refused) = (faults(&token, "C_Login"), token.metric(REFUSED));
                let session = outsider.session();
                session.logout().unwrap();
                // Each job tries twice, at most; then probes do.
                while !matches!(hsm.ready(&key), Err(SignerError::Condemned(_))) {
                    assert!(faults(&token, "C_Login") < seen + most, "{word}: sent too often");
                    let _ = hsm.health().await;
                }
                let answer = signs(&hsm, &key, "no more").await;
                assert!(matches!(answer, Err(SignerError::Condemned(_))), "{word}: {answer:?}");
                assert_eq!(faults(&token, "C_Login"), seen + most, "{word}");
                assert!((token.metric(REFUSED) - refused - 1.0).abs() < 0.1);
                drop((session, hsm));
                // A start ends by it: who starts it again would send it again.
                set(&token, &format!("C_Login {word}"));
                let opened = Hsm::open(vec![token.config()]).map(drop);
                assert!(matches!(opened, Err(SignerError::Condemned(_))), "{word}: {opened:?}");
                set(&token, "");
            }
        },
    );
}

#[test]
fn a_session_that_cannot_be_closed_costs_one_thread_and_no_other() {
    with_faults(
        "a_session_that_cannot_be_closed_costs_one_thread_and_no_other",
        async |token: Token| {
            let hsm = open(&token, 1, 10_000, 1_000);
            let key = new_key(&hsm, 1).await;
            // The session is spoilt, so it is closed before the job is done once more.
            set(&token, "C_Sign CKR_OPERATION_NOT_INITIALIZED 1\nC_CloseSession WAIT 1");
            let hangs = signs(&hsm, &key, "hangs");
            let others = async {
                until("it hangs", || faults(&token, "C_CloseSession") == 1).await;
                let is_replaced = |it: &Activity| matches!(it, Activity::Replaced(_));
                until("that is seen", || hsm.activities().iter().any(is_replaced)).await;
                signs(&hsm, &key, "by the thread in its place").await.unwrap();
                set(&token, "");
                until("it has ended", || hsm.activities().len() == 1).await;
            };
            let (late, ()) = futures::future::join(hangs, others).await;
            assert!(late.is_err());
            assert!(is_up(&hsm, "default"));
        },
    );
}

#[test]
fn a_module_that_stays_closed_takes_its_tokens_down_until_it_opens() {
    with_faults(
        "a_module_that_stays_closed_takes_its_tokens_down_until_it_opens",
        async |token: Token| {
            let hsm = open(&token, 2, 10_000, 1_000);
            let key = new_key(&hsm, 1).await;
            // The other session is looked through while nobody else may enter, and that hangs.
            set(&token, "C_Sign CLOSE_ALL_SESSIONS 1\nC_GetSessionInfo WAIT 1");
            let hangs = signs(&hsm, &key, "hangs");
            let others = async {
                until("it hangs", || faults(&token, "C_GetSessionInfo") == 1).await;
                until("it is down", || !is_up(&hsm, "default")).await;
                let answer = signs(&hsm, &key, "nobody waits").await;
                assert!(matches!(answer, Err(SignerError::Down { .. })), "{answer:?}");
                set(&token, "");
                until("it is up again", || is_up(&hsm, "default")).await;
                signs(&hsm, &key, "after all").await.unwrap();
            };
            let (_, ()) = futures::future::join(hangs, others).await;
        },
    );
}

#[test]
fn a_key_creation_that_hangs_leaves_the_other_threads_to_others() {
    with_faults(
        "a_key_creation_that_hangs_leaves_the_other_threads_to_others",
        async |token: Token| {
            let hsm = open(&token, 2, 10_000, 60_000);
            let key = new_key(&hsm, 1).await;
            set(&token, "C_GenerateKeyPair WAIT 1");
            let id = CkaId::new(vec![9; 16]);
            let home = place(&id);
            let first = hsm.create_key(&home, "hangs");
            let others = async {
                until("it hangs", || faults(&token, "C_GenerateKeyPair") == 1).await;
                let again = join_all((0..4).map(|_| hsm.create_key(&home, "the same"))).await;
                let is_refused = |it: &Result<_, _>| matches!(it, Err(SignerError::Overloaded));
                assert!(again.iter().all(is_refused), "{again:?}");
                signs(&hsm, &key, "by the other thread").await.unwrap();
                let _ = new_key(&hsm, 8).await;
                set(&token, "");
            };
            let (first, ()) = futures::future::join(first, others).await;
            assert!(first.is_ok());
        },
    );
}

#[test]
fn a_login_that_hangs_is_waited_for_by_nobody_for_long() {
    with_faults("a_login_that_hangs_is_waited_for_by_nobody_for_long", async |token: Token| {
        let hsm = open(&token, 2, 10_000, 1_500);
        let key = new_key(&hsm, 1).await;
        set(&token, "C_Login WAIT");
        Outsider::new().session().logout().unwrap();
        let (hsm, key) = (&hsm, &key);
        let begun = Instant::now();
        let all = join_all((0..32).map(|n| async move { signs(hsm, key, &n.to_string()).await }));
        let others = async {
            until("it is down", || !is_up(hsm, "default")).await;
            println!("down after {:?}", begun.elapsed());
            assert_eq!(faults(&token, "C_Login"), 1, "the PIN is under way once");
            set(&token, "");
            until("it is up again", || is_up(hsm, "default")).await;
            signs(hsm, key, "logged in").await.unwrap();
        };
        let (all, ()) = futures::future::join(all, others).await;
        assert!(all.iter().any(Result::is_err));
    });
}

#[test]
fn a_probe_that_hangs_is_seen_and_another_one_finds_the_token() {
    with_faults(
        "a_probe_that_hangs_is_seen_and_another_one_finds_the_token",
        async |token: Token| {
            let hsm = open(&token, 1, 10_000, 400);
            let key = new_key(&hsm, 1).await;
            set(&token, "C_GetSlotList WAIT 1\nC_Sign CKR_DEVICE_ERROR 2");
            assert!(signs(&hsm, &key, "gone").await.is_err() && !is_up(&hsm, "default"));
            until("the probe hangs", || faults(&token, "C_GetSlotList") >= 1).await;
            let stalled = "claviger_hsm_stalled_threads{hsm=\"default\"}";
            until("that is told", || token.metric(stalled) > 0.5).await;
            until("another probe finds it", || is_up(&hsm, "default")).await;
            signs(&hsm, &key, "found").await.unwrap();
            set(&token, "");
            until("the first one has ended", || token.metric(stalled) < 0.5).await;
            assert_eq!(news(&hsm), ["down", "up"]);
        },
    );
}

#[test]
fn one_spoilt_key_does_not_keep_its_token_down() {
    with_faults("one_spoilt_key_does_not_keep_its_token_down", async |token: Token| {
        let hsm = token.open(1, 64);
        let mut keys = Vec::new();
        for number in 1..=4 {
            keys.push(new_key(&hsm, number).await);
        }
        set(&token, "* CKR_DEVICE_ERROR");
        assert!(signs(&hsm, &keys[0], "gone").await.is_err() && !is_up(&hsm, "default"));
        set(&token, "C_Sign WRONG 1");
        until("it is up again", || is_up(&hsm, "default")).await;
        assert_eq!(news(&hsm), ["down", "wrong", "up"]);
        for key in &keys {
            signs(&hsm, key, "also the one that was withdrawn, once it proves itself")
                .await
                .unwrap();
        }
    });
}

#[test]
fn a_token_that_came_back_without_its_keys_is_not_up() {
    with_faults("a_token_that_came_back_without_its_keys_is_not_up", async |token: Token| {
        let hsm = token.open(1, 64);
        let key = new_key(&hsm, 1).await;
        set(&token, "* CKR_DEVICE_ERROR");
        assert!(signs(&hsm, &key, "gone").await.is_err() && !is_up(&hsm, "default"));
        // It is there, and its key does not sign.
        set(&token, "C_Sign CKR_KEY_FUNCTION_NOT_PERMITTED");
        let told = |what: &str| match hsm.ready(&key) {
            Err(SignerError::Down { reason, .. }) => reason.contains(what),
            _ => false,
        };
        until("it says why", || told("CKR_KEY_FUNCTION_NOT_PERMITTED")).await;
        set(&token, "");
        until("it is up again", || is_up(&hsm, "default")).await;
        signs(&hsm, &key, "back").await.unwrap();
        // It is there, and the key is not.
        let session = Outsider::new().session();
        let id = Attribute::Id(key.cka_id.as_bytes().to_vec());
        for object in session.find_objects(&[id]).unwrap() {
            session.destroy_object(object).unwrap();
        }
        set(&token, "* CKR_DEVICE_ERROR");
        assert!(signs(&hsm, &key, "gone again").await.is_err() && !is_up(&hsm, "default"));
        set(&token, "");
        until("it says so", || told("no private key with this id")).await;
        assert!(!is_up(&hsm, "default"));
    });
}

#[test]
fn an_idle_session_is_used_for_a_search() {
    with_faults("an_idle_session_is_used_for_a_search", async |token: Token| {
        let hsm = open(&token, 1, 40, 5_000);
        set(&token, "C_FindObjectsInit LOG");
        until("it searches", || faults(&token, "C_FindObjectsInit") >= 3).await;
        let _ = new_key(&hsm, 1).await;
        let seen = faults(&token, "C_FindObjectsInit");
        until("it goes on", || faults(&token, "C_FindObjectsInit") > seen + 2).await;
        assert!(news(&hsm).is_empty());
    });
}
