//! I8: limits, added up again from their entries, the decisions and what was paid on the chain.

use super::database::{EntryRow, ExposureRow, LimitRow, TransactionRow};
use super::{Found, Invariants, NO_OP, World, amount};
use ethers_core::types::U256;
use serde_json::Value;
use std::collections::BTreeMap;

/// Decisions and settlements take their time before their commit: what is this close may be in either order.
const CLOSE_MS: i64 = 5_000;

/// What a decision charged one limit.
#[derive(Clone, Debug)]
struct Charge {
    limit: Vec<u8>,
    value: U256,
    fee: U256,
    is_count: bool,
    max: U256,
}

/// What is looked up again and again.
struct Spend<'a> {
    world: &'a World,
    asked: &'a Invariants,
    charges: BTreeMap<&'a str, Vec<Charge>>,
    entries: BTreeMap<&'a [u8], Vec<&'a EntryRow>>,
    /// The order in which requests were accepted.
    seq: BTreeMap<&'a str, i64>,
}

pub(super) fn check(world: &World, asked: &Invariants, found: &mut Found) {
    let mut entries: BTreeMap<&[u8], Vec<&EntryRow>> = BTreeMap::new();
    for entry in &world.db.entries {
        entries.entry(&entry.limit_id).or_default().push(entry);
    }
    let rows = &world.db.transactions;
    let spend = Spend {
        world,
        asked,
        charges: rows.iter().map(|row| (row.id.as_str(), charges(row))).collect(),
        entries,
        seq: rows.iter().map(|row| (row.id.as_str(), row.seq)).collect(),
    };
    for limit in &world.db.limits {
        sums(&spend, limit, found);
    }
    for exposure in &world.db.exposures {
        exposed(&spend, exposure, found);
    }
    for row in rows {
        for charge in &spend.charges[row.id.as_str()] {
            owed(&spend, row, charge, found);
            room(&spend, row, charge, found);
        }
    }
}

fn entries<'a>(spend: &'a Spend<'a>, limit: &[u8]) -> impl Iterator<Item = &'a EntryRow> {
    spend.entries.get(limit).into_iter().flatten().copied()
}

fn total(entry: &EntryRow) -> U256 {
    amount(&entry.value) + amount(&entry.fee)
}

/// The kept sums are the sums of the entries.
fn sums(spend: &Spend<'_>, limit: &LimitRow, found: &mut Found) {
    let sum = |settled: bool| {
        let counted = entries(spend, &limit.id).filter(|e| e.settled_at.is_some() == settled);
        counted.fold(U256::zero(), |sum, entry| sum + total(entry))
    };
    let (held, spent) = (sum(false), sum(true));
    let kept = (amount(&limit.held), amount(&limit.spent));
    if kept != (held, spent) {
        let what = format!("kept is {kept:?} (held, spent), the entries make {held} and {spent}");
        found.say("I8", &limit.label, what);
    }
    // A piece counts as long as the last settlement in it: none may be missing, and none be dated before it.
    let pieces = spend.world.db.pieces.iter().filter(|piece| piece.limit_id == limit.id);
    let in_pieces = pieces.clone().fold(U256::zero(), |sum, piece| sum + amount(&piece.spent));
    let settled = entries(spend, &limit.id).filter(|entry| !total(entry).is_zero());
    let newest = settled.filter_map(|entry| entry.settled_at).max();
    let last = pieces.map(|piece| piece.last_at).max();
    if in_pieces != spent || newest != last {
        let what =
            format!("the pieces make {in_pieces} until {last:?}, not {spent} until {newest:?}");
        found.say("I8", &limit.label, what);
    }
}

/// What may still be taken is held, of each limit that it holds of at all, and what is over holds nothing.
fn exposed(spend: &Spend<'_>, row: &ExposureRow, found: &mut Found) {
    let holder = format!("{}/exposure/{}", row.owner, row.n);
    let all = spend.entries.values().flatten().filter(|entry| entry.owner == holder);
    let held: Vec<&&EntryRow> = all.filter(|entry| entry.settled_at.is_none()).collect();
    let (given, left) = (amount(&row.amount), amount(&row.remaining));
    let is_over = row.state == "ended";
    if left > given || is_over != held.is_empty() {
        found.say("I8", &holder, format!("{row:?} holds {held:?}"));
    }
    for entry in held.iter().filter(|entry| amount(&entry.value) < left) {
        found.say("I8", &holder, format!("{left} may be taken, and it holds {entry:?}"));
    }
}

fn charges(row: &TransactionRow) -> Vec<Charge> {
    let decision: Value = serde_json::from_str(&row.decision).unwrap_or_default();
    let number =
        |value: &Value| U256::from_dec_str(value.as_str().unwrap_or_default()).unwrap_or_default();
    let charges = decision["charges"].as_array().into_iter().flatten();
    let read = charges.map(|charge| {
        let asked = &charge["asked"];
        let is_count = asked.get("count").is_some();
        Charge {
            limit: hex::decode(charge["limit"].as_str().unwrap_or_default()).unwrap_or_default(),
            value: if is_count { U256::one() } else { number(&asked["value"]) },
            fee: number(&asked["fee"]),
            is_count,
            max: number(&charge["max"]),
        }
    });
    read.collect()
}

/// What one request holds or has spent, compared with what it is and with what it paid.
fn owed(spend: &Spend<'_>, row: &TransactionRow, charge: &Charge, found: &mut Found) {
    let mut say = |what: String| found.say("I8", &row.id, format!("{}: {what}", row.status));
    let native = row.data.is_empty() && !charge.is_count;
    let fee_max = U256::from(row.gas) * amount(&row.cap_fee);
    if native
        && !((charge.value.is_zero() || charge.value == amount(&row.value))
            && (charge.fee.is_zero() || charge.fee == fee_max))
    {
        say(format!("charged {} and {}, for fees up to {fee_max}", charge.value, charge.fee));
    }
    let entry = entries(spend, &charge.limit).find(|entry| entry.owner == row.id);
    if ["delayed", "awaiting_approval"].contains(&row.status.as_str()) {
        if entry.is_some() {
            say(format!("waits for time or people and holds {entry:?}"));
        }
        return;
    }
    let ended = ["finalized", "reverted", "failed", "rejected", "cancelled", "expired"];
    if !ended.contains(&row.status.as_str()) {
        let holds = entry.is_some_and(|entry| {
            entry.settled_at.is_none()
                && amount(&entry.value) >= charge.value
                && amount(&entry.fee) >= charge.fee
        });
        if !holds {
            say(format!("holds {entry:?}, charged was {} and {}", charge.value, charge.fee));
        }
        return;
    }
    if row.nonce.is_none() {
        if entry.is_some() {
            say(format!("ended without a nonce and holds {entry:?}"));
        }
        return;
    }
    let world = spend.world;
    let Some(mined) = world.mined_of(&row.id).find(|mined| mined.is_final) else { return };
    let no_op = world.reason(&mined.hash) == NO_OP;
    let moved = mined.success && !no_op;
    // A settled entry leaves when its span has passed; no test lives that long.
    let Some(entry) = entry.filter(|entry| entry.settled_at.is_some()) else {
        say("its nonce is final and nothing of it counts as spent".to_owned());
        return;
    };
    let value = if moved || charge.is_count { charge.value } else { U256::zero() };
    // A no-op has a cap of its own: what it paid counts up to all that its request held.
    let held = if no_op { charge.fee + charge.value } else { charge.fee };
    let fee = if charge.fee.is_zero() { U256::zero() } else { mined.paid.min(held) };
    // What was told in a block that is gone was settled there.
    let fee = if spend.asked.excepted.contains(&row.id) { amount(&entry.fee) } else { fee };
    if (amount(&entry.value), amount(&entry.fee)) != (value, fee) {
        say(format!("settled is {entry:?}, due are {value} and a fee of {fee}"));
    }
}

/// When this request was accepted there was room for it. Nothing is counted for more than it was for
/// certain.
fn room(spend: &Spend<'_>, row: &TransactionRow, charge: &Charge, found: &mut Found) {
    let mut sum = U256::zero();
    for entry in entries(spend, &charge.limit) {
        if entry.owner == row.id {
            sum += charge.value + charge.fee;
            continue;
        }
        // What a request exposes is held with it.
        let owner = entry.owner.split("/exposure/").next().unwrap_or_default();
        if owner == row.id {
            sum += total(entry);
            continue;
        }
        let earlier = match spend.seq.get(owner) {
            Some(seq) => *seq < row.seq,
            None => spend.world.db.signatures.iter().any(|signature| {
                signature.owner.as_deref() == Some(owner) && signature.created_at < row.created_at
            }),
        };
        if !earlier {
            continue;
        }
        let still_held =
            entry.settled_at.is_some_and(|settled| settled > row.created_at + CLOSE_MS);
        sum += if still_held { reserved(spend, entry) } else { total(entry) };
    }
    if sum > charge.max {
        let what = format!("with it {sum} were held and spent, the limit is {}", charge.max);
        found.say("I8", &row.id, what);
    }
}

/// What an entry held before it was settled.
fn reserved(spend: &Spend<'_>, entry: &EntryRow) -> U256 {
    let mut charged = spend.charges.get(entry.owner.as_str()).into_iter().flatten();
    let charged = charged.find(|charge| charge.limit == entry.limit_id);
    charged.map_or_else(|| total(entry), |charge| charge.value + charge.fee)
}
