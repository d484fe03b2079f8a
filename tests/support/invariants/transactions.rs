//! I1 to I5 and I7: nonces, contents, ends and fees.

use super::database::{AttemptRow, TransactionRow};
use super::{Found, Invariants, NO_OP, World, amount, chain, hex};
use ethers_core::types::U256;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// What a no-op may have: as much as the nodes estimate, which some chains put above what it needs on
/// Ethereum, within reason.
const NO_OP_GAS: RangeInclusive<u64> = 21_000..=1_000_000;

/// Ends, and whether something of the request's nonce must be final on the chain for them.
const ENDS: &[&str] = &["finalized", "reverted", "failed", "rejected", "cancelled", "expired"];

pub(super) fn check(world: &World, asked: &Invariants, found: &mut Found) {
    for mined in &world.chain.mined {
        whose(world, asked, mined, found);
    }
    for row in rows(world) {
        one_mined(world, row, found);
        end(world, asked, row, found);
        fees(world, asked, row, found);
    }
    nonces(world, found);
    gaps(world, asked, found);
}

fn rows(world: &World) -> impl Iterator<Item = &TransactionRow> {
    let chain_id = world.chain.chain_id;
    world.db.transactions.iter().filter(move |row| row.chain_id == chain_id)
}

fn decoded(attempt: &AttemptRow, from: &str) -> Option<TypedTransaction> {
    chain::decode(&hex(attempt.raw.as_ref()?), from)
}

/// I1.
fn one_mined(world: &World, row: &TransactionRow, found: &mut Found) {
    let mined: Vec<&str> = world.mined_of(&row.id).map(|mined| mined.hash.as_str()).collect();
    if mined.len() > 1 {
        found.say(
            "I1",
            &row.id,
            format!("{} of its transactions are mined: {mined:?}", mined.len()),
        );
    }
}

/// I4: every mined transaction of an account of ours is an attempt of ours with the approved content.
fn whose(world: &World, asked: &Invariants, mined: &chain::Mined, found: &mut Found) {
    let foreign = asked.foreign.contains(&mined.hash);
    let Some((request, ..)) = world.attempts.get(&mined.hash) else {
        if !foreign {
            let what = format!("nonce {} is used by {}", mined.nonce, mined.hash);
            found.say("I4", &mined.from, format!("{what}, which is no attempt of ours"));
        }
        return;
    };
    let Some(transaction) = &mined.decoded else {
        found.say("I4", request, format!("{} is not signed by {}", mined.hash, mined.from));
        return;
    };
    let Some(row) = world.db.transaction(request) else {
        // An external account's: its caller sends it, and what was decided is looked at in I9.
        return;
    };
    if world.reason(&mined.hash) == NO_OP {
        no_op(row, transaction, found);
        return;
    }
    let approved = [("the row", Content::of_row(row)), ("the leaf", Content::of_leaf(world, row))];
    let on_chain = Content::of(transaction);
    for (source, approved) in approved {
        if approved.as_ref() != Some(&on_chain) {
            let what = format!("mined is {on_chain:?}, approved by {source} is {approved:?}");
            found.say("I4", request, what);
        }
    }
}

fn no_op(row: &TransactionRow, transaction: &TypedTransaction, found: &mut Found) {
    let is_nothing = Content::of(transaction).is_no_op_of(&hex(&row.address));
    if !is_nothing {
        found.say("I4", &row.id, format!("its no-op does something: {transaction:?}"));
    }
}

/// What was approved, and all of it: a transaction without fees, nonce and sender.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    chain_id: u64,
    kind: String,
    to: Option<String>,
    value: U256,
    data: String,
    gas: u64,
    /// `address slot slot;address …`
    access_list: String,
}

impl Content {
    fn of(transaction: &TypedTransaction) -> Self {
        let (kind, list) = match transaction {
            TypedTransaction::Legacy(_) => ("legacy", None),
            TypedTransaction::Eip2930(tx) => ("eip2930", Some(&tx.access_list)),
            TypedTransaction::Eip1559(tx) => ("eip1559", Some(&tx.access_list)),
        };
        let items = list.into_iter().flat_map(|list| &list.0).map(|item| {
            let slots = item.storage_keys.iter().map(|slot| format!(" {slot:?}"));
            format!("{:?}{}", item.address, slots.collect::<String>())
        });
        Self {
            chain_id: transaction.chain_id().map_or(0, |id| id.as_u64()),
            kind: kind.to_owned(),
            to: transaction.to_addr().map(|to| format!("{to:?}")),
            value: transaction.value().copied().unwrap_or_default(),
            data: transaction.data().map_or_else(|| "0x".to_owned(), |data| hex(data)),
            gas: transaction.gas().map_or(0, U256::as_u64),
            access_list: items.collect::<Vec<_>>().join(";"),
        }
    }

    fn of_row(row: &TransactionRow) -> Option<Self> {
        Some(Self {
            chain_id: row.chain_id.try_into().ok()?,
            kind: row.tx_type.clone(),
            to: row.recipient.as_deref().map(hex),
            value: amount(&row.value),
            data: hex(&row.data),
            gas: row.gas.try_into().ok()?,
            access_list: row.access_list.clone(),
        })
    }

    /// From the decision in the request's first `DECIDED` leaf.
    fn of_leaf(world: &World, row: &TransactionRow) -> Option<Self> {
        let mut leaves = world.db.leaves.iter();
        let leaf = leaves.find(|leaf| leaf.kind == "DECIDED" && leaf.subject == row.id)?;
        let leaf: Value = serde_json::from_slice(&leaf.leaf).ok()?;
        let decision: Value = serde_json::from_str(&world.db.text(&leaf["decision"])?).ok()?;
        let asked = &decision["request"];
        let items = asked["access_list"].as_array()?.iter().map(|item| {
            let slots = item["storage_keys"].as_array().into_iter().flatten();
            let slots = slots.map(|slot| format!(" {}", slot.as_str().unwrap_or_default()));
            format!("{}{}", item["address"].as_str().unwrap_or_default(), slots.collect::<String>())
        });
        Some(Self {
            chain_id: asked["chain_id"].as_str()?.parse().ok()?,
            kind: asked["type"].as_str()?.to_owned(),
            to: Some(asked["to"].as_str()?.to_owned()).filter(|to| !to.is_empty()),
            value: U256::from_dec_str(asked["value"].as_str()?).ok()?,
            data: asked["data"].as_str()?.to_owned(),
            gas: asked["gas"].as_str()?.parse().ok()?,
            access_list: items.collect::<Vec<_>>().join(";"),
        })
    }

    fn is_no_op_of(&self, account: &str) -> bool {
        self.to.as_deref() == Some(account)
            && self.value.is_zero()
            && self.data == "0x"
            && NO_OP_GAS.contains(&self.gas)
            && self.access_list.is_empty()
    }
}

/// I2: one nonce, one request, in rows, in what was signed and in what was decided.
fn nonces(world: &World, found: &mut Found) {
    let mut owners: BTreeMap<(String, u64), BTreeSet<&str>> = BTreeMap::new();
    for row in rows(world) {
        let Some(nonce) = row.nonce.and_then(|nonce| u64::try_from(nonce).ok()) else { continue };
        let account = hex(&row.address);
        owners.entry((account.clone(), nonce)).or_default().insert(&row.id);
        for attempt in world.db.attempts_of(&row.id) {
            let Some(signed) = decoded(attempt, &account) else {
                if attempt.raw.is_some() {
                    let what = format!("attempt {} is not signed by {account}", attempt.number);
                    found.say("I2", &row.id, what);
                }
                continue;
            };
            let used = signed.nonce().map_or(u64::MAX, U256::as_u64);
            owners.entry((account.clone(), used)).or_default().insert(&row.id);
            if used != nonce {
                let what = format!("attempt {} has nonce {used}, the row {nonce}", attempt.number);
                found.say("I2", &row.id, what);
            }
        }
    }
    for ((account, nonce), owners) in owners {
        if owners.len() > 1 {
            found.say("I2", account, format!("nonce {nonce} belongs to {owners:?}"));
        }
    }
}

/// I3: the nonces that were given are 0 to the lane's next; once all is quiet the chain has used them all.
fn gaps(world: &World, asked: &Invariants, found: &mut Found) {
    let chain_id = world.chain.chain_id;
    let lanes = world.db.lanes.iter();
    for lane in lanes.filter(|lane| lane.chain_id == chain_id && lane.mode == "managed") {
        let account = hex(&lane.address);
        let mine = || rows(world).filter(|row| row.address == lane.address);
        let mut given: Vec<i64> = mine().filter_map(|row| row.nonce).collect();
        // What was mined without a request is nobody's to give again.
        let orphans = world.db.orphans.iter();
        let unclaimed = orphans.filter(|orphan| {
            orphan.chain_id == chain_id
                && orphan.address == lane.address
                && orphan.claimed_by.as_deref().is_none_or(|by| by == "closed")
        });
        given.extend(unclaimed.map(|orphan| orphan.nonce));
        given.sort_unstable();
        let due: Vec<i64> = (0..lane.next_nonce).collect();
        if given != due {
            let what = format!("nonces {given:?} are given, the next is {}", lane.next_nonce);
            found.say("I3", &account, what);
        }
        let quiet = mine().all(|row| ENDS.contains(&row.status.as_str()));
        let used = world.chain.counts.get(&account).copied().unwrap_or_default();
        let foreign = world
            .chain
            .mined
            .iter()
            .any(|mined| mined.from == account && asked.foreign.contains(&mined.hash));
        if quiet && !foreign && i64::try_from(used).ok() != Some(lane.next_nonce) {
            let what = format!("all is quiet, {used} nonces are used of {}", lane.next_nonce);
            found.say("I3", &account, what);
        }
    }
}

/// I5: an end agrees with the final chain.
fn end(world: &World, asked: &Invariants, row: &TransactionRow, found: &mut Found) {
    let mut say = |what: String| found.say("I5", &row.id, format!("{}: {what}", row.status));
    let is_excepted = asked.excepted.contains(&row.id);
    if !ENDS.contains(&row.status.as_str()) {
        if is_excepted {
            say("is excepted for nothing, no end of it was told".to_owned());
        }
        return;
    }
    let mined: Vec<_> = world.mined_of(&row.id).collect();
    if is_excepted && mined.is_empty() && world.db.broken.contains(&row.chain_id) {
        return;
    }
    if row.nonce.is_none() {
        if !mined.is_empty() {
            say(format!("no nonce was given, and {} is mined", mined[0].hash));
        }
        return;
    }
    if row.failure_code.as_deref() == Some("nonce-used-by-stranger") {
        let account = hex(&row.address);
        let used = world.chain.mined.iter().any(|it| {
            it.from == account
                && i64::try_from(it.nonce).ok() == row.nonce
                && it.is_final
                && !world.attempts.contains_key(&it.hash)
        });
        if !used {
            say("no final transaction of a stranger has its nonce".to_owned());
        }
        return;
    }
    let Some(last) = mined.iter().find(|mined| mined.is_final) else {
        say(format!("nothing of nonce {:?} is final; mined: {}", row.nonce, mined.len()));
        return;
    };
    let fits = match row.status.as_str() {
        "finalized" => last.success && world.reason(&last.hash) != NO_OP,
        "reverted" => !last.success && world.reason(&last.hash) != NO_OP,
        _ => world.reason(&last.hash) == NO_OP,
    };
    if !fits {
        let reason = world.reason(&last.hash);
        say(format!("final is {} ({reason}), success {}", last.hash, last.success));
    }
    let told = (row.mined_hash.as_deref().map(hex), row.mined_block.as_deref().map(hex));
    let is_there = told == (Some(last.hash.clone()), Some(last.block_hash.clone()));
    if is_there && is_excepted {
        say(format!("is excepted for nothing, {} is where it was told", last.hash));
    }
    if !is_there && !is_excepted {
        say(format!("told is {told:?}, final is {} in {}", last.hash, last.block_hash));
    }
}

/// I7: each attempt within its cap, and both of its fees not below those of the one before.
fn fees(world: &World, asked: &Invariants, row: &TransactionRow, found: &mut Found) {
    let account = hex(&row.address);
    let mut before: Option<(U256, U256)> = None;
    for attempt in world.db.attempts_of(&row.id) {
        let Some(signed) = decoded(attempt, &account) else { continue };
        let (fee, tip) = match &signed {
            TypedTransaction::Eip1559(tx) => (
                tx.max_fee_per_gas.unwrap_or_default(),
                tx.max_priority_fee_per_gas.unwrap_or_default(),
            ),
            other => {
                let price = other.gas_price().unwrap_or_default();
                (price, price)
            }
        };
        let one_price = !matches!(signed, TypedTransaction::Eip1559(_));
        let (fee_max, tip_max) = if attempt.reason == NO_OP {
            let most = asked.no_op_fee_max.unwrap_or_else(U256::max_value);
            (most, most)
        } else {
            let fee_max = amount(&row.cap_fee);
            (fee_max, if one_price { fee_max } else { amount(&row.cap_tip) })
        };
        let mut say = |what: String| {
            let number = attempt.number;
            found.say("I7", &row.id, format!("attempt {number} ({}) {what}", attempt.reason));
        };
        if fee > fee_max || tip > tip_max {
            say(format!("offers {fee} and {tip}, the caps are {fee_max} and {tip_max}"));
        }
        if let Some((old_fee, old_tip)) = before
            && (fee < old_fee || tip < old_tip)
        {
            say(format!("offers {fee} and {tip}, the one before {old_fee} and {old_tip}"));
        }
        before = Some((fee, tip));
    }
}
