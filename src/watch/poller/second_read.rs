//! Final blocks are read a second time: a node's index of logs can lack some for ever, without a sign.
//!
//! The second reading asks another node, by range, and does not look at bloom filters; where there is only
//! one node, it asks that one, which finds what a lag or a filter hid and not what the node does not have.
//! What the first reading left out is told late, once. Only a node that has these blocks, and lacks nothing
//! that is known of them, checks them.

use super::backfill::{RangeRead, Rest};
use super::fetch::headers_on;
use super::whole::Reading;
use super::{Poller, StepError, View};
use crate::core::time::Timestamp;
use crate::ports::chain::{Block, Log};
use crate::ports::chain_reader::OneNode;
use crate::ports::watch_store::{Checked, NewEvent, ReadAgain, SourceMove, WatchStoreError};
use crate::watch::cloudevent;
use crate::watch::plan::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So many final blocks are read again at once,
const BLOCKS_DUE: u64 = 256;
/// or after so long, in milliseconds.
const WAIT_MS: i64 = 60_000;

/// How far the second reading is.
pub(super) struct Again {
    /// By source: the first block that was not read again, and the last that is to be, if it goes on elsewhere
    /// after that. `None`: it is to be loaded.
    next: Option<BTreeMap<String, (u64, Option<u64>)>>,
    /// When what there is to read is read, however little it is.
    due: Option<Timestamp>,
    /// What was asked for last: of which node, for which sources.
    asked: Option<(usize, Vec<String>)>,
    /// Nodes that failed for these sources.
    failed: Vec<usize>,
    /// Sources that every node failed for: the others go on meanwhile.
    passed_over: Vec<String>,
    rest: Rest,
}

impl Again {
    pub(super) const fn new() -> Self {
        Self {
            next: None,
            due: None,
            asked: None,
            failed: Vec::new(),
            passed_over: Vec::new(),
            rest: Rest::new(),
        }
    }

    /// Where one ends that goes on elsewhere, the database says where.
    fn moved(&mut self, moves: Vec<SourceMove>) {
        let Some(next) = &mut self.next else { return };
        for SourceMove { source, to, .. } in moves {
            if next.insert(source, (to, None)).is_some_and(|(_, end)| end.is_some()) {
                self.next = None;
                return;
            }
        }
    }

    /// A command may have sent it back.
    pub(super) fn forget_place(&mut self) {
        self.next = None;
    }
}

/// Blocks to be read again.
struct Due {
    from: u64,
    upto: u64,
    sources: Vec<Source>,
}

/// What was read again.
enum Did {
    /// Nothing is due, or nobody is there to ask.
    Nothing,
    /// A range.
    Read,
    /// A range, by a node that lacks something: it is not checked by that.
    Short,
}

/// A log that was found, and whose.
struct Found<'a> {
    source: &'a Source,
    event_id: String,
    log: Log,
}

impl Poller {
    /// Reads one range again, if it is time. `true` if there is more to do now.
    pub(super) async fn second_read(
        &mut self,
        view: &View,
        now: Timestamp,
    ) -> Result<bool, StepError> {
        if self.past.again.rest.lasts(now) {
            return Ok(false);
        }
        match self.read_again(view, now).await {
            Ok(Did::Read) => {
                self.past.again.rest.end();
                Ok(true)
            }
            Ok(Did::Short) => {
                let asked = self.past.again.asked.take();
                Ok(self.go_on_without(asked, now))
            }
            Ok(Did::Nothing) => {
                let again = &mut self.past.again;
                again.failed.clear();
                if !again.passed_over.is_empty() {
                    again.passed_over.clear();
                    again.rest.begin(now);
                }
                Ok(false)
            }
            Err(StepError::Store(WatchStoreError::CursorMoved)) => {
                self.past.again.next = None;
                Ok(false)
            }
            Err(error @ (StepError::Store(_) | StepError::Halted(_))) => Err(error),
            Err(error) => {
                let asked = self.past.again.asked.take();
                let (chain, node) = (self.chain(), asked.as_ref().map(|(node, _)| *node));
                tracing::warn!(chain, node, %error, "final blocks were not read again; will try later");
                self.outcome("failed");
                Ok(self.go_on_without(asked, now))
            }
        }
    }

    /// The next node is asked, or else the next sources: what one does not give holds up nobody else.
    /// `false` if it has to wait.
    fn go_on_without(&mut self, asked: Option<(usize, Vec<String>)>, now: Timestamp) -> bool {
        let first = self.node.as_ref().map(|node| node.place());
        let again = &mut self.past.again;
        let Some((node, sources)) = asked else {
            again.rest.begin(now);
            return false;
        };
        again.failed.push(node);
        let but: Vec<usize> = again.failed.iter().copied().chain(first).collect();
        let chain = &self.parts.chain;
        if chain.count() == 1 || chain.node(&but).is_none() {
            again.failed.clear();
            again.passed_over.extend(sources);
        }
        true
    }

    async fn read_again(&mut self, view: &View, now: Timestamp) -> Result<Did, StepError> {
        let Some(due) = self.due(view, now).await? else { return Ok(Did::Nothing) };
        let first = self.node()?;
        let but: Vec<usize> =
            self.past.again.failed.iter().copied().chain([first.place()]).collect();
        let node = match self.parts.chain.node(&but) {
            Some(other) => other,
            None if self.parts.chain.count() == 1 => Arc::clone(&first),
            None => return Ok(Did::Nothing),
        };
        let sources = due.sources.clone();
        let names = sources.iter().map(|source| source.name.clone()).collect();
        self.past.again.asked = Some((node.place(), names));
        // Before the logs: of blocks that it has not got, a node may answer that there are none in them.
        let head = node.head().await?.number;
        if head < due.from {
            let (place, from) = (node.place(), due.from);
            let why = format!("node {place} has come to block {head}, and not to {from}");
            return Err(StepError::Inconsistent(why));
        }
        let upto = due.upto.min(head);
        let read = self.ask_range(Arc::clone(&node), sources, due.from, upto).await?;
        self.has_ours(view, first.as_ref(), node.as_ref(), read.to).await?;
        let found = self.found(&read, &due.sources).await?;
        let known = self.parts.store.known_between(self.chain(), read.from, read.to).await?;
        let known: BTreeSet<(String, String)> = known.into_iter().collect();
        let is_known = |found: &Found<'_>| {
            known.contains(&(found.source.name.clone(), found.event_id.clone()))
        };
        let ids: BTreeSet<&str> = found.iter().map(|found| found.event_id.as_str()).collect();
        let lacking = known
            .iter()
            .filter(|(source, id)| read.sources.contains(source) && !ids.contains(id.as_str()));
        let lacking = lacking.count();
        let (from, to) = (read.from, read.to);
        let late: Vec<&Found<'_>> = found.iter().filter(|found| !is_known(found)).collect();
        let events = self.late_events(first.as_ref(), node.as_ref(), &late).await?;
        // Who lacks what is known may lack what is not known too: what it has is told, and its answer checks
        // nothing.
        let next = if lacking > 0 { from } else { to.saturating_add(1) };
        let moves =
            read.sources.iter().map(|source| SourceMove { source: source.clone(), from, to: next });
        let again = ReadAgain {
            chain: self.chain().to_owned(),
            moves: moves.collect(),
            events,
            nodes: u64::try_from(self.parts.chain.count()).unwrap_or(u64::MAX),
            now,
        };
        let told = self.parts.store.read_again(&again).await?;
        self.tell_second_read(node.place(), (from, to), &told, lacking);
        if lacking == 0 {
            self.past.again.moved(again.moves);
        }
        Ok(if lacking > 0 { Did::Short } else { Did::Read })
    }

    /// Checks that a node has the block at this height that was read first, and so all those before it.
    async fn has_ours(
        &self,
        view: &View,
        first: &dyn OneNode,
        second: &dyn OneNode,
        number: u64,
    ) -> Result<(), StepError> {
        let hash = |blocks: Vec<Block>| blocks.first().map(|block| block.hash);
        let theirs = hash(headers_on(second, number, number).await?);
        let ours = match view.window.at(number) {
            Some(place) => Some(place.hash),
            None => hash(headers_on(first, number, number).await?),
        };
        if theirs == ours {
            return Ok(());
        }
        let why = format!("two nodes have other blocks {number}, which is final");
        Err(StepError::Inconsistent(why))
    }

    /// What is final, was read once, and is to be read again now.
    async fn due(&mut self, view: &View, now: Timestamp) -> Result<Option<Due>, StepError> {
        let by_logs = |source: &&Source| !source.reads_transactions();
        let sources = || self.parts.plan.sources.iter().filter(by_logs);
        if self.past.again.next.is_none() {
            let begin = |source: &Source| {
                let next = view.next_of(source);
                (source.name.clone(), source.from_block.map_or(next, |from| from.max(1).min(next)))
            };
            let begin: Vec<(String, u64)> = sources().map(begin).collect();
            let checked = self.parts.store.checked(&begin).await?.into_iter();
            let place = |of: Checked| (of.source, (of.next_block, of.to_block));
            self.past.again.next = Some(checked.map(place).collect());
        }
        let Some(checked) = &self.past.again.next else { return Ok(None) };
        let place = |source: &Source| checked.get(&source.name).copied();
        let next = |source: &Source| place(source).map_or(u64::MAX, |(next, _)| next);
        let ordered = |source: &Source| place(source).and_then(|(_, to)| to).unwrap_or(u64::MAX);
        let final_number = view.finalized.map_or(0, |place| place.number);
        let end = |source: &Source| {
            view.next_of(source).saturating_sub(1).min(final_number).min(ordered(source))
        };
        let behind: Vec<&Source> = sources().filter(|source| next(source) <= end(source)).collect();
        let lag = |source: &&Source| end(source).saturating_add(1).saturating_sub(next(source));
        let lag = behind.iter().map(lag).max().unwrap_or(0);
        self.gauge("claviger_watcher_second_read_lag_blocks", lag);
        let is_open = |source: &&Source| !self.past.again.passed_over.contains(&source.name);
        if behind.is_empty() {
            self.past.again.due = None;
        }
        let open: Vec<&Source> = behind.into_iter().filter(is_open).collect();
        let Some(from) = open.iter().map(|source| next(source)).min() else { return Ok(None) };
        let group: Vec<Source> =
            open.iter().filter(|source| next(source) == from).map(|it| (*it).clone()).collect();
        let joins = open.iter().map(|source| next(source)).filter(|next| *next > from).min();
        let joins = joins.map_or(u64::MAX, |next| next.saturating_sub(1));
        let upto = group.iter().map(end).min().unwrap_or(0).min(joins);
        // The clock may have been ahead when it was set.
        let latest = now.plus_millis(WAIT_MS);
        let due = self.past.again.due.map_or(latest, |due| due.min(latest));
        self.past.again.due = Some(due);
        let is_much = upto.saturating_sub(from) >= BLOCKS_DUE;
        Ok((is_much || now >= due).then_some(Due { from, upto, sources: group }))
    }

    /// All logs of a range, with whose they are.
    async fn found<'a>(
        &self,
        read: &RangeRead,
        sources: &'a [Source],
    ) -> Result<Vec<Found<'a>>, StepError> {
        let logs: Vec<Log> = if read.by_receipts {
            let mut logs = Vec::new();
            for block in headers_on(read.node.as_ref(), read.from, read.to).await? {
                logs.extend(self.whole(read.node.as_ref(), &block, Reading::Receipts).await?);
            }
            logs
        } else {
            read.logs.values().flatten().cloned().collect()
        };
        let mut found = Vec::new();
        for log in logs {
            let asked = sources.iter().filter(|source| read.sources.contains(&source.name));
            for source in asked.filter(|source| source.is_log(&log)) {
                let event_id = cloudevent::event_id(self.chain(), &log);
                found.push(Found { source, event_id, log: log.clone() });
            }
        }
        Ok(found)
    }

    /// The events that were left out, if both nodes have their blocks.
    async fn late_events(
        &self,
        first: &dyn OneNode,
        second: &dyn OneNode,
        late: &[&Found<'_>],
    ) -> Result<Vec<NewEvent>, StepError> {
        let mut blocks: BTreeMap<u64, Block> = BTreeMap::new();
        for number in late.iter().map(|found| found.log.block_number) {
            if blocks.contains_key(&number) {
                continue;
            }
            let theirs = headers_on(second, number, number).await?;
            let ours = headers_on(first, number, number).await?;
            let same = theirs.iter().zip(&ours).all(|(one, other)| one.hash == other.hash);
            match theirs.into_iter().next().filter(|_| same) {
                Some(block) => blocks.insert(number, block),
                None => {
                    let why = format!("two nodes have other blocks {number}, which is final");
                    return Err(StepError::Inconsistent(why));
                }
            };
        }
        let mut events = Vec::with_capacity(late.len());
        for found in late {
            let block = blocks.get(&found.log.block_number);
            let block = block.filter(|block| block.hash == found.log.block_hash);
            let Some(block) = block else {
                let why = "a list of logs has some of a block that is not canonical";
                return Err(StepError::Inconsistent(why.to_owned()));
            };
            if !found.source.may_be_in(&block.logs_bloom) {
                self.distrust_blooms(block);
            }
            events.push(self.event(found.source, block, &found.log));
        }
        Ok(events)
    }

    fn tell_second_read(
        &mut self,
        node: usize,
        (from, to): (u64, u64),
        told: &[String],
        lacking: usize,
    ) {
        let chain = self.chain().to_owned();
        for event_id in told {
            tracing::error!(
                chain,
                node,
                event_id,
                "the first reading had left out an event; it is told late"
            );
        }
        if lacking > 0 {
            tracing::warn!(chain, node, from, to, lacking, "a node lacks events that another has");
        }
        tracing::debug!(chain, node, from, to, "read again");
        self.outcome(match (told.is_empty(), lacking) {
            (false, _) => "late",
            (true, 0) => "same",
            (true, _) => "short",
        });
        if !told.is_empty() {
            // Deliveries of what is final already must be let go.
            self.settled = None;
        }
    }

    fn outcome(&self, outcome: &'static str) {
        let labels = [("chain", self.chain().to_owned()), ("outcome", outcome.to_owned())];
        metrics::counter!("claviger_watcher_second_read_total", &labels).increment(1);
    }
}
