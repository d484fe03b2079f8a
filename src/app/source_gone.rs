//! The event that a request names as its source may go away in a reorganisation of its chain. Before a nonce is
//! given, that ends the request; after it, people are told, and nothing is reversed by itself.
//!
//! Nobody's word is enough for it: the nodes are asked whether the event's block is canonical. What a block holds
//! never changes, so while its block is, the event is. What no caller says ends nothing before the block's height
//! is final: one stale answer may show a fork that nobody else has seen.
//!
//! A request for what has no log here (a transfer, a call, an event of another chain) names no source, and the
//! server cannot look. It was asked for by its caller's word alone, and is taken back by it.

use crate::app::record::{self, SourceEnd};
use crate::app::{App, AppError, ChainRuntime, lease, suspension, waiting};
use crate::core::id::RequestId;
use crate::core::intent::EventSource;
use crate::core::key::NonceMode;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::chain::{BlockAt, BlockId, ChainError, Claim};
use crate::ports::store::{
    End, Failure, LaneKey, Lease, StatusChange, StoreError, TransactionRow, Unit, Wait, is_no_op,
    look, unit,
};
use serde::Deserialize;
use std::sync::Arc;

/// The code of the failure of what was not signed because its source event went away.
pub const EVENT_GONE: &str = "event-gone";
/// How often a row that changes under our hands is looked at again.
const TRIES: u8 = 8;

/// What the chain says of a request's source event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its block is canonical; or the request names none.
    Stands,
    /// By the word of more than half of all nodes another block stands at its height.
    Gone(String),
    /// Its nodes have not come so far, or do not agree; or the height is not final yet.
    Unknown(String),
    /// No node here has ever known its block.
    Unseen,
}

/// Of a recorded decision, the height of the event's block.
#[derive(Deserialize)]
struct Decision {
    facts: Recorded,
}

#[derive(Deserialize)]
struct Recorded {
    event: Event,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Event {
    Read { block_hash: String, block_number: String },
    // An empty text where none was read.
    Nothing(#[expect(dead_code, reason = "what is there instead is not looked at")] String),
}

fn height(decision_json: &str, source: EventSource) -> Option<u64> {
    let read: Decision = serde_json::from_str(decision_json).ok()?;
    match read.facts.event {
        Event::Read { block_hash, block_number } => {
            let is_of = block_hash == format!("{:#x}", source.block_hash);
            is_of.then(|| block_number.parse().ok())?
        }
        Event::Nothing(_) => None,
    }
}

async fn block(chain: &ChainRuntime, row: &TransactionRow) -> Result<Option<BlockId>, AppError> {
    let Some(source) = row.new.intent.source else { return Ok(None) };
    let hash = source.block_hash;
    if let Some(number) = height(&row.new.decision_json, source) {
        return Ok(Some(BlockId { number, hash }));
    }
    let known = chain.port.block(BlockAt::Hash(hash)).await?;
    Ok(known.map(|block| BlockId { number: block.number, hash }))
}

/// What the chain says now, before a nonce is given: one node that has the block is enough to go on, and all are
/// asked before anything ends. Nobody has said that the event is gone: so it ends only what is final.
///
/// # Errors
/// When no node answers.
pub(crate) async fn before_nonce(
    chain: &ChainRuntime,
    row: &TransactionRow,
) -> Result<Source, AppError> {
    if row.new.intent.source.is_none() {
        return Ok(Source::Stands);
    }
    let Some(block) = block(chain, row).await? else { return Ok(Source::Unseen) };
    let here = chain.port.block(BlockAt::Number(block.number)).await?;
    if here.is_some_and(|here| here.hash == block.hash) {
        return Ok(Source::Stands);
    }
    // Read before the others are asked: what they say then is said of a height that is final.
    let last_final = chain.port.block(BlockAt::Final).await?;
    let is_final = last_final.is_some_and(|last| last.number >= block.number);
    Ok(match of_all(chain, block).await {
        Source::Gone(why) if !is_final => {
            Source::Unknown(format!("{why}; nothing ends for that before the height is final"))
        }
        said => said,
    })
}

async fn of_all(chain: &ChainRuntime, block: BlockId) -> Source {
    let said = chain.port.agreement(&Claim::Canonical(block), None).await;
    let BlockId { number, hash } = block;
    if said.is_outvoted() {
        return Source::Gone(format!("block {number} is not {hash} any more"));
    }
    if said.is_enough(chain.settings.agree) {
        return Source::Stands;
    }
    Source::Unknown(format!("the nodes do not agree whether block {number} is still {hash}"))
}

/// Whether this request ended without anything signed because its event went away: then its idempotency key may
/// be bound anew. `has_attempts` is of its rows.
pub(crate) fn ended_unsigned(row: &TransactionRow, has_attempts: bool) -> bool {
    let is_end = matches!(row.status, Status::Cancelled | Status::Failed);
    let is_gone = row.failure.as_ref().is_some_and(|failure| failure.code == EVENT_GONE);
    is_end && is_gone && row.nonce.is_none() && !has_attempts
}

/// What ending, or flagging, a request writes. Leaf and events are made in the unit, of the row as it is there.
#[derive(Debug)]
struct Ended {
    /// `None` where the request goes on: it has a nonce, or is over.
    change: Option<StatusChange>,
    why: String,
    by: Option<Principal>,
    event_ids: [String; 2],
    at: Timestamp,
}

impl Ended {
    fn new(
        app: &App,
        row: &TransactionRow,
        (status, why): (Option<Status>, &str),
        by: Option<&Principal>,
        at: Timestamp,
    ) -> Self {
        let change = status.map(|status| StatusChange {
            id: row.new.id,
            version: row.version,
            status,
            mined: None,
            ending: None,
            failure: Some(Failure {
                code: EVENT_GONE.to_owned(),
                detail: format!("its source event is not on the chain any more: {why}"),
            }),
            at,
        });
        let event_ids = [app.entropy.uuid(), app.entropy.uuid()].map(|id| id.to_string());
        Self { change, why: why.to_owned(), by: by.cloned(), event_ids, at }
    }

    /// `false` if it has moved on meanwhile, or was told before; nothing may be kept then.
    async fn store(&self, unit: &mut dyn Unit, id: RequestId) -> Result<bool, StoreError> {
        let Some(mut was) = unit.transaction(id).await? else { return Ok(false) };
        if let Some(change) = &self.change {
            if !unit.advance(change).await? {
                return Ok(false);
            }
            // It was never signed: what it held is free, and its event, should it come back.
            unit.release(&id.to_string()).await?;
            unit.free_events(id).await?;
        }
        if !unit.mark_source_gone(id, self.at).await? {
            return Ok(false);
        }
        // From here on the row is ours, and changes no more.
        let Some(row) = unit.transaction(id).await? else { return Ok(false) };
        let became = self.change.as_ref().map(|change| change.status);
        if became.is_none() {
            if row.status.is_before_nonce() {
                return Ok(false);
            }
            was = row.clone();
        }
        let end = SourceEnd { became, why: &self.why, by: self.by.as_ref() };
        unit.append_leaf(&record::source_gone(&was, &end, self.at)?).await?;
        let attempts = unit.attempts(id).await?;
        // A no-op that is mined is no news until it is final.
        let is_told = row.status == Status::Mined || row.status.is_end();
        let mined = row.mined.as_ref().filter(|_| is_told);
        let mined = mined.map(|mined| (mined, is_no_op(&attempts, mined.transaction_hash)));
        let [first, second] = self.event_ids.clone();
        unit.append_event(&record::source_retracted(&row, mined, first, self.at)).await?;
        if let Some(status) = became {
            unit.append_event(&record::status_event(&row, status, second, self.at)).await?;
        }
        Ok(true)
    }
}

/// Ends a queued row whose event is gone, for the lane that would have given it a nonce. `None` if the lease is
/// another's, `Some(false)` if the row has moved on meanwhile.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn end(
    app: &App,
    lease: &Lease,
    row: &TransactionRow,
    why: &str,
    now: Timestamp,
) -> Result<Option<bool>, AppError> {
    let id = row.new.id;
    let ended = Arc::new(Ended::new(app, row, (Some(Status::Cancelled), why), None, now));
    let stored = lease::fenced(app, lease, "source_gone", move |unit| {
        let ended = Arc::clone(&ended);
        Box::pin(async move {
            let stored = ended.store(unit, id).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    if stored == Some(true) {
        tracing::warn!(request = %id, why, "its source event is gone; it was not signed");
    }
    Ok(stored)
}

/// Of what waits for time or people, and whose event a second verdict did not see: where the event is gone for
/// good, the request ends, without the lease of its lane. `false` where no node has ever known the event's block:
/// then the verdict counts.
///
/// # Errors
/// `Unavailable`, for this reason, where the event may still stand: what waits is judged again later. When store
/// or nodes do not answer.
pub(crate) async fn settle(
    app: &App,
    chain: &ChainRuntime,
    row: &TransactionRow,
    unseen: &str,
) -> Result<bool, AppError> {
    match before_nonce(chain, row).await? {
        Source::Unseen => Ok(false),
        Source::Gone(why) => {
            // What has moved on meanwhile is looked at again.
            if write(app, row, &why, None).await? {
                app.changed_one(row.new.id);
            }
            Ok(true)
        }
        Source::Stands | Source::Unknown(_) => {
            Err(ChainError::Unavailable(unseen.to_owned()).into())
        }
    }
}

/// Notes that a row waits for the nodes to say whether its event stands.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn hold(
    app: &App,
    row: &TransactionRow,
    why: String,
    now: Timestamp,
) -> Result<(), AppError> {
    if row.waits.as_ref().is_some_and(|wait| wait.code == Wait::SOURCE) {
        return Ok(());
    }
    let wait = Wait { code: Wait::SOURCE.to_owned(), detail: why, since: now };
    waiting::note(app, row, Some(wait)).await
}

/// Which event a caller says is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The source that its request names.
    Source(EventSource),
    /// The `event_id` in the metadata of its request, which names no source.
    Event(String),
}

/// The `event_id` that a caller's metadata has.
pub(crate) fn event_id(metadata_json: &str) -> Option<String> {
    let metadata: serde_json::Value = serde_json::from_str(metadata_json).ok()?;
    Some(metadata.get("event_id")?.as_str()?.to_owned())
}

/// Whether a request answers the event that its caller tells of.
fn is_of(row: &TransactionRow, told: &Told) -> Result<(), AppError> {
    match (told, row.new.intent.source) {
        (Told::Source(told), Some(source)) if *told == source => Ok(()),
        (Told::Source(_), _) => {
            Err(AppError::invalid("source", "is not the event that the request names"))
        }
        (Told::Event(_), Some(_)) => {
            Err(AppError::invalid("event_id", "is not enough: the request names a source"))
        }
        (Told::Event(told), None) => {
            let is_it = event_id(&row.new.metadata_json).is_some_and(|event_id| event_id == *told);
            let other = || AppError::invalid("event_id", "is not that of the request's metadata");
            is_it.then_some(()).ok_or_else(other)
        }
    }
}

/// A caller says that its request's source event is gone. If the chain says so too, or the request names no
/// source that could be looked for there: without a nonce the request is cancelled, else it is flagged. Said
/// again, it changes nothing.
///
/// # Errors
/// `NotFound` of what is not the caller's; `Invalid` where it names another event, or none; `Conflict` where the
/// event stands, or that it does not is not known here.
pub async fn retract(
    app: &App,
    id: RequestId,
    told: &Told,
    who: &Principal,
) -> Result<(), AppError> {
    suspension::refuse(app).await?;
    for _ in 0..TRIES {
        let row = look(&*app.store, "transaction", move |unit| {
            Box::pin(async move { unit.transaction(id).await })
        })
        .await?;
        let row = row.filter(|row| app.key_scopes.share(who, &row.new.principal));
        let row = row.ok_or(AppError::NotFound)?;
        is_of(&row, told)?;
        if row.source_gone_at.is_some() {
            return Ok(());
        }
        let why = match told {
            Told::Source(_) => gone(app, &row).await?,
            Told::Event(event_id) => format!("its caller says so of {event_id}"),
        };
        if write(app, &row, &why, Some(who)).await? {
            crate::failpoint!("retract.after_stored");
            app.changed_one(id);
            return Ok(());
        }
    }
    Err(StoreError::Contended.into())
}

/// Why the event is gone, by the word of the nodes.
async fn gone(app: &App, row: &TransactionRow) -> Result<String, AppError> {
    let conflict = |detail: String| AppError::Conflict { detail, request: Some(row.new.id) };
    let chain = app.chain_of(row.new.intent.chain.id);
    let chain = chain.ok_or_else(|| conflict("its chain is not configured any more".to_owned()))?;
    let said = match block(chain, row).await? {
        Some(block) => of_all(chain, block).await,
        None => Source::Unseen,
    };
    match said {
        Source::Gone(why) => Ok(why),
        Source::Stands => Err(conflict("its source event stands on the chain".to_owned())),
        Source::Unknown(why) => Err(conflict(why)),
        Source::Unseen => Err(conflict("no node here knows the event's block".to_owned())),
    }
}

/// Without the lane's lease, as a cancellation: it gives no nonce, and the row's version keeps it apart from
/// whoever works the lane.
async fn write(
    app: &App,
    row: &TransactionRow,
    why: &str,
    who: Option<&Principal>,
) -> Result<bool, AppError> {
    let (id, now) = (row.new.id, app.clock.now());
    let status = row.status.is_before_nonce().then_some(Status::Cancelled);
    let ended = Ended::new(app, row, (status, why), who, now);
    let lane = LaneKey {
        chain: row.new.intent.chain.id,
        address: row.new.address,
        key: row.new.key,
        mode: NonceMode::Managed,
    };
    let work = Arc::new((ended, lane));
    let stored = unit(&*app.store, "retract", move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move {
            let (ended, lane) = &*work;
            // Whoever gives nonces holds the lane, and takes limits after it: so does this.
            unit.lock_lane(lane).await?;
            let stored = unit.suspension().await?.is_none() && ended.store(unit, id).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    if stored {
        tracing::warn!(request = %id, why, cancelled = status.is_some(), "its source event is gone");
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::B256;

    #[test]
    fn the_event_id_is_a_text_of_the_callers_metadata() {
        assert_eq!(event_id(r#"{"event_id":"a:b"}"#).as_deref(), Some("a:b"));
        for none in ["{}", "", "[]", r#"{"event_id":7}"#] {
            assert_eq!(event_id(none), None, "{none}");
        }
    }

    #[test]
    fn the_height_is_that_of_the_event_that_was_read_for_the_decision() {
        let source = EventSource {
            block_hash: B256::repeat_byte(7),
            transaction_hash: B256::repeat_byte(8),
            log_index: 0,
        };
        let of = |hash: B256| {
            format!(r#"{{"facts":{{"event":{{"block_hash":"{hash:#x}","block_number":"12"}}}}}}"#)
        };
        assert_eq!(height(&of(source.block_hash), source), Some(12));
        assert_eq!(height(&of(B256::repeat_byte(9)), source), None);
        assert_eq!(height(r#"{"facts":{"event":""}}"#, source), None);
        assert_eq!(height("{}", source), None);
    }
}
