//! Before an end is told: enough nodes agree that its block is final, and the block of the newest end is still
//! where it was. A chain that was reorganised below that stands still until an operator has looked.

use crate::app::{App, AppError, ChainRuntime, chains, record};
use crate::core::agreement::Agreement;
use crate::core::time::Timestamp;
use crate::ports::chain::{BlockAt, BlockId, Claim, Receipt};
use crate::ports::store::{Anchor, End, StoreError, Unit, look, unit};
use std::sync::{Arc, Mutex, PoisonError};

/// How often one chain warns that its nodes do not agree, in milliseconds.
const WARN_EVERY_MS: i64 = 60_000;

/// Whether ends may be told on a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ground {
    /// The block of the newest end is where it was, or there is none.
    Firm,
    /// Not known now: its nodes have not come to that block, or do not agree about it.
    Unknown,
    /// Another block stands in its place: nothing goes on, for this reason.
    Broken(String),
}

/// What was found out lately about a chain's final blocks.
#[derive(Debug, Default)]
pub(crate) struct FinalityKept {
    ground: Mutex<Option<(Timestamp, Ground)>>,
    warned: Mutex<Option<Timestamp>>,
}

impl FinalityKept {
    fn ground(&self, chain: &ChainRuntime, now: Timestamp) -> Option<Ground> {
        let kept = self.ground.lock().unwrap_or_else(PoisonError::into_inner).clone();
        kept.filter(|(at, _)| chains::fresh(*at, now, chain.reading_ms)).map(|(_, ground)| ground)
    }

    fn stand_on(&self, now: Timestamp, ground: Ground) {
        *self.ground.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, ground));
    }

    fn may_warn(&self, now: Timestamp) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned.is_none_or(|at| now.since(at) >= WARN_EVERY_MS);
        if due {
            *warned = Some(now);
        }
        due
    }
}

/// Whether an end by this receipt, final by the word of one node, may be told now.
///
/// # Errors
/// When the store does not answer, or no node does.
pub(crate) async fn may_end(
    app: &App,
    chain: &ChainRuntime,
    receipt: &Receipt,
    by: usize,
) -> Result<bool, AppError> {
    let is_firm = ground(app, chain).await? == Ground::Firm;
    Ok(is_firm && is_agreed_final(app, chain, receipt, by).await)
}

/// Whether enough nodes have the same receipt as one of them, in a block that is final.
pub(crate) async fn is_agreed_final(
    app: &App,
    chain: &ChainRuntime,
    receipt: &Receipt,
    by: usize,
) -> bool {
    let claim = Claim::Mined { receipt: Box::new(receipt.clone()), must_be_final: true };
    is_agreed(app, chain, &claim, by).await
}

/// Whether enough nodes agree with what one of them claims.
pub(crate) async fn is_agreed(app: &App, chain: &ChainRuntime, claim: &Claim, by: usize) -> bool {
    heard(app, chain, claim, by).await.is_enough(chain.settings.agree)
}

/// What the nodes say to the claim of one of them. Whether that is enough is for the caller to ask.
pub(crate) async fn heard(app: &App, chain: &ChainRuntime, claim: &Claim, by: usize) -> Agreement {
    let said = chain.port.agreement(claim, Some(by)).await;
    tell(app, chain, claim, &said, said.is_enough(chain.settings.agree));
    said
}

/// Says who does not agree, and who keeps an end or a decision waiting.
fn tell(app: &App, chain: &ChainRuntime, claim: &Claim, said: &Agreement, enough: bool) {
    let name = chain.settings.name.to_string();
    if !said.contradict.is_empty() {
        metrics::counter!("claviger_node_disagreements_total", "chain" => name.clone())
            .increment(1);
    }
    if (enough && said.contradict.is_empty()) || !chain.finality.may_warn(app.clock.now()) {
        return;
    }
    let (agree, silent, contradict) = (&said.agree, &said.silent, &said.contradict);
    let what = match claim {
        _ if !contradict.is_empty() => "the nodes contradict each other",
        Claim::Codes { .. } => "a decision waits until more nodes agree",
        _ => "an end waits until more nodes agree",
    };
    let claim = match claim {
        // All of the code would be megabytes.
        Claim::Codes { block, codes } => {
            let accounts: Vec<String> = codes.iter().map(|(of, _)| format!("{of:#x}")).collect();
            format!("the code of {} in block {block}", accounts.join(", "))
        }
        claim => format!("{claim:?}"),
    };
    tracing::warn!(chain = name, claim, ?agree, ?silent, ?contradict, enough, "{what}");
}

/// Why nothing goes on on this chain, if it was reorganised below a block in which an end was told. Asked at
/// each look; reads the chain at most once in a while.
///
/// # Errors
/// When the store does not answer, or no node does.
pub(crate) async fn stands_still(
    app: &App,
    chain: &ChainRuntime,
) -> Result<Option<String>, AppError> {
    Ok(match ground(app, chain).await? {
        Ground::Firm | Ground::Unknown => None,
        Ground::Broken(reason) => Some(reason),
    })
}

async fn ground(app: &App, chain: &ChainRuntime) -> Result<Ground, AppError> {
    let now = app.clock.now();
    if let Some(ground) = chain.finality.ground(chain, now) {
        return Ok(ground);
    }
    let ground = read_ground(app, chain, now).await?;
    chain.finality.stand_on(now, ground.clone());
    Ok(ground)
}

async fn read_ground(app: &App, chain: &ChainRuntime, now: Timestamp) -> Result<Ground, AppError> {
    let id = chain.settings.id;
    let anchor =
        look(&*app.store, "anchor", move |unit| Box::pin(async move { unit.anchor(id).await }))
            .await?;
    let Some(anchor) = anchor else {
        return Ok(Ground::Firm);
    };
    if let Some(reason) = anchor.broken {
        return Ok(Ground::Broken(reason));
    }
    chains::verify(app, chain).await?;
    match chain.port.block(BlockAt::Number(anchor.number)).await? {
        Some(block) if block.hash == anchor.hash => return Ok(Ground::Firm),
        None => return Ok(Ground::Unknown),
        Some(_) => {}
    }
    // By one node's word. The others are asked before anything stands still.
    let claim = Claim::Canonical(BlockId { number: anchor.number, hash: anchor.hash });
    let said = chain.port.agreement(&claim, None).await;
    tell(app, chain, &claim, &said, said.is_enough(chain.settings.agree));
    // For good, until an operator comes: more than half of all nodes must say so.
    if said.is_outvoted() {
        return stop(app, chain, anchor, now).await;
    }
    Ok(if said.is_enough(chain.settings.agree) { Ground::Firm } else { Ground::Unknown })
}

/// Halts the lanes of the chain, with an alarm. What was told stays told; only an operator knows what to do.
async fn stop(
    app: &App,
    chain: &ChainRuntime,
    anchor: Anchor,
    now: Timestamp,
) -> Result<Ground, AppError> {
    let id = chain.settings.id;
    let reason = format!(
        "the chain was reorganised below its finality: ends were told in block {} {}, and another \
         block stands there",
        anchor.number, anchor.hash
    );
    let work = Arc::new((reason.clone(), record::alarm(id, &reason, now)?, anchor));
    let halted = unit(&*app.store, "halt_chain", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (reason, leaf, anchor) = &*work;
            for lane in unit.lanes(id).await?.into_iter().filter(|lane| lane.halted.is_none()) {
                unit.halt_lane(id, lane.address, reason).await?;
            }
            if !unit.break_anchor(id, anchor, reason).await? {
                return Ok(End::Rollback(false));
            }
            unit.append_leaf(leaf).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    crate::failpoint!("finality.after_halt");
    if !halted {
        // A newer end was told meanwhile, or another process was faster: the next look knows.
        return Ok(Ground::Unknown);
    }
    tracing::error!(chain = %chain.settings.name, reason, "the chain was halted");
    Ok(Ground::Broken(reason))
}

/// Remembers the block of an end, in the unit that tells it. `false` if the chain stands still: then nothing
/// may be told.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn anchor_end(
    unit: &mut dyn Unit,
    chain: crate::core::id::ChainId,
    block: Option<BlockId>,
) -> Result<bool, StoreError> {
    let anchor = unit.anchor(chain).await?;
    if anchor.as_ref().is_some_and(|anchor| anchor.broken.is_some()) {
        return Ok(false);
    }
    let newer = |block: &BlockId| anchor.as_ref().is_none_or(|it| it.number < block.number);
    if let Some(block) = block.filter(newer) {
        unit.raise_anchor(chain, block.number, block.hash).await?;
    }
    Ok(true)
}
