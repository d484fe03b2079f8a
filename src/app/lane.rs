//! Work a lane: give the next nonce to whoever waited longest, decide the exact bytes, sign, send.

use crate::app::accept::summary;
use crate::app::rejudge::{self, Again, Rejudged};
use crate::app::source_gone::Source;
use crate::app::{
    App, AppError, ChainRuntime, chains, destinations, finality, lease, record, release, send,
    sign, source_gone, suspension, waiting,
};
use crate::core::amount::Amount;
use crate::core::evm::transaction::UnsignedTransaction;
use crate::core::id::{KeyId, RequestId};
use crate::core::intent::Fees;
use crate::core::key::NonceMode;
use crate::core::permit::PayloadKind;
use crate::core::policy::Reason;
use crate::core::time::Timestamp;
use crate::core::tx::fee::{self, Market};
use crate::core::tx::state::Status;
use crate::ports::chain::BlockAt;
use crate::ports::store::{
    End, Hold, Lane, LaneKey, Lease, LimitExceeded, NewAttempt, StatusChange, StoreError,
    TransactionRow, Unit, look,
};
use alloy::primitives::{Address, B256, U256, keccak256};
use std::sync::Arc;

/// Why a lane stopped working.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idle {
    /// Nothing waits.
    Empty,
    /// As many are in flight as may be.
    Full,
    /// The account cannot pay for what is next; it goes on after a top-up.
    Unfunded,
    /// The base fee is above the cap of what is next; it goes on when the market falls.
    AboveCap,
    /// The lane stands still until an operator has looked.
    Halted(String),
    /// Another worker was faster.
    Contended,
    /// Another process holds the lane's lease; its next look goes on.
    Elsewhere,
    /// The nodes do not say whether the event that what is next answers still stands.
    Unsettled,
}

enum Allocated {
    Decided(RequestId),
    Ended(RequestId),
    Unfunded(Box<TransactionRow>, String),
    NoRoom(LimitExceeded),
    Idle(Idle),
}

/// How many nonces are given, or rows ended, in one call.
const ROUNDS_MAX: usize = 64;

/// Works the lane until it is idle, if its lease is ours or free: each round allocates one nonce, signs and
/// sends.
///
/// # Errors
/// When the store or the chain does not answer. Nothing is lost: the next call goes on.
pub async fn work(app: &App, chain: &ChainRuntime, address: Address) -> Result<Idle, AppError> {
    // What is out is followed between two calls: a lane with very much to do comes again.
    for _ in 0..ROUNDS_MAX {
        let Some(lease) = lease::hold(app, chain, address).await? else {
            return Ok(Idle::Elsewhere);
        };
        match allocate(app, chain, &lease).await? {
            Allocated::Idle(Idle::Halted(reason)) => {
                crate::failpoint!("lane.after_halt");
                return Ok(Idle::Halted(reason));
            }
            Allocated::Idle(idle) => return Ok(idle),
            Allocated::Unfunded(row, detail) => {
                waiting::unfunded(app, &row, detail, app.clock.now()).await?;
                return Ok(Idle::Unfunded);
            }
            Allocated::Ended(request) => {
                crate::failpoint!("lane.after_ended");
                app.changed_one(request);
            }
            Allocated::NoRoom(_) => return Ok(Idle::Contended),
            Allocated::Decided(request) => {
                crate::failpoint!("lane.after_decided");
                if let Some(signed) = sign::sign(app, request, 1).await? {
                    send::send(app, &signed).await?;
                }
            }
        }
    }
    Ok(Idle::Contended)
}

/// Everything that is read from the chain before the unit begins.
#[derive(Debug, Clone)]
struct Readings {
    market: Market,
    /// The fee cap that a transaction must have to be mined in this market.
    least_cap: u128,
    in_flight_max: i64,
    balance: U256,
    chain_nonce: Option<u64>,
    /// The second verdict, over this row, where the first is too old.
    rejudged: Option<(RequestId, Arc<Rejudged>)>,
    /// The row whose source event was read again, if it names one.
    sourced: RequestId,
    bundle: B256,
}

async fn allocate(app: &App, chain: &ChainRuntime, lease: &Lease) -> Result<Allocated, AppError> {
    chains::verify(app, chain).await?;
    let (id, address) = (chain.settings.id, lease.address);
    if let Some(reason) = finality::stands_still(app, chain).await? {
        return Ok(Allocated::Idle(Idle::Halted(reason)));
    }
    let now = app.clock.now();
    // Forgotten after a while, so that a lane which looks full is not taken for full for ever.
    let in_flight_max = chain.known_in_flight_max(address, now);
    let (suspension, first, has_work) = look(&*app.store, "next_queued", move |unit| {
        Box::pin(async move {
            let first = unit.next_queued(id, address).await?;
            let has_room = unit.in_flight(id, address).await? < in_flight_max;
            let has_work = has_room || unit.next_expired(id, address, now).await?.is_some();
            Ok((unit.suspension().await?, first, has_work))
        })
    })
    .await?;
    if let Some(why) = suspension {
        return Ok(Allocated::Idle(Idle::Halted(why.reason)));
    }
    let Some(first) = first else {
        return Ok(Allocated::Idle(Idle::Empty));
    };
    if !has_work {
        // Nothing is judged again, and no node is asked, for a lane that gives no nonce.
        return Ok(Allocated::Idle(Idle::Full));
    }
    let market = chain.market(now).await?;
    let Some(waiting) = waiting::payable(app, chain, first, market.base_fee, now).await? else {
        return Ok(Allocated::Idle(Idle::AboveCap));
    };
    if let Some(ended) = read_source(app, chain, lease, &waiting, now).await? {
        return Ok(ended);
    }
    let chain_nonce = if chain.lane_is_checked(address) {
        None
    } else {
        Some(chain.port.nonce(address, BlockAt::Latest).await?)
    };
    let rejudged = if rejudge::is_stale(app, &waiting, now) {
        let again = rejudge::rejudge(app, chain, &waiting, now).await?;
        if let Some(why) = again.unsettled()
            && source_gone::before_nonce(chain, &waiting).await? != Source::Unseen
        {
            // Whether it is gone is found out by the next look.
            source_gone::hold(app, &waiting, why.to_owned(), now).await?;
            return Ok(Allocated::Idle(Idle::Unsettled));
        }
        match again.again() {
            Again::Goes => Some((waiting.new.id, Arc::new(again))),
            Again::Refused(reasons) => {
                return refuse(app, lease, (&waiting, &again), &reasons, now).await;
            }
            Again::Waits => return send_back(app, lease, (&waiting, &again), now).await,
        }
    } else {
        None
    };
    let readings = Readings {
        least_cap: waiting::least_cap(chain, market.base_fee),
        market,
        in_flight_max: chain.in_flight_max(address, now).await?,
        balance: chain.balance(address, now).await?,
        chain_nonce,
        rejudged,
        sourced: waiting.new.id,
        bundle: app.bundle().hash(),
    };
    let again = readings.rejudged.clone();
    let allocated = allocate_in(app, chain, lease, waiting.new.key, readings, now).await?;
    if let (Allocated::NoRoom(full), Some((_, again))) = (&allocated, again) {
        let reasons = [record::window_reason(full)];
        return refuse(app, lease, (&waiting, &again), &reasons, now).await;
    }
    if !matches!(allocated, Allocated::Idle(Idle::Halted(_) | Idle::Elsewhere)) {
        chain.lane_was_checked(address);
    }
    Ok(allocated)
}

/// Reads the event that a row names again, whatever its grant says of events: it was there when the request was
/// accepted, and may have gone away since.
async fn read_source(
    app: &App,
    chain: &ChainRuntime,
    lease: &Lease,
    row: &TransactionRow,
    now: Timestamp,
) -> Result<Option<Allocated>, AppError> {
    let why = match source_gone::before_nonce(chain, row).await? {
        Source::Stands | Source::Unseen => return Ok(None),
        Source::Gone(why) => why,
        Source::Unknown(why) => {
            source_gone::hold(app, row, why, now).await?;
            return Ok(Some(Allocated::Idle(Idle::Unsettled)));
        }
    };
    Ok(Some(match source_gone::end(app, lease, row, &why, now).await? {
        Some(true) => Allocated::Ended(row.new.id),
        Some(false) => Allocated::Idle(Idle::Contended),
        None => Allocated::Idle(Idle::Elsewhere),
    }))
}

/// Ends a queued row that policy refuses now.
async fn refuse(
    app: &App,
    lease: &Lease,
    (row, again): (&TransactionRow, &Rejudged),
    reasons: &[Reason],
    now: Timestamp,
) -> Result<Allocated, AppError> {
    let refusal = again.refuse(row, reasons, app.entropy.uuid().to_string(), now)?;
    let refusal = Arc::new(refusal);
    let ended = lease::fenced(app, lease, "refuse_queued", move |unit| {
        let refusal = refusal.clone();
        Box::pin(async move {
            let ended = refusal.store(unit).await?;
            Ok(if ended { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    Ok(match ended {
        Some(true) => {
            tracing::warn!(request = %row.new.id, "a queued transaction was refused");
            Allocated::Ended(row.new.id)
        }
        Some(false) => Allocated::Idle(Idle::Contended),
        None => Allocated::Idle(Idle::Elsewhere),
    })
}

/// Sends a queued row back to where it waits for time or people: what is in force now asks for more than it
/// had, or for it anew. It goes on by itself when it has that.
async fn send_back(
    app: &App,
    lease: &Lease,
    (row, again): (&TransactionRow, &Rejudged),
    now: Timestamp,
) -> Result<Allocated, AppError> {
    let anew = Arc::new(release::anew(app, row, again, now)?);
    let stored = lease::fenced(app, lease, "ask_queued", move |unit| {
        let anew = Arc::clone(&anew);
        Box::pin(async move {
            let stored = anew.store(unit).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    Ok(match stored {
        Some(true) => {
            tracing::warn!(request = %row.new.id, "a queued transaction has to wait again");
            Allocated::Ended(row.new.id)
        }
        Some(false) => Allocated::Idle(Idle::Contended),
        None => Allocated::Idle(Idle::Elsewhere),
    })
}

/// The unit: one nonce, one decision.
async fn allocate_in(
    app: &App,
    chain: &ChainRuntime,
    lease: &Lease,
    key: KeyId,
    readings: Readings,
    now: Timestamp,
) -> Result<Allocated, AppError> {
    let (id, address, settings) = (chain.settings.id, lease.address, chain.settings.clone());
    let policy = Arc::clone(&app.policy);
    // The readings took their time.
    let now = app.clock.now().max(now);
    let event_id = app.entropy.uuid().to_string();
    let allocated = lease::fenced(app, lease, "allocate_nonce", move |unit| {
        let (readings, settings) = (readings.clone(), settings.clone());
        let policy = Arc::clone(&policy);
        let event_id = event_id.clone();
        Box::pin(async move {
            let open = LaneKey { chain: id, address, key, mode: NonceMode::Managed };
            let lane = unit.lock_lane(&open).await?;
            if let Some(halted) = check_lane(unit, &lane, &readings, now).await? {
                return Ok(halted);
            }
            // The lane may have been waited for.
            if policy.bundle().hash() != readings.bundle {
                return Ok(End::Rollback(Allocated::Idle(Idle::Contended)));
            }
            // Before anything that may park the lane: what a request holds must not wait for its head.
            if let Some(late) = unit.next_expired(id, address, now).await? {
                return expire(unit, &late, event_id, now).await;
            }
            let flying = unit.in_flight(id, address).await?;
            if flying >= readings.in_flight_max {
                return Ok(End::Rollback(Allocated::Idle(Idle::Full)));
            }
            let Some(row) = unit.next_payable(id, address, readings.least_cap, now).await? else {
                return Ok(End::Rollback(Allocated::Idle(Idle::AboveCap)));
            };
            decide(unit, &lane, &row, &readings, settings.cap, event_id, now).await
        })
    })
    .await?;
    Ok(allocated.unwrap_or(Allocated::Idle(Idle::Elsewhere)))
}

/// A lane that stands still, or whose account has more mined transactions than we ever gave nonces, gives
/// none: our database may be old, or somebody else has the key.
async fn check_lane(
    unit: &mut dyn Unit,
    lane: &Lane,
    readings: &Readings,
    now: Timestamp,
) -> Result<Option<End<Allocated>>, StoreError> {
    if let Some(why) = unit.suspension().await? {
        return Ok(Some(End::Rollback(Allocated::Idle(Idle::Halted(why.reason)))));
    }
    if let Some(reason) = &lane.halted {
        return Ok(Some(End::Rollback(Allocated::Idle(Idle::Halted(reason.clone())))));
    }
    if lane.mode != NonceMode::Managed {
        let reason = "the nonces of this account are given by its callers".to_owned();
        return Ok(Some(End::Rollback(Allocated::Idle(Idle::Halted(reason)))));
    }
    let Some(mined) = readings.chain_nonce else {
        return Ok(None);
    };
    let halted = suspension::halt_if_ahead(unit, lane, mined, now).await?;
    Ok(halted.map(|reason| End::Commit(Allocated::Idle(Idle::Halted(reason)))))
}

/// `not_after` passed before a nonce was given: it ends, and what was held is free.
async fn expire(
    unit: &mut dyn Unit,
    row: &TransactionRow,
    event_id: String,
    now: Timestamp,
) -> Result<End<Allocated>, StoreError> {
    let change = StatusChange {
        id: row.new.id,
        version: row.version,
        status: Status::Expired,
        mined: None,
        ending: None,
        failure: None,
        at: now,
    };
    if !unit.advance(&change).await? {
        return Ok(End::Rollback(Allocated::Idle(Idle::Contended)));
    }
    unit.release(&row.new.id.to_string()).await?;
    unit.free_events(row.new.id).await?;
    unit.append_event(&record::status_event(row, Status::Expired, event_id, now)).await?;
    Ok(End::Commit(Allocated::Ended(row.new.id)))
}

/// Gives the nonce and writes the decision: the exact bytes, and the `DECIDED` leaf.
async fn decide(
    unit: &mut dyn Unit,
    lane: &Lane,
    row: &TransactionRow,
    readings: &Readings,
    cap: Fees,
    event_id: String,
    now: Timestamp,
) -> Result<End<Allocated>, StoreError> {
    let intent = &row.new.intent;
    // A second verdict counts for the row that was judged, and under the bundle that was in force when all was
    // read: another may have been activated while the nodes were asked.
    let due = (row.new.id, row.version, readings.bundle);
    let is_of = |id: RequestId, again: &Rejudged| (id, again.version, again.verdict.bundle) == due;
    let again = readings.rejudged.as_ref().filter(|(id, again)| is_of(*id, again));
    let stale = row.new.decision.bundle != readings.bundle || rejudge::is_old(row, now);
    let unread = intent.source.is_some() && readings.sourced != row.new.id;
    if unread || (stale && again.is_none()) {
        // Another row than the one that was looked at or judged again, or another bundle: look once more.
        return Ok(End::Rollback(Allocated::Idle(Idle::Contended)));
    }
    let mut cap = row.new.fee_cap.at_most(cap);
    let mut decision_json = &row.new.decision_json;
    if let Some((id, again)) = again {
        let owner = row.new.id.to_string();
        let hold = Hold::of(owner, Some(intent.chain.id), &again.verdict, false);
        if let Some(full) = unit.hold(&hold, now).await? {
            return Ok(End::Rollback(Allocated::NoRoom(full)));
        }
        cap = again.verdict.fee_cap.map_or(cap, |fees| cap.at_most(fees));
        decision_json = &again.decision_json;
        // Every later version goes by this decision.
        unit.decide_again(*id, cap, &summary(&again.verdict), decision_json).await?;
    }
    if cap.max_fee < readings.market.base_fee {
        // The second decision has another cap: once it is stored, the next look passes over this row.
        return Ok(match again {
            Some(_) => End::Commit(Allocated::Idle(Idle::AboveCap)),
            None => End::Rollback(Allocated::Idle(Idle::AboveCap)),
        });
    }
    let fees = fee::first(&readings.market, cap, intent.tx_type);
    if let Some(detail) = shortage(unit, lane, row, fees, readings.balance).await? {
        return Ok(End::Rollback(Allocated::Unfunded(Box::new(row.clone()), detail)));
    }
    let Some(nonce) = unit.take_nonce(lane, row, now).await? else {
        return Ok(End::Rollback(Allocated::Idle(Idle::Contended)));
    };
    let unsigned = UnsignedTransaction::from_intent(intent, nonce, fees);
    let attempt = new_attempt(row, &unsigned, 1, "first", now)?;
    if !unit.insert_attempt(&attempt).await? {
        return Err(StoreError::Corrupt("a queued transaction has an attempt".to_owned()));
    }
    unit.append_leaf(&record::decided(&attempt, decision_json)?).await?;
    for used in destinations::used(row, decision_json, now) {
        unit.use_destinations(&used).await?;
    }
    let submitted = TransactionRow { nonce: Some(nonce), ..row.clone() };
    unit.append_event(&record::status_event(&submitted, Status::Submitted, event_id, now)).await?;
    Ok(End::Commit(Allocated::Decided(row.new.id)))
}

/// The decision row of one attempt.
pub(crate) fn new_attempt(
    row: &TransactionRow,
    unsigned: &UnsignedTransaction,
    number: i64,
    reason: &'static str,
    now: Timestamp,
) -> Result<NewAttempt, StoreError> {
    let bytes = unsigned.signing_bytes().map_err(|e| StoreError::Corrupt(e.to_string()))?;
    Ok(NewAttempt {
        request: row.new.id,
        number,
        reason,
        key: row.new.key,
        kind: PayloadKind::Transaction,
        digest: keccak256(&bytes),
        bytes,
        fees: unsigned.fees,
        at: now,
    })
}

/// What the account lacks to pay for this one at these fees, and for everything in flight at what each has
/// offered.
async fn shortage(
    unit: &mut dyn Unit,
    lane: &Lane,
    row: &TransactionRow,
    fees: Fees,
    balance: U256,
) -> Result<Option<String>, StoreError> {
    let flying = unit.owed(lane.chain, lane.address).await?;
    let intent = &row.new.intent;
    let own = (intent.value, intent.gas, fees.max_fee);
    let others = flying.iter().map(|owed| (owed.value, owed.gas, owed.max_fee));
    let total = others.chain([own]).try_fold(Amount::ZERO, |sum, (value, gas, price)| {
        let fee = Amount::from(gas).checked_mul(Amount::from(price))?;
        sum.checked_add(value)?.checked_add(fee)
    });
    let is_funded = total.is_some_and(|total| total.units() <= balance);
    Ok((!is_funded).then(|| waiting::shortage(total, Amount::new(balance))))
}
