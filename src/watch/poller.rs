//! One chain's poller: blocks in, events and the cursor out.
//!
//! A step looks at the head and takes the next batch of blocks, each the child of the one before, with
//! all that was found in them, in one transaction. Whatever a node says that does not fit (unlinked
//! blocks, logs that do not make the header's filter) ends the step without a trace; the next one asks
//! again. A reorg goes back to the common ancestor first, once the other nodes were heard. Nothing is ever taken "by number": blocks are
//! held together by hashes, logs are asked for by block hash.

mod around;
mod backfill;
mod event;
mod fetch;
mod reorg;
mod resume;
mod second_read;
mod settle;
mod start;
mod whole;

pub use resume::{Resumed, resume};

use self::backfill::Past;
use self::fetch::Asked;
use super::plan::{ChainPlan, Source};
use crate::core::chain_view::{Link, Place, Window, check_linked};
use crate::core::time::Timestamp;
use crate::ports::bus::Wait;
use crate::ports::chain::{Block, ChainError};
use crate::ports::chain_reader::{ChainReader, OneNode};
use crate::ports::clock::Clock;
use crate::ports::watch_store::{
    Advance, ChainState, NewEvent, Settle, SourceMove, WatchStore, WatchStoreError,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many blocks a step takes at most.
pub const BATCH_BLOCKS: u64 = 64;
/// How often it is looked whether a command has sent a source back, in milliseconds.
const ORDERS_EVERY_MS: i64 = 2000;

/// Why a step did not move.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// A node gave no answer: try again.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Answers do not fit together: a node lies, lags, or its chain changed meanwhile. Try again.
    #[error("the nodes' answers do not fit together: {0}")]
    Inconsistent(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] WatchStoreError),
    /// The chain stands still until an operator looks.
    #[error("chain halted: {0}")]
    Halted(String),
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All that was there is taken.
    Idle,
    /// There is more.
    More,
}

/// What a poller works with.
pub struct Parts {
    /// What to watch.
    pub plan: ChainPlan,
    /// The chain's nodes.
    pub chain: Arc<dyn ChainReader>,
    /// The database.
    pub store: Arc<dyn WatchStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Who takes each source's events.
    pub subscribers: BTreeMap<String, Vec<(String, Wait)>>,
    /// Who also takes what each source found before they were there.
    pub since_beginning: BTreeMap<String, Vec<(String, Wait)>>,
}

/// What is known of the chain, as it is stored.
struct View {
    window: Window,
    tip: Place,
    finalized: Option<Place>,
    next: BTreeMap<String, u64>,
    /// The last blocks of those that read some again.
    to: BTreeMap<String, u64>,
    /// The store has moved on by itself: what is here is loaded again.
    is_stale: bool,
}

impl View {
    fn new(state: ChainState) -> Result<Self, StepError> {
        let broken = |why: String| StepError::Store(WatchStoreError::Contradiction(why));
        let window = Window::new(state.window).map_err(|error| broken(error.to_string()))?;
        if window.tip() != Some(state.cursor) {
            return Err(broken("the stored window does not end with the cursor".to_owned()));
        }
        let to = state.sources.iter().filter_map(|of| Some((of.name.clone(), of.to_block?)));
        let to = to.collect();
        let next = state.sources.into_iter().map(|source| (source.name, source.next_block));
        let (next, tip, finalized) = (next.collect(), state.cursor, state.finalized);
        Ok(Self { window, tip, finalized, next, to, is_stale: false })
    }

    fn next_of(&self, source: &Source) -> u64 {
        self.next.get(&source.name).copied().unwrap_or(u64::MAX)
    }
}

/// One chain's poller.
pub struct Poller {
    parts: Parts,
    /// The node that this step is taken with.
    node: Option<Arc<dyn OneNode>>,
    started: bool,
    view: Option<View>,
    /// Why the chain stands still, as it was told.
    halted: Option<String>,
    /// What was settled last, so that an idle poll writes nothing.
    settled: Option<Settle>,
    /// How far it is with old blocks.
    past: Past,
    others: around::Others,
    stall: settle::Stall,
    /// When it was last looked for commands.
    orders_at: Option<Timestamp>,
}

pub(super) fn link(block: &Block) -> Link {
    Link { number: block.number, hash: block.hash, parent: block.parent }
}

impl Poller {
    /// A poller that has not looked at anything yet.
    #[must_use]
    pub const fn new(parts: Parts) -> Self {
        Self {
            parts,
            node: None,
            started: false,
            view: None,
            halted: None,
            settled: None,
            past: Past::new(),
            others: around::Others::new(),
            stall: settle::Stall::new(),
            orders_at: None,
        }
    }

    /// The chain's name.
    #[must_use]
    pub fn chain(&self) -> &str {
        &self.parts.plan.chain.name
    }

    /// One step. Whatever it took is stored when it returns.
    ///
    /// # Errors
    /// See [`StepError`]; nothing was taken then, or all of a part.
    pub async fn step(&mut self) -> Result<Progress, StepError> {
        self.look_around().await;
        // Nodes whose word the others do not bear out; each is asked once at most.
        let mut passed_over = Vec::new();
        loop {
            self.node = self.choose(&passed_over);
            let taken = self.step_with_node().await;
            match self.others.passed_over.take() {
                Some(place) if taken.is_err() && !passed_over.contains(&place) => {
                    passed_over.push(place);
                    if self.choose(&passed_over).is_none() {
                        return taken;
                    }
                }
                _ => return taken,
            }
        }
    }

    async fn step_with_node(&mut self) -> Result<Progress, StepError> {
        let view = match self.view.take() {
            Some(view) => view,
            None => self.load().await?,
        };
        // Put back only if all went well: after an error the view is loaded again.
        let (mut view, progress) = self.forward(view).await?;
        if progress == Progress::Idle {
            view.is_stale = view.is_stale || self.is_sent_back(&view).await?;
        }
        self.view = Some(view).filter(|view| !view.is_stale);
        Ok(progress)
    }

    /// Whether a command has sent a source elsewhere. Where blocks come, the next one shows it; on a chain
    /// that stands still nothing else does.
    async fn is_sent_back(&mut self, view: &View) -> Result<bool, StepError> {
        let now = self.parts.clock.now();
        let is_due = |at: Timestamp| {
            // A clock that was ahead is not waited for.
            !(0..ORDERS_EVERY_MS).contains(&now.millis().saturating_sub(at.millis()))
        };
        if !self.orders_at.is_none_or(is_due) {
            return Ok(false);
        }
        self.orders_at = Some(now);
        let state = self.parts.store.load(self.chain()).await?;
        let mut sources = state.iter().flat_map(|state| &state.sources);
        Ok(sources.any(|of| view.next.get(&of.name) != Some(&of.next_block)))
    }

    /// Head, blocks and logs of one step come from one node.
    fn node(&self) -> Result<Arc<dyn OneNode>, StepError> {
        let left_alone =
            || ChainError::Unavailable("every node is left alone for a while".to_owned());
        Ok(self.node.clone().ok_or_else(left_alone)?)
    }

    async fn load(&mut self) -> Result<View, StepError> {
        // A halt is read again each time: an operator lifts it from another process.
        let mut state = self.parts.store.load(self.chain()).await?;
        if let Some(why) = state.as_ref().and_then(|state| state.halted.clone()) {
            self.started = false;
            return Err(self.stand_still(why));
        }
        if !self.started {
            self.start().await?;
            self.started = true;
            state = self.parts.store.load(self.chain()).await?;
        }
        if self.halted.take().is_some() {
            tracing::warn!(chain = self.chain(), "the chain is followed again");
        }
        self.gauge("claviger_watcher_halted", 0);
        self.settled = None;
        self.past.again.forget_place();
        let gone = || WatchStoreError::Contradiction("the chain's rows are gone".to_owned());
        View::new(state.ok_or_else(gone)?)
    }

    async fn forward(&mut self, view: View) -> Result<(View, Progress), StepError> {
        let head = self.head().await?;
        let furthest = self.others.furthest(head.number);
        self.gauge("claviger_watcher_lag_blocks", furthest.saturating_sub(view.tip.number));
        let head_is_ours = view.window.has(Place { number: head.number, hash: head.hash });
        let (mut view, mut progress) = (view, Progress::Idle);
        // First, so that a block that cannot be taken does not hold up what is final below it.
        match self.settle(&mut view).await {
            Err(StepError::Chain(error)) => {
                let chain = self.chain();
                tracing::warn!(chain, %error, "no word on finality; held deliveries wait");
            }
            other => other?,
        }
        if head.number > view.tip.number {
            view = self.take_blocks(view, &head).await?;
            progress = Progress::More;
        } else if view.window.oldest().is_some_and(|oldest| head.number < oldest.number) {
            return Err(StepError::Inconsistent("the node is far behind".to_owned()));
        } else if !head_is_ours {
            view = self.reorg(view, &head).await?;
            progress = Progress::More;
        }
        let decoded = self.decode_again(&view).await?;
        if self.backfill(&mut view).await? || decoded {
            progress = Progress::More;
        }
        Ok((view, progress))
    }

    /// Takes the next blocks above the tip.
    async fn take_blocks(&mut self, view: View, head: &Block) -> Result<View, StepError> {
        let mut view = view;
        let from = view.tip.number.saturating_add(1);
        let to = head.number.min(view.tip.number.saturating_add(BATCH_BLOCKS));
        let headers = self.headers(from, to).await?;
        let Some(first) = headers.first() else { return Ok(view) };
        if !link(first).follows(view.tip) {
            return self.reorg(view, first).await;
        }
        let links: Vec<Link> = headers.iter().map(link).collect();
        check_linked(Some(view.tip), &links)
            .map_err(|error| StepError::Inconsistent(error.to_string()))?;
        let live = |source: &&Source| {
            let next = view.next_of(source);
            next >= from && next <= to
        };
        let sources: Vec<&Source> = self.parts.plan.sources.iter().filter(live).collect();
        let node = self.node()?;
        let asked = Asked { node: node.as_ref(), final_to: None };
        let events = self.events(asked, &headers, &sources, &view).await?;
        let moves = moves(&sources, &view, to);
        let keep = self.parts.plan.chain.window_blocks;
        self.advance(&view, links.clone(), moves, events).await?;
        view.window
            .extend(&links, usize::try_from(keep).unwrap_or(usize::MAX))
            .map_err(|error| StepError::Inconsistent(error.to_string()))?;
        view.tip = links.last().map_or(view.tip, Link::place);
        note_moves(&mut view, &self.parts.plan.sources, from, to);
        Ok(view)
    }

    async fn advance(
        &mut self,
        view: &View,
        blocks: Vec<Link>,
        moves: Vec<SourceMove>,
        events: Vec<NewEvent>,
    ) -> Result<(), StepError> {
        for event in &events {
            tell(event);
        }
        if !events.is_empty() {
            self.settled = None;
        }
        let advance = Advance {
            chain: self.chain().to_owned(),
            expected: view.tip,
            blocks,
            moves,
            events,
            keep: self.parts.plan.chain.window_blocks,
            now: self.parts.clock.now(),
        };
        self.parts.store.advance(&advance).await?;
        if !advance.events.is_empty() {
            crate::failpoint!("watch.after_commit");
        }
        Ok(())
    }

    fn gauge(&self, name: &'static str, value: u64) {
        let value = f64::from(u32::try_from(value).unwrap_or(u32::MAX));
        metrics::gauge!(name, "chain" => self.chain().to_owned()).set(value);
    }
}

/// The blocks that live sources take up to `to`.
fn moves(sources: &[&Source], view: &View, to: u64) -> Vec<SourceMove> {
    let one = |source: &&Source| SourceMove {
        source: source.name.clone(),
        from: view.next_of(source),
        to: to.saturating_add(1),
    };
    sources.iter().map(one).collect()
}

fn note_moves(view: &mut View, sources: &[Source], from: u64, to: u64) {
    for source in sources {
        let next = view.next_of(source);
        if next >= from && next <= to {
            view.next.insert(source.name.clone(), to.saturating_add(1));
        }
    }
}

fn tell(event: &NewEvent) {
    let (source, event_id) = (event.source.as_str(), event.event_id.as_str());
    match &event.undecodable {
        Some(why) => tracing::error!(source, event_id, why, "a log does not decode; parked"),
        None => tracing::info!(source, event_id, block = event.block.number, "event"),
    }
}
