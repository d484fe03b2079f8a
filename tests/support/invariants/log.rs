//! I9: whatever was signed was decided before, and whatever was sent or mined was recorded as signed.

use super::database::AttemptRow;
use super::{Found, Invariants, World, hex};
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::{keccak256, rlp::Rlp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

type Place = (String, String);

/// The leaves about attempts, with their order.
struct Leaves {
    decided: BTreeMap<Place, (usize, Value)>,
    signed: BTreeMap<Place, (usize, Value)>,
}

pub(super) fn check(world: &World, asked: &Invariants, found: &mut Found) {
    let leaves = read(world);
    for attempt in &world.db.attempts {
        one(&leaves, attempt, found);
    }
    for (place, (at, signed)) in &leaves.signed {
        let decided = leaves.decided.get(place);
        let before = decided
            .is_some_and(|(first, decided)| first < at && decided["digest"] == signed["digest"]);
        if !before {
            let what = format!("attempt {} was signed without a DECIDED leaf before", place.1);
            found.say("I9", &place.0, what);
        }
    }
    let recorded: BTreeSet<&str> =
        leaves.signed.values().filter_map(|(_, leaf)| leaf["transaction_hash"].as_str()).collect();
    for raw in &asked.sent {
        let bytes = ::hex::decode(raw.trim_start_matches("0x")).unwrap_or_default();
        let hash = hex(&keccak256(&bytes));
        if !recorded.contains(hash.as_str()) {
            found.say("I9", &hash, "was sent without a SIGNED leaf".to_owned());
        }
    }
    for mined in &world.chain.mined {
        if !recorded.contains(mined.hash.as_str()) && !asked.foreign.contains(&mined.hash) {
            found.say("I9", &mined.hash, "is mined without a SIGNED leaf".to_owned());
        }
    }
}

fn read(world: &World) -> Leaves {
    let mut leaves = Leaves { decided: BTreeMap::new(), signed: BTreeMap::new() };
    for (at, leaf) in world.db.leaves.iter().enumerate() {
        let told: Value = serde_json::from_slice(&leaf.leaf).unwrap_or_default();
        let attempt = told["attempt"].as_str().unwrap_or_default().to_owned();
        let place = (leaf.subject.clone(), attempt);
        match leaf.kind.as_str() {
            "DECIDED" => leaves.decided.entry(place).or_insert((at, told)),
            "SIGNED" => leaves.signed.entry(place).or_insert((at, told)),
            _ => continue,
        };
    }
    leaves
}

/// One attempt, its two leaves and its bytes say the same.
fn one(leaves: &Leaves, attempt: &AttemptRow, found: &mut Found) {
    let place = (attempt.request_id.clone(), attempt.number.to_string());
    let mut say = |what: String| {
        found.say("I9", &attempt.request_id, format!("attempt {}: {what}", attempt.number));
    };
    let digest = hex(&keccak256(&attempt.bytes));
    if hex(&attempt.digest) != digest {
        say(format!("its bytes have digest {digest}, stored is {}", hex(&attempt.digest)));
    }
    match leaves.decided.get(&place) {
        None => say("has no DECIDED leaf".to_owned()),
        Some((_, leaf)) if leaf["digest"] != digest => {
            say(format!("its bytes have digest {digest}, decided was {}", leaf["digest"]));
        }
        Some(_) => {}
    }
    if attempt.signature.is_none() {
        return;
    }
    let Some((_, leaf)) = leaves.signed.get(&place) else {
        say("is signed and has no SIGNED leaf".to_owned());
        return;
    };
    let Some(raw) = &attempt.raw else { return };
    let hash = hex(&keccak256(raw));
    if leaf["transaction_hash"] != hash {
        say(format!("is {hash}, recorded as signed was {}", leaf["transaction_hash"]));
    }
    let signed = TypedTransaction::decode_signed(&Rlp::new(raw)).ok();
    if signed.map(|(tx, _)| hex(tx.sighash().as_bytes())) != Some(digest.clone()) {
        say(format!("the signed bytes are not those that were decided, {digest}"));
    }
}
