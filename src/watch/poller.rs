//! One chain's poller: blocks in, events and the cursor out.
//!
//! A step looks at the head and takes the next batch of blocks, each the child of the one before, with
//! all that was found in them, in one transaction. Whatever a node says that does not fit (unlinked
//! blocks, logs that do not make the header's filter) ends the step without a trace; the next one asks
//! again. A reorg goes back to the common ancestor first. Nothing is ever taken "by number": blocks are
//! held together by hashes, logs are asked for by block hash.

mod fetch;
mod start;

use super::cloudevent;
use super::config::Finality;
use super::plan::{ChainPlan, Source};
use crate::core::chain_view::{Link, Place, Relation, Window, check_linked};
use crate::ports::block_logs::BlockLogs;
use crate::ports::bus::Wait;
use crate::ports::chain::{Block, Chain, ChainError};
use crate::ports::clock::Clock;
use crate::ports::watch_store::{
    Advance, ChainState, NewEvent, RollBack, Settle, SourceMove, StandingEvent, WatchStore,
    WatchStoreError,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many blocks a step takes at most.
pub const BATCH_BLOCKS: u64 = 64;

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
    /// The chain's nodes; their `Final` is the chain's own finality.
    pub chain: Arc<dyn BlockLogs>,
    /// The same nodes by other finalities, for sources that have one of their own.
    pub finals: Vec<(Finality, Arc<dyn Chain>)>,
    /// The database.
    pub store: Arc<dyn WatchStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Who takes each source's events.
    pub subscribers: BTreeMap<String, Vec<(String, Wait)>>,
}

/// What is known of the chain, as it is stored.
struct View {
    window: Window,
    tip: Place,
    finalized: Option<Place>,
    next: BTreeMap<String, u64>,
}

impl View {
    fn new(state: ChainState) -> Result<Self, StepError> {
        let broken = |why: String| StepError::Store(WatchStoreError::Contradiction(why));
        let window = Window::new(state.window).map_err(|error| broken(error.to_string()))?;
        if window.tip() != Some(state.cursor) {
            return Err(broken("the stored window does not end with the cursor".to_owned()));
        }
        let next = state.sources.into_iter().map(|source| (source.name, source.next_block));
        Ok(Self { window, tip: state.cursor, finalized: state.finalized, next: next.collect() })
    }

    fn next_of(&self, source: &Source) -> u64 {
        self.next.get(&source.name).copied().unwrap_or(u64::MAX)
    }
}

/// One chain's poller.
pub struct Poller {
    parts: Parts,
    started: bool,
    view: Option<View>,
    halted: Option<String>,
    /// What was settled last, so that an idle poll writes nothing.
    settled: Option<Settle>,
}

pub(super) fn link(block: &Block) -> Link {
    Link { number: block.number, hash: block.hash, parent: block.parent }
}

impl Poller {
    /// A poller that has not looked at anything yet.
    #[must_use]
    pub const fn new(parts: Parts) -> Self {
        Self { parts, started: false, view: None, halted: None, settled: None }
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
        if let Some(why) = &self.halted {
            return Err(StepError::Halted(why.clone()));
        }
        let view = match self.view.take() {
            Some(view) => view,
            None => self.load().await?,
        };
        // Put back only if all went well: after an error the view is loaded again.
        let (view, progress) = self.forward(view).await?;
        self.view = Some(view);
        Ok(progress)
    }

    async fn load(&mut self) -> Result<View, StepError> {
        if !self.started {
            self.start().await?;
            self.started = true;
        }
        self.settled = None;
        let state = self.parts.store.load(self.chain()).await?;
        let gone = || WatchStoreError::Contradiction("the chain's rows are gone".to_owned());
        View::new(state.ok_or_else(gone)?)
    }

    async fn forward(&mut self, view: View) -> Result<(View, Progress), StepError> {
        let head = self.head().await?;
        let lag = head.number.saturating_sub(view.tip.number);
        self.gauge("claviger_watcher_lag_blocks", lag);
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
        if self.backfill(&mut view).await? {
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
        let events = self.events(&headers, &sources, &view).await?;
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

    /// Reads old blocks for the source that is furthest behind. `true` if there was one.
    async fn backfill(&mut self, view: &mut View) -> Result<bool, StepError> {
        let behind = |source: &&Source| view.next_of(source) <= view.tip.number;
        let furthest = self.parts.plan.sources.iter().filter(behind);
        let furthest = furthest.map(|source| (view.next_of(source), source)).min_by_key(|s| s.0);
        let Some((from, source)) = furthest else { return Ok(false) };
        let to = view.tip.number.min(from.saturating_add(BATCH_BLOCKS.saturating_sub(1)));
        let headers = self.headers(from, to).await?;
        let links: Vec<Link> = headers.iter().map(link).collect();
        check_linked(None, &links).map_err(|error| StepError::Inconsistent(error.to_string()))?;
        let ours = |link: &Link| view.window.at(link.number).is_none_or(|at| at == link.place());
        if !links.iter().all(ours) {
            let why = "a block to backfill is not on the chain that was followed";
            return Err(StepError::Inconsistent(why.to_owned()));
        }
        let events = self.events(&headers, &[source], view).await?;
        let name = source.name.clone();
        let next = to.saturating_add(1);
        let moved = vec![SourceMove { source: name.clone(), from, to: next }];
        self.advance(view, Vec::new(), moved, events).await?;
        view.next.insert(name, next);
        Ok(true)
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

    /// Goes back to where a branch leaves our chain.
    async fn reorg(&mut self, view: View, newest: &Block) -> Result<View, StepError> {
        let mut branch = vec![link(newest)];
        let ancestor = loop {
            match view.window.relate(&branch) {
                Relation::Reorg { ancestor } => break ancestor,
                Relation::NeedsParent(parent) => branch.push(self.parent(parent).await?),
                Relation::Known | Relation::Extends => {
                    return Err(StepError::Inconsistent("the head went back and forth".to_owned()));
                }
                Relation::Unrelated => {
                    let number = newest.number;
                    return Err(self.halt(format!("block {number} leaves the window")).await);
                }
            }
        };
        let depth = view.tip.number.saturating_sub(ancestor.number);
        self.gauge("claviger_reorg_depth", depth);
        if view.finalized.is_some_and(|finalized| ancestor.number < finalized.number) {
            let why = format!("a reorg of {depth} blocks goes below finality");
            return Err(self.halt(why).await);
        }
        self.roll_back(&view, ancestor, depth).await?;
        self.load().await
    }

    async fn roll_back(&self, view: &View, to: Place, depth: u64) -> Result<(), StepError> {
        let now = self.parts.clock.now();
        let standing = self.parts.store.standing_above(self.chain(), to.number).await?;
        let retraction = |event: StandingEvent| {
            let body = cloudevent::retraction(&event.body, now);
            let unread = || WatchStoreError::Contradiction("a stored event is no JSON".to_owned());
            Ok(StandingEvent { body: body.ok_or_else(unread)?, ..event })
        };
        let retractions: Vec<StandingEvent> =
            standing.into_iter().map(retraction).collect::<Result<_, WatchStoreError>>()?;
        let (chain, ancestor, events) = (self.chain(), to.number, retractions.len());
        tracing::warn!(chain, depth, ancestor, events, "reorg: events are retracted");
        let back = RollBack {
            chain: self.chain().to_owned(),
            expected: view.tip,
            ancestor: to,
            retractions,
            now,
        };
        Ok(self.parts.store.roll_back(&back).await?)
    }

    async fn halt(&mut self, why: String) -> StepError {
        let chain = self.chain().to_owned();
        tracing::error!(
            chain,
            why,
            "the chain is halted; nothing is taken until an operator looks"
        );
        self.gauge("claviger_watcher_halted", 1);
        self.halted = Some(why.clone());
        match self.parts.store.set_halted(&chain, Some(&why)).await {
            Ok(()) => StepError::Halted(why),
            Err(error) => StepError::Store(error),
        }
    }

    /// Records what is final, and lets held deliveries go.
    async fn settle(&mut self, view: &mut View) -> Result<(), StepError> {
        let own: Arc<dyn Chain> = Arc::clone(&self.parts.chain) as Arc<dyn Chain>;
        let finalized = self.final_place(own.as_ref(), view).await?;
        let mut places = vec![(self.parts.plan.chain.finality, finalized)];
        for (finality, chain) in &self.parts.finals {
            places.push((*finality, self.final_place(chain.as_ref(), view).await?));
        }
        let release = |source: &Source| {
            let place = places.iter().find(|(finality, _)| *finality == source.finality)?.1?;
            Some((source.name.clone(), place.number))
        };
        let mut settle = Settle {
            chain: self.chain().to_owned(),
            expected: view.tip,
            finalized,
            releases: self.parts.plan.sources.iter().filter_map(release).collect(),
            now: self.parts.clock.now(),
        };
        if let Some(settled) = &self.settled {
            settle.now = settled.now;
            if *settled == settle {
                return Ok(());
            }
            settle.now = self.parts.clock.now();
        }
        self.parts.store.settle(&settle).await?;
        if finalized.map(|place| place.number) > view.finalized.map(|place| place.number) {
            view.finalized = finalized;
        }
        self.settled = Some(settle);
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
