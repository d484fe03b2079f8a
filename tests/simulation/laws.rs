//! What must hold at every moment, from the chain and the stored rows.

use crate::chain::{Content, FINAL_DEPTH, Signed};
use crate::world::{CHAIN_CAP, PACE, Request, World};
use claviger::core::intent::Fees;
use claviger::core::tx::fee::minimum;
use claviger::core::tx::state::{Ending, Status};
use claviger::core::tx::step::Step;

pub type Law = Result<(), String>;

fn holds(holds: bool, what: impl FnOnce() -> String) -> Law {
    if holds { Ok(()) } else { Err(what()) }
}

/// I7, of a version that is about to be decided: within its cap, and a valid replacement of the one before
/// wherever a node may have that.
pub fn version(request: &Request, no_op: bool, fees: Fees) -> Law {
    let view = &request.view;
    let asked = view.attempts.iter().filter(|it| !it.no_op).map(|it| it.fees.max_fee);
    let highest = asked.fold(CHAIN_CAP.max_fee, u128::max);
    let cap = if no_op { minimum(highest) } else { view.cap.max_fee };
    holds(fees.max_fee <= cap, || format!("I7: {fees:?} is above the cap {cap}"))?;
    holds(no_op || view.ending.is_none(), || "I4: a payload is decided after its end".to_owned())?;
    holds(!no_op || view.ending.is_some(), || "I4: a no-op that nobody wanted".to_owned())?;
    let Some(last) = view.attempts.last() else { return Ok(()) };
    // A no-op that the nodes refuse and never took is in no pool: the next may offer the same.
    let is_free = last.no_op && last.refused_since.is_some() && !last.accepted;
    let least = |before: u128| if is_free { before } else { minimum(before) };
    let enough = fees.max_fee >= least(last.fees.max_fee)
        && fees.max_priority_fee >= least(last.fees.max_priority_fee);
    holds(enough, || format!("I7: {fees:?} does not replace {:?}", last.fees))
}

/// I2, of bytes that are about to be sent.
pub fn sent(world: &World, index: usize, tx: &Signed) -> Law {
    let request = &world.requests[index];
    let given = request.view.nonce;
    holds(request.has_nonce && tx.nonce == given, || {
        format!("I2: request {index} signs at nonce {}, it was given {given}", tx.nonce)
    })?;
    let owner = world.owners.get(&(tx.account, tx.nonce));
    holds(owner == Some(&index), || format!("I2: nonce {} belongs to {owner:?}", tx.nonce))
}

/// What is due is safe to do.
pub fn due(world: &World, index: usize, due: &Step) -> Law {
    let view = &world.requests[index].view;
    if matches!(due, Step::NoOp(Ending::Outpriced, _)) && view.ending.is_none() {
        return outpriced(world, index);
    }
    let (Step::Rebroadcast(number) | Step::AtCap(number)) = due else { return Ok(()) };
    let attempt = view.attempts.iter().find(|it| it.number == *number);
    let attempt = attempt.ok_or_else(|| format!("there is no version {number}"))?;
    holds(attempt.signed_at.is_some(), || "I9: an unsigned version is to be sent".to_owned())?;
    holds(view.ending.is_none() || attempt.no_op, || {
        "I4: a payload is to be sent after its end was said".to_owned()
    })
}

/// A head gives way for its price only if it can offer no more, others of its lane wait behind it, and they
/// were found to wait for as long as its patience is.
fn outpriced(world: &World, index: usize) -> Law {
    let view = &world.requests[index].view;
    let newest = view.attempts.last().ok_or("outpriced without a version")?;
    holds(minimum(newest.fees.max_fee) > view.cap.max_fee, || {
        format!("outpriced at {:?}, its cap is {:?}", newest.fees, view.cap)
    })?;
    holds(others_wait(world, index), || "outpriced, and nobody waits behind it".to_owned())?;
    let patience = PACE.cap_patience_ms;
    let waited = view.capped_since.zip(newest.sent_at);
    let waited = waited.is_some_and(|(since, sent_at)| sent_at.since(since) >= patience);
    holds(waited, || format!("outpriced before its time, at its cap since {:?}", view.capped_since))
}

/// Whether others of its lane are in flight, or wait for a nonce.
pub fn others_wait(world: &World, index: usize) -> bool {
    let account = world.requests[index].account;
    let waits = |other: &Request| !other.has_nonce && other.is_open() || other.is_flying();
    let mut all = world.requests.iter().enumerate();
    all.any(|(at, other)| at != index && other.account == account && waits(other))
}

/// Whether it is a head that was signed for less than this market asks, and may not offer enough.
pub fn is_priced_out(world: &World, index: usize) -> bool {
    let request = &world.requests[index];
    let used = world.chain.nonce_at(request.account, world.chain.height());
    request.is_flying()
        && request.view.nonce == used
        && request.view.ending.is_none()
        && request.view.cap.max_fee < world.chain.base_fee
}

/// On the plateau, in the end: whoever is priced out keeps nobody waiting.
pub fn nobody_is_kept_waiting(world: &World) -> Law {
    let keeps = |index: &usize| is_priced_out(world, *index) && others_wait(world, *index);
    let found = (0..world.requests.len()).find(keeps);
    holds(found.is_none(), || format!("request {found:?} keeps others of its lane waiting."))
}

/// Everything that can be seen at any time.
pub fn check(world: &World) -> Law {
    for (index, request) in world.requests.iter().enumerate() {
        one_mined(world, index, request)?;
        if request.view.status.is_end() {
            end(world, request).map_err(|what| format!("I5: request {index}: {what}"))?;
        }
    }
    nonces(world)?;
    mined(world)
}

/// I1.
fn one_mined(world: &World, index: usize, request: &Request) -> Law {
    let hashes = request.view.attempts.iter().filter_map(|it| it.hash);
    let mined = hashes.filter(|hash| world.chain.is_mined(*hash)).count();
    holds(mined <= 1, || format!("I1: {mined} versions of request {index} are mined"))
}

/// I2, I3: the nonces of each lane are those that were given and those that strangers took, without a gap.
fn nonces(world: &World) -> Law {
    for (account, lane) in world.lanes.iter().enumerate() {
        let of = |request: &&Request| request.account == account && request.has_nonce;
        let mut given: Vec<u64> =
            world.requests.iter().filter(of).map(|request| request.view.nonce).collect();
        given.extend(&lane.skipped);
        given.sort_unstable();
        let is_gapless = given.iter().copied().eq(0..lane.next_nonce);
        holds(is_gapless, || {
            format!("I3: account {account} gave {given:?}, the next is {}", lane.next_nonce)
        })?;
    }
    Ok(())
}

/// I4, of the blocks that are new: what is mined is a stored version of the request that has its nonce.
fn mined(world: &World) -> Law {
    let new = world.chain.blocks.iter().rev().take(FINAL_DEPTH as usize + 2);
    for tx in new.flat_map(|block| &block.mined) {
        let (index, is_no_op) = match tx.content {
            Content::Stranger => continue,
            Content::Asked(index) => (index, false),
            Content::NoOp(index) => (index, true),
        };
        let request = &world.requests[index];
        let stored = request.view.attempts.iter().find(|it| it.hash == Some(tx.hash));
        let is_ours = stored.is_some_and(|it| it.no_op == is_no_op && it.fees == tx.fees)
            && request.has_nonce
            && (request.account, request.view.nonce) == (tx.account, tx.nonce)
            && tx.value == if is_no_op { 0 } else { request.value };
        holds(is_ours, || format!("I4: {tx:?} is not what was decided for request {index}"))?;
        holds(!is_no_op || request.view.ending.is_some(), || {
            format!("I4: a no-op that nobody wanted, request {index}")
        })?;
    }
    Ok(())
}

/// I5: an end that was told is what the final chain says.
fn end(world: &World, request: &Request) -> Law {
    let status = request.view.status;
    if !request.has_nonce {
        let fits = matches!(status, Status::Cancelled | Status::Expired);
        return holds(fits, || format!("{status} without a nonce"));
    }
    let told = request.mined.ok_or("an end that names no block")?;
    let found = world.chain.find(None, told.hash, world.chain.height());
    let (number, block, tx) = found.ok_or_else(|| format!("{status}, and not mined"))?;
    holds((number, block) == (told.block_number, told.block_hash), || {
        format!("told is block {}, it is in {number}", told.block_number)
    })?;
    holds(number <= world.chain.final_number(), || format!("{status} before it is final"))?;
    let is_no_op = matches!(tx.content, Content::NoOp(_));
    let due = match (is_no_op, request.view.ending, tx.succeeds) {
        (true, Some(ending), _) => ending.status(),
        (true, None, _) => return Err("a no-op that nobody wanted".to_owned()),
        (false, _, true) => Status::Finalized,
        (false, _, false) => Status::Reverted,
    };
    holds(status == due, || format!("told is {status}, it is {due}"))
}

/// Once all is quiet: nothing is open, no lane stands still, and the chain has used every nonce that was given.
pub fn quiet(world: &World) -> Law {
    let open = world.requests.iter().filter(|request| request.is_open()).count();
    holds(open == 0, || format!("{open} requests are open."))?;
    for (account, lane) in world.lanes.iter().enumerate() {
        let used = world.chain.nonce_at(account, world.chain.height());
        // What strangers did to a lane that nothing waits in is noticed with its next nonce.
        let strange = |nonce| {
            let found = world.chain.used_by(account, nonce);
            found.is_some_and(|(_, tx)| matches!(tx.content, Content::Stranger))
        };
        holds(used >= lane.next_nonce && (lane.next_nonce..used).all(strange), || {
            format!("I3: account {account} has used {used} nonces of {}", lane.next_nonce)
        })?;
        holds(!lane.is_halted, || format!("account {account} is halted"))?;
    }
    Ok(())
}
