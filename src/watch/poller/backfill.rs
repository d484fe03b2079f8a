//! Old blocks, for sources that begin below what is followed.
//!
//! What is final is read in ranges: one list of logs for many blocks, and the header of each of them. The
//! headers must be linked, to each other and to what was read before; each log must be of the header's
//! block; a block whose bloom filter may have a source's event that the list does not have, and the last
//! block of the list, which may be cut, are read whole. What is not final yet is read block by block.
//!
//! It has a node and a backoff of its own: what fails here does not hold up new blocks.

use super::fetch::{Asked, PARALLEL, headers_on};
use super::second_read::Again;
use super::whole::{Blooms, Reading};
use super::{BATCH_BLOCKS, Poller, StepError, View, link, moves};
use crate::core::chain_view::ranges::{Refused, Widths};
use crate::core::chain_view::{Link, Place, check_linked};
use crate::core::time::Timestamp;
use crate::ports::chain::{Block, BlockId, ChainError, Claim, Log};
use crate::ports::chain_reader::{LogFilter, OneNode, RangeError};
use crate::watch::plan::Source;
use futures::future::try_join_all;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many blocks of a range a step takes at most: new blocks wait for it.
const HEADERS_A_STEP: u64 = 256;
/// How many logs it takes at most, but for one block that has more.
const LOGS_A_STEP: usize = 5000;
/// A list with more logs than this makes the next range narrower.
const LOGS_A_RANGE: u64 = 20_000;
/// The first pause after a failure, in milliseconds; it doubles with each further one.
const PAUSE_MS: i64 = 1000;
/// The longest.
const PAUSE_MS_MAX: i64 = 60_000;

/// What a poller keeps of its reading of old blocks; all of it can be lost.
pub(super) struct Past {
    /// By the node's place.
    widths: BTreeMap<usize, Widths>,
    /// The last block that was read, which the next one is linked to.
    last: Option<Place>,
    /// A range that was answered and is not all taken yet.
    read: Option<RangeRead>,
    /// The node that was asked last.
    asked: Option<usize>,
    /// Nodes that failed since the last success.
    failed: Vec<usize>,
    rest: Rest,
    pub(super) again: Again,
    pub(super) blooms: Blooms,
}

impl Past {
    pub(super) const fn new() -> Self {
        Self {
            widths: BTreeMap::new(),
            last: None,
            read: None,
            asked: None,
            failed: Vec::new(),
            rest: Rest::new(),
            again: Again::new(),
            blooms: Blooms::new(),
        }
    }
}

/// Pauses after failures.
pub(super) struct Rest {
    failures: u32,
    until: Option<Timestamp>,
}

impl Rest {
    pub(super) const fn new() -> Self {
        Self { failures: 0, until: None }
    }

    /// A pause that is longer than any was begun by a clock that was ahead.
    pub(super) fn lasts(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| (1..=PAUSE_MS_MAX).contains(&until.since(now)))
    }

    pub(super) const fn end(&mut self) {
        *self = Self::new();
    }

    pub(super) fn begin(&mut self, now: Timestamp) {
        let pause = PAUSE_MS.saturating_mul(2_i64.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now.plus_millis(pause.min(PAUSE_MS_MAX)));
    }
}

/// Sources that are behind at one height.
struct Behind {
    from: u64,
    upto: u64,
    sources: Vec<Source>,
    /// All of it is final, and found by logs.
    is_range: bool,
}

impl Behind {
    fn names(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.name.clone()).collect()
    }
}

/// The logs of a range of blocks.
pub(super) struct RangeRead {
    pub(super) node: Arc<dyn OneNode>,
    pub(super) sources: Vec<String>,
    pub(super) from: u64,
    pub(super) to: u64,
    /// By block.
    pub(super) logs: BTreeMap<u64, Vec<Log>>,
    /// The highest block that has logs in it: the list may end in the midst of that block.
    pub(super) last_logged: Option<u64>,
    /// One block, whose logs are too many for a list.
    pub(super) by_receipts: bool,
}

impl RangeRead {
    fn fits(&self, behind: &Behind) -> bool {
        self.from == behind.from && self.to <= behind.upto && self.sources == behind.names()
    }

    /// The last block of what one step takes.
    fn step_end(&self) -> u64 {
        let end = self.to.min(self.from.saturating_add(HEADERS_A_STEP.saturating_sub(1)));
        let mut count = 0_usize;
        for (number, logs) in self.logs.range(..=end) {
            count = count.saturating_add(logs.len());
            if count > LOGS_A_STEP {
                // Up to the block before; of one block, all.
                return number.saturating_sub(1).max(self.from);
            }
        }
        end
    }
}

/// The logs of all that these sources watch.
fn filter(sources: &[Source]) -> LogFilter {
    let emitters: Option<Vec<_>> = sources.iter().map(Source::emitter).collect();
    let mut addresses = emitters.unwrap_or_default();
    let mut topic0: Vec<_> =
        sources.iter().filter_map(|source| Some(source.event()?.topic0())).collect();
    addresses.sort_unstable();
    addresses.dedup();
    topic0.sort_unstable();
    topic0.dedup();
    LogFilter { addresses, topic0 }
}

fn inconsistent(why: &str) -> StepError {
    StepError::Inconsistent(why.to_owned())
}

impl Poller {
    /// Reads old blocks, and again what was read. `true` if there is more to do now. What a node does wrong
    /// here puts this off and nothing else.
    pub(super) async fn backfill(&mut self, view: &mut View) -> Result<bool, StepError> {
        let now = self.parts.clock.now();
        let mut more = false;
        if !self.past.rest.lasts(now) {
            match self.read_past(view).await {
                Ok(read) => {
                    self.past.rest.end();
                    self.past.failed.clear();
                    more = read;
                }
                Err(error) => more = self.put_off(error, now)?,
            }
        }
        Ok(self.second_read(view, now).await? || more)
    }

    /// Goes on with another node at once if there is one, and later otherwise.
    fn put_off(&mut self, error: StepError, now: Timestamp) -> Result<bool, StepError> {
        if matches!(error, StepError::Store(_) | StepError::Halted(_)) {
            return Err(error);
        }
        let (chain, node) = (self.chain(), self.past.asked.unwrap_or_default());
        tracing::warn!(chain, node, %error, "old blocks were not read; will try again");
        metrics::counter!("claviger_watcher_backfill_failures_total", "chain" => chain.to_owned())
            .increment(1);
        self.past.read = None;
        // It may be what the others do not fit to.
        self.past.last = None;
        self.past.failed.extend(self.past.asked.take());
        if !self.past.failed.is_empty() && self.parts.chain.node(&self.past.failed).is_some() {
            return Ok(true);
        }
        self.past.failed.clear();
        self.past.rest.begin(now);
        Ok(false)
    }

    /// `false` if no source is behind.
    async fn read_past(&mut self, view: &mut View) -> Result<bool, StepError> {
        let Some(behind) = self.behind(view) else {
            self.past.read = None;
            return Ok(false);
        };
        if behind.is_range {
            self.read_range(view, behind).await?;
        } else {
            self.read_blocks(view, &behind).await?;
        }
        Ok(true)
    }

    /// The sources that are furthest behind, and up to where they are read together.
    fn behind(&self, view: &View) -> Option<Behind> {
        let sources = &self.parts.plan.sources;
        let next = |source: &Source| view.next_of(source);
        let from = sources.iter().map(next).min().filter(|from| *from <= view.tip.number)?;
        let group: Vec<Source> =
            sources.iter().filter(|source| next(source) == from).cloned().collect();
        let final_number = view.finalized.map_or(0, |place| place.number).min(view.tip.number);
        let is_range = from <= final_number && !group.iter().any(Source::reads_transactions);
        // The next one joins them there.
        let joins = sources.iter().map(next).filter(|next| *next > from).min();
        let joins = joins.map_or(u64::MAX, |next| next.saturating_sub(1));
        let ordered = group.iter().filter_map(|source| view.to.get(&source.name)).min();
        let upto = if is_range { final_number } else { view.tip.number }.min(joins);
        // One that was sent back for some blocks goes on elsewhere after them.
        let upto = upto.min(ordered.map_or(u64::MAX, |to| (*to).max(from)));
        Some(Behind { from, upto, sources: group, is_range })
    }

    /// Block by block, as new ones are read.
    async fn read_blocks(&mut self, view: &mut View, behind: &Behind) -> Result<(), StepError> {
        let from = behind.from;
        let to = behind.upto.min(from.saturating_add(BATCH_BLOCKS.saturating_sub(1)));
        let node = self.past_node()?;
        let headers = headers_on(node.as_ref(), from, to).await?;
        self.check_past(view, &headers, node.place()).await?;
        let sources: Vec<&Source> = behind.sources.iter().collect();
        let final_to = view.finalized.map(|place| place.number);
        let asked = Asked { node: node.as_ref(), final_to };
        let events = self.events(asked, &headers, &sources, view).await?;
        self.take_past(view, &headers, &sources, events).await
    }

    async fn read_range(&mut self, view: &mut View, behind: Behind) -> Result<(), StepError> {
        let read = self.past.read.take().filter(|read| read.fits(&behind));
        let mut read = match read {
            Some(read) => read,
            None => {
                let node = self.past_node()?;
                self.ask_range(node, behind.sources.clone(), behind.from, behind.upto).await?
            }
        };
        self.past.asked = Some(read.node.place());
        let headers = headers_on(read.node.as_ref(), read.from, read.step_end()).await?;
        self.check_past(view, &headers, read.node.place()).await?;
        self.sample_blooms(read.node.as_ref(), &headers).await;
        let asked = |source: &&Source| read.sources.contains(&source.name);
        let sources: Vec<&Source> = behind.sources.iter().filter(asked).collect();
        let mut events = Vec::new();
        for chunk in headers.chunks(PARALLEL) {
            let listed: Vec<(&Block, Vec<Log>)> = chunk
                .iter()
                .map(|block| (block, read.logs.remove(&block.number).unwrap_or_default()))
                .collect();
            let found = listed
                .into_iter()
                .map(|(block, listed)| self.logs_of(&read, block, listed, &sources));
            for (block, logs) in chunk.iter().zip(try_join_all(found).await?) {
                events.extend(self.events_in(block, &logs, &sources));
            }
        }
        self.take_past(view, &headers, &sources, events).await?;
        read.from = headers.last().map_or(read.to, |block| block.number).saturating_add(1);
        self.past.read = Some(read).filter(|read| read.from <= read.to);
        Ok(())
    }

    /// The logs of a block that are these sources', out of a list for many blocks.
    async fn logs_of(
        &self,
        read: &RangeRead,
        block: &Block,
        listed: Vec<Log>,
        sources: &[&Source],
    ) -> Result<Vec<Log>, StepError> {
        if listed.iter().any(|log| log.block_hash != block.hash) {
            return Err(inconsistent("a list of logs has some of a block that is not canonical"));
        }
        let lacks = |source: &&&Source| {
            self.may_be_in(source, block) && !listed.iter().any(|log| source.is_log(log))
        };
        let is_whole = !read.by_receipts
            && read.last_logged != Some(block.number)
            && !sources.iter().any(|source| lacks(&source));
        if is_whole {
            return Ok(listed);
        }
        let reading = if read.by_receipts { Reading::Receipts } else { Reading::Final };
        let mut logs = self.whole(read.node.as_ref(), block, reading).await?;
        logs.retain(|log| sources.iter().any(|source| source.is_log(log)));
        if !read.by_receipts && logs.len() > listed.len() {
            let (chain, node, block) = (self.chain(), read.node.place(), block.number);
            tracing::warn!(chain, node, block, "a list of logs of many blocks left some out");
            metrics::counter!("claviger_rpc_errors_total", "class" => "incomplete").increment(1);
        }
        Ok(logs)
    }

    /// Checks that these blocks, oldest first, are of our chain.
    async fn check_past(
        &self,
        view: &View,
        headers: &[Block],
        node: usize,
    ) -> Result<(), StepError> {
        let links: Vec<Link> = headers.iter().map(link).collect();
        let first = links.first().map_or(0, |first| first.number);
        let before = first.checked_sub(1).and_then(|number| {
            let last = self.past.last.filter(|last| last.number == number);
            last.or_else(|| view.window.at(number))
        });
        check_linked(before, &links).map_err(|error| StepError::Inconsistent(error.to_string()))?;
        let ours = |link: &Link| view.window.at(link.number).is_none_or(|at| at == link.place());
        if !links.iter().all(ours) {
            return Err(inconsistent("an old block is not on the chain that is followed"));
        }
        let Some(last) = links.last().filter(|_| self.parts.chain.count() > 1) else {
            return Ok(());
        };
        if view.window.has(last.place()) {
            return Ok(());
        }
        let claim = Claim::Canonical(BlockId { number: last.number, hash: last.hash });
        let said = self.parts.chain.agreement(&claim, Some(node)).await;
        if said.contradict.is_empty() || said.is_carried() {
            return Ok(());
        }
        let (number, others) = (last.number, said.contradict);
        let why = format!("node {node} has another block {number} than the nodes {others:?}");
        Err(StepError::Inconsistent(why))
    }

    async fn take_past(
        &mut self,
        view: &mut View,
        headers: &[Block],
        sources: &[&Source],
        events: Vec<super::NewEvent>,
    ) -> Result<(), StepError> {
        let Some(last) = headers.last() else { return Ok(()) };
        let moves = moves(sources, view, last.number);
        self.advance(view, Vec::new(), moves, events).await?;
        for source in sources {
            view.next.insert(source.name.clone(), last.number.saturating_add(1));
            let ordered = view.to.get(&source.name);
            view.is_stale = view.is_stale || ordered.is_some_and(|to| *to <= last.number);
        }
        self.past.last = Some(link(last).place());
        Ok(())
    }

    /// The node to read old blocks on: the one of this step, unless it failed here.
    fn past_node(&mut self) -> Result<Arc<dyn OneNode>, StepError> {
        let fresh = self.parts.chain.node(&self.past.failed);
        let node = match fresh {
            Some(node) => node,
            None => self.node()?,
        };
        self.past.asked = Some(node.place());
        Ok(node)
    }

    /// The logs of as many blocks as the node gives at once, from `from`, for as many of the sources.
    pub(super) async fn ask_range(
        &mut self,
        node: Arc<dyn OneNode>,
        mut sources: Vec<Source>,
        from: u64,
        upto: u64,
    ) -> Result<RangeRead, StepError> {
        let most = self.parts.plan.chain.range_blocks;
        let chain = self.parts.plan.chain.name.clone();
        loop {
            let widths = self.past.widths.entry(node.place()).or_insert_with(|| Widths::new(most));
            let to = widths.upto(from, upto);
            let blocks = to.saturating_sub(from).saturating_add(1);
            match node.range_logs(from, to, &filter(&sources)).await {
                Ok(logs) => {
                    widths.answered(blocks);
                    let count = u64::try_from(logs.len()).unwrap_or(u64::MAX);
                    if let Some(crowd) = count.checked_div(LOGS_A_RANGE).filter(|crowd| *crowd > 0)
                    {
                        widths.crowded(blocks.checked_div(crowd).unwrap_or(1));
                    }
                    return Ok(range_read(node, &sources, (from, to), Some(logs)));
                }
                Err(RangeError::TooWide { blocks: hint, to: works, text }) => {
                    let node_place = node.place();
                    tracing::info!(chain, node = node_place, from, to, text, "a range is too wide");
                    metrics::counter!("claviger_watcher_ranges_refused_total", "chain" => chain.clone())
                        .increment(1);
                    let works = works.and_then(|works| works.checked_sub(from));
                    let hint = works.map(|blocks| blocks.saturating_add(1)).or(hint);
                    if widths.refused(blocks, hint) == Refused::OneBlock {
                        return Ok(range_read(node, &sources, (from, to), None));
                    }
                }
                // It may take fewer addresses.
                Err(RangeError::Chain(ChainError::Refused(_))) if sources.len() > 1 => {
                    sources.truncate(sources.len() / 2);
                }
                Err(RangeError::Chain(error)) => {
                    if matches!(error, ChainError::Unavailable(_)) {
                        widths.silent(blocks);
                    }
                    return Err(error.into());
                }
                Err(RangeError::Busy { text, .. }) => {
                    return Err(ChainError::Unavailable(text).into());
                }
            }
        }
    }
}

fn range_read(
    node: Arc<dyn OneNode>,
    sources: &[Source],
    (from, to): (u64, u64),
    listed: Option<Vec<Log>>,
) -> RangeRead {
    let by_receipts = listed.is_none();
    let mut logs = BTreeMap::<u64, Vec<Log>>::new();
    for log in listed.unwrap_or_default() {
        logs.entry(log.block_number).or_default().push(log);
    }
    RangeRead {
        node,
        sources: sources.iter().map(|source| source.name.clone()).collect(),
        from,
        to,
        last_logged: logs.keys().next_back().copied(),
        logs,
        by_receipts,
    }
}
