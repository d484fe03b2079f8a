//! Policy bundles, which of them is in force, and who said so.

use crate::fixtures::at;
use alloy::primitives::B256;
use claviger::core::policy::change::Voice;
use claviger::core::principal::Principal;
use claviger::ports::store::{Activation, BundleRejection, BundleRow, NewVoice, Store};
use std::sync::Arc;

on_both!(
    a_bundle_is_kept_once_with_its_files,
    of_two_activations_with_one_number_the_first_stands,
    a_voice_counts_once_for_one_bundle_over_one_activation,
    a_bundle_without_an_author_gets_one_and_a_rejected_one_is_wanted_no_more,
);

fn hash(n: u8) -> B256 {
    B256::repeat_byte(n)
}

fn row(n: u8, ms: i64) -> BundleRow {
    BundleRow {
        hash: hash(n),
        version: format!("v{n}"),
        files_json: format!("{{\"grants.toml\":\"# {n} \\u0000ä\"}}"),
        author: Principal { iss: "issuer".to_owned(), sub: format!("author {n}") },
        at: at(ms),
    }
}

fn activation(serial: i64, n: u8) -> Activation {
    Activation { serial, bundle: hash(n), way: "people".to_owned(), at: at(serial) }
}

async fn keep(store: &Arc<dyn Store>, row: BundleRow) -> bool {
    commit!(store, [row], |unit| unit.keep_bundle(&row).await?).unwrap()
}

async fn activate(store: &Arc<dyn Store>, it: Activation) -> bool {
    commit!(store, [it], |unit| unit.activate_bundle(&it).await?).unwrap()
}

async fn a_bundle_is_kept_once_with_its_files(store: Arc<dyn Store>) {
    assert_eq!(read!(store, [], |unit| unit.bundle(hash(1)).await?), None);
    assert!(keep(&store, row(1, 5)).await);
    assert!(keep(&store, row(2, 6)).await);
    let other = BundleRow { version: "other".to_owned(), ..row(1, 9) };
    assert!(!keep(&store, other).await, "its hash is taken");
    assert_eq!(read!(store, [], |unit| unit.bundle(hash(1)).await?), Some(row(1, 5)));
    let listed = |n, ms| BundleRow { files_json: String::new(), ..row(n, ms) };
    let all = read!(store, [], |unit| unit.bundles(10).await?);
    assert_eq!(all, [listed(2, 6), listed(1, 5)], "newest first");
    assert_eq!(read!(store, [], |unit| unit.bundles(1).await?), [listed(2, 6)]);
}

async fn of_two_activations_with_one_number_the_first_stands(store: Arc<dyn Store>) {
    assert_eq!(read!(store, [], |unit| unit.active_bundle().await?), None);
    assert!(activate(&store, activation(1, 1)).await);
    assert!(!activate(&store, activation(1, 2)).await);
    assert_eq!(read!(store, [], |unit| unit.active_bundle().await?), Some(activation(1, 1)));
    assert!(activate(&store, activation(2, 2)).await);
    assert!(activate(&store, activation(3, 1)).await, "a bundle may be in force again");
    assert_eq!(read!(store, [], |unit| unit.active_bundle().await?), Some(activation(3, 1)));
    let all = read!(store, [], |unit| unit.activations(2).await?);
    assert_eq!(all, [activation(3, 1), activation(2, 2)]);
}

async fn a_voice_counts_once_for_one_bundle_over_one_activation(store: Arc<dyn Store>) {
    let say = |bundle: u8, serial: i64, sub: &str, iss: &str, ms: i64| {
        let who = Principal { iss: iss.to_owned(), sub: sub.to_owned() };
        let reason = "because".to_owned();
        let (store, at) = (Arc::clone(&store), at(ms));
        async move {
            let voice = NewVoice { bundle: hash(bundle), serial, who, reason, at };
            commit!(store, [voice], |unit| unit.add_voice(&voice).await?).unwrap()
        }
    };
    assert!(say(1, 1, "bob", "i", 7).await);
    assert!(say(1, 1, "ann", "i", 5).await);
    assert!(!say(1, 1, "ann", "another issuer", 6).await, "one person");
    assert!(say(2, 1, "ann", "i", 8).await);
    assert!(say(1, 2, "ann", "i", 9).await);
    let voice = |sub: &str, ms| Voice { sub: sub.to_owned(), at: at(ms) };
    let heard = read!(store, [], |unit| unit.voices(hash(1), 1).await?);
    assert_eq!(heard, [voice("ann", 5), voice("bob", 7)], "the first word first");
    assert!(read!(store, [], |unit| unit.voices(hash(2), 2).await?).is_empty());
    assert_eq!(read!(store, [], |unit| unit.wanted_bundles(1).await?), [hash(1), hash(2)]);
    assert_eq!(read!(store, [], |unit| unit.wanted_bundles(2).await?), [hash(1)]);
    assert!(read!(store, [], |unit| unit.wanted_bundles(3).await?).is_empty());
}

async fn a_bundle_without_an_author_gets_one_and_a_rejected_one_is_wanted_no_more(
    store: Arc<dyn Store>,
) {
    let nobody = Principal { iss: String::new(), sub: String::new() };
    let folder = BundleRow { author: nobody, ..row(1, 5) };
    assert!(keep(&store, folder.clone()).await);
    assert!(!keep(&store, folder).await, "nobody again");
    assert!(keep(&store, row(1, 8)).await, "it has an author now");
    assert!(!keep(&store, BundleRow { version: "v".to_owned(), ..row(1, 9) }).await);
    assert_eq!(read!(store, [], |unit| unit.bundle(hash(1)).await?), Some(row(1, 8)));

    let who = Principal { iss: "i".to_owned(), sub: "ann".to_owned() };
    let voice = NewVoice {
        bundle: hash(1),
        serial: 1,
        who: who.clone(),
        reason: "y".to_owned(),
        at: at(1),
    };
    assert!(commit!(store, [voice], |unit| unit.add_voice(&voice).await?).unwrap());
    assert_eq!(read!(store, [], |unit| unit.wanted_bundles(1).await?), [hash(1)]);
    assert_eq!(read!(store, [], |unit| unit.bundle_rejection(hash(1)).await?), None);
    let no = BundleRejection { bundle: hash(1), who, reason: "no".to_owned(), at: at(9) };
    let said = no.clone();
    assert!(commit!(store, [said], |unit| unit.reject_bundle(&said).await?).unwrap());
    let said = BundleRejection { reason: "again".to_owned(), ..no.clone() };
    assert!(!commit!(store, [said], |unit| unit.reject_bundle(&said).await?).unwrap());
    assert_eq!(read!(store, [], |unit| unit.bundle_rejection(hash(1)).await?), Some(no));
    assert!(read!(store, [], |unit| unit.wanted_bundles(1).await?).is_empty());
}
