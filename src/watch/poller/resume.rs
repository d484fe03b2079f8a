//! A halted chain is followed again, by an operator's word.
//!
//! What was found stands up to the newest block that is on the nodes' chain too; above it, it is retracted,
//! as in a reorg, and read again. The chain is followed from there on, or from the nodes' final block if that
//! is higher, since whatever is below it cannot change.

use super::reorg::retractions;
use super::{StepError, around, link};
use crate::core::chain_view::retraction::{Word, weigh};
use crate::core::chain_view::{Link, Place};
use crate::core::time::Timestamp;
use crate::ports::chain::{Block, BlockId, ChainError, Claim};
use crate::ports::chain_reader::{ChainReader, OneNode};
use crate::ports::watch_store::{ChainState, Resume, WatchStore};
use crate::watch::plan::ChainPlan;
use std::sync::Arc;

/// How many blocks of events are read at once, looking for one that the nodes have.
const PAGE: u32 = 256;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// Up to which block what was found stands.
    pub ancestor: u64,
    /// How many events were retracted.
    pub retracted: usize,
    /// The final block by the nodes' word.
    pub anchor: Place,
}

/// Lets a halted chain go on.
///
/// # Errors
/// If it is not halted, or the nodes are of another chain than was followed, or contradict each other
/// about what is final, or the database fails. Nothing was changed then.
pub async fn resume(
    plan: &ChainPlan,
    chain: &dyn ChainReader,
    store: &dyn WatchStore,
    reason: &str,
    now: Timestamp,
) -> Result<Resumed, StepError> {
    let name = plan.chain.name.as_str();
    let state = store.load(name).await?;
    let state = state.ok_or_else(|| refused(format!("chain {name} was never followed")))?;
    if state.halted.is_none() {
        return Err(refused(format!("chain {name} is not halted")));
    }
    let (chain_id, genesis) = chain.identity().await?;
    if (chain_id, genesis) != (state.pin.chain_id, state.pin.genesis) {
        return Err(refused(format!(
            "the nodes are of chain id {chain_id} with genesis {genesis}, but {name} was followed as {} \
             with genesis {}: correct `rpc`, or follow another chain under another name",
            state.pin.chain_id, state.pin.genesis
        )));
    }
    let (node, anchor) = agreed_final(plan, chain, &state).await?;
    let ancestor = ancestor(&state, node.as_ref(), store).await?;
    let tip = tip(&state, node.as_ref(), anchor, ancestor).await?;
    let standing = store.standing_above(name, ancestor).await?;
    let retractions = retractions(standing, now)?;
    let retracted = retractions.len();
    let order = Resume {
        chain: name.to_owned(),
        expected: state.cursor,
        ancestor,
        retractions,
        tip,
        finalized: anchor.place(),
        reason: reason.to_owned(),
        now,
    };
    store.resume(&order).await?;
    Ok(Resumed { ancestor, retracted, anchor: anchor.place() })
}

/// Where the chain is followed from: what stands above the final block was read, and is compared with what
/// the nodes say next.
async fn tip(
    state: &ChainState,
    node: &dyn OneNode,
    anchor: Link,
    ancestor: u64,
) -> Result<Link, StepError> {
    if ancestor <= anchor.number {
        return Ok(anchor);
    }
    let block = node.block(ancestor).await?;
    let gone = || refused(format!("block {ancestor} is not there any more: try again"));
    let known = state.window.iter().find(|known| known.number == ancestor);
    let here = block.as_ref().map(link).filter(|here| known.is_none_or(|known| known == here));
    here.ok_or_else(gone)
}

fn refused(why: String) -> StepError {
    StepError::Inconsistent(why)
}

/// A node, how far it is, and what is final by its word.
struct Said {
    node: Arc<dyn OneNode>,
    head: Block,
    last_final: Link,
}

/// The final block that the nodes agree on, and a node to compare what was found with: the lowest that any
/// of them names, since about that one all can speak. A node that stands still, or has not got all blocks
/// yet, has an old final block that nobody contradicts, and lacks what was found since: it is not heard.
async fn agreed_final(
    plan: &ChainPlan,
    chain: &dyn ChainReader,
    state: &ChainState,
) -> Result<(Arc<dyn OneNode>, Link), StepError> {
    let (mut asked, mut said) = (Vec::new(), Vec::new());
    let mut why = vec!["no node may be asked now".to_owned()];
    while let Some(node) = chain.node(&asked) {
        why.retain(|_| !asked.is_empty());
        asked.push(node.place());
        match word_of(plan, node, state.finalized.is_none()).await {
            Ok(word) => said.push(word),
            Err(error) => why.push(error),
        }
    }
    let mut said = leave_out_behind(chain, said, state.cursor.number).await;
    said.sort_by_key(|said| said.last_final.number);
    let mut agreed = None;
    for Said { node, last_final, .. } in &said {
        let (number, hash) = (last_final.number, last_final.hash);
        let claim = Claim::Canonical(BlockId { number, hash });
        match weigh(&chain.agreement(&claim, Some(node.place())).await) {
            Word::Believed => {
                agreed = Some(*last_final);
                break;
            }
            Word::PassedOver => {
                let place = node.place();
                why.push(format!("node {place} has another final block {number} than most"));
            }
            Word::Split => {
                why.push(format!("as many nodes contradict block {number} as have it"));
                break;
            }
        }
    }
    let none = || refused(format!("the nodes agree on no final block: {}", why.join("; ")));
    let agreed = agreed.ok_or_else(none)?;
    Ok((with_most(said, agreed.place()).await.ok_or_else(none)?, agreed))
}

async fn word_of(
    plan: &ChainPlan,
    node: Arc<dyn OneNode>,
    may_be_genesis: bool,
) -> Result<Said, String> {
    let place = node.place();
    let failed = |error: ChainError| format!("node {place}: {error}");
    let head = node.head().await.map_err(failed)?;
    let found = match node.last_final(plan.chain.finality.into()).await.map_err(failed)? {
        // A chain on which nothing was final yet begins at its genesis.
        None if may_be_genesis => node.block(0).await.map_err(failed)?,
        found => found,
    };
    let behind =
        || format!("node {place} is behind, at block {}, and has no final block", head.number);
    let last_final = found.as_ref().map(link).ok_or_else(behind)?;
    Ok(Said { node, head, last_final })
}

/// Without the nodes that are far behind the others, or have not come to where we were while another has.
/// One whose final block the others do not have is not behind, but of another mind: it stays.
async fn leave_out_behind(chain: &dyn ChainReader, said: Vec<Said>, cursor: u64) -> Vec<Said> {
    let heads: Vec<_> = said.iter().map(|it| (Arc::clone(&it.node), it.head.clone())).collect();
    // One that invents a head does not make the others late, where there are two of those.
    let furthest = if heads.len() > 2 {
        around::reference(heads.iter().map(|(_, head)| head.number))
    } else {
        around::furthest_of(chain, &heads, |_, _| {}).await
    };
    let furthest = furthest.unwrap_or(0);
    let any_reaches = heads.iter().any(|(_, head)| head.number >= cursor);
    let is_late = |said: &Said| {
        let head = said.head.number;
        head.saturating_add(around::BEHIND_BLOCKS) < furthest || (any_reaches && head < cursor)
    };
    let (late, mut kept): (Vec<Said>, Vec<Said>) = said.into_iter().partition(is_late);
    for said in late {
        let mut is_behind = false;
        for other in &kept {
            let theirs = has(other.node.as_ref(), said.last_final.place()).await;
            is_behind = is_behind || theirs.unwrap_or(false);
        }
        if is_behind {
            let (node, head) = (said.node.place(), said.head.number);
            tracing::warn!(node, head, furthest, "a node is behind; passed over");
        } else {
            kept.push(said);
        }
    }
    kept
}

/// The node that is furthest among those that have this block; of three or more the second furthest.
async fn with_most(mut said: Vec<Said>, place: Place) -> Option<Arc<dyn OneNode>> {
    said.sort_by_key(|said| std::cmp::Reverse(said.head.number));
    let mut having = Vec::new();
    for Said { node, .. } in said {
        if has(node.as_ref(), place).await.unwrap_or(false) {
            having.push(node);
        }
    }
    let place = usize::from(having.len() > 2);
    having.into_iter().nth(place)
}

async fn has(node: &dyn OneNode, place: Place) -> Result<bool, ChainError> {
    let here = node.block(place.number).await?;
    Ok(here.is_some_and(|block| link(&block).place() == place))
}

/// The newest of these, oldest first, that is on the node's chain: with a block, all before it are.
async fn newest_common(node: &dyn OneNode, places: &[Place]) -> Result<Option<Place>, ChainError> {
    let (mut from, mut upto) = (0, places.len());
    while from < upto {
        let middle = from.midpoint(upto);
        match places.get(middle) {
            Some(place) if has(node, *place).await? => from = middle.saturating_add(1),
            _ => upto = middle,
        }
    }
    Ok(from.checked_sub(1).and_then(|last| places.get(last)).copied())
}

/// The height up to which what was found is on the node's chain: of the window, or else of the blocks
/// below it in which something was found, or of the final one.
async fn ancestor(
    state: &ChainState,
    node: &dyn OneNode,
    store: &dyn WatchStore,
) -> Result<u64, StepError> {
    let window: Vec<Place> = state.window.iter().map(Link::place).collect();
    if let Some(common) = newest_common(node, &window).await? {
        return Ok(common.number);
    }
    let mut below = window.first().map_or(state.cursor.number, |oldest| oldest.number);
    // Finality is older than the window where it stood still.
    let mut stands = 0;
    if let Some(last_final) = state.finalized.filter(|place| place.number < below) {
        if has(node, last_final).await? {
            stands = last_final.number;
        } else {
            below = last_final.number;
        }
    }
    // The lowest of which it is known that the node's chain has another block.
    let mut differs = below;
    loop {
        let mut page = store.event_blocks_below(&state.pin.name, below, PAGE).await?;
        page.retain(|place| place.number > stands);
        page.reverse();
        let Some(oldest) = page.first().map(|place| place.number) else { break };
        below = oldest;
        let common = newest_common(node, &page).await?;
        let upto = common.map_or(0, |place| place.number);
        differs = page.iter().map(|place| place.number).find(|it| *it > upto).unwrap_or(differs);
        if common.is_some() {
            stands = upto;
            break;
        }
    }
    // Of blocks whose events were pruned nothing is known any more but that they were final long ago, and
    // that they were told: to read them again would tell them again.
    let pruned = store.newest_pruned(&state.pin.name).await?.min(differs.saturating_sub(1));
    Ok(stands.max(pruned))
}
