//! What is final, and the deliveries that may go because of it.

use super::{Poller, StepError, View, link};
use crate::core::chain_view::Place;
use crate::core::chain_view::finality::{compare_at, is_older_than_window, on_ours};
use crate::core::time::Timestamp;
use crate::ports::chain_reader::Rule;
use crate::ports::watch_store::Settle;
use crate::watch::plan::Source;

/// Finality that does not move for so long while blocks come is told, in milliseconds.
const STALL_MS: i64 = 30 * 60_000;

/// What was told of finality, and since when it stands.
pub(super) struct Stall {
    /// The final height, where the tip was, and since when.
    since: Option<(Option<u64>, u64, Timestamp)>,
    is_told: bool,
}

impl Stall {
    pub(super) const fn new() -> Self {
        Self { since: None, is_told: false }
    }

    /// Whether finality has stood for long, though blocks came.
    fn stands(&mut self, finalized: Option<u64>, tip: u64, now: Timestamp) -> bool {
        match self.since {
            Some((at, from, since)) if at == finalized => {
                tip > from && now.millis().saturating_sub(since.millis()) >= STALL_MS
            }
            _ => {
                self.since = Some((finalized, tip, now));
                false
            }
        }
    }
}

impl Poller {
    /// The newest block of ours that is final; `None` if the node's answer does not fit ours.
    async fn final_place(&mut self, rule: Rule, view: &View) -> Result<Option<Place>, StepError> {
        let node = self.node()?;
        let Some(found) = node.last_final(rule).await? else { return Ok(None) };
        let bound = self.final_bound(rule, found.number).await;
        let found = if bound < found.number { node.block(bound).await? } else { Some(found) };
        let Some(found) = found else { return Ok(None) };
        let found = link(&found).place();
        let here = match compare_at(&view.window, found) {
            Some(number) => node.block(number).await?.map(|block| link(&block).place()),
            None => None,
        };
        Ok(on_ours(&view.window, found, here))
    }

    /// Records what is final, and lets held deliveries go.
    pub(super) async fn settle(&mut self, view: &mut View) -> Result<(), StepError> {
        let own = self.parts.plan.chain.finality;
        let finalized = self.final_place(own.into(), view).await?;
        self.tell_stall(view, finalized);
        let mut places = vec![(own, finalized)];
        let finalities: Vec<_> = self.parts.plan.sources.iter().map(|of| of.finality).collect();
        for asked in finalities {
            if !places.iter().any(|(finality, _)| *finality == asked) {
                places.push((asked, self.final_place(asked.into(), view).await?));
            }
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

    /// Finality that stands still holds up every trigger, and in silence but for this.
    fn tell_stall(&mut self, view: &View, finalized: Option<Place>) {
        let newest = finalized.or(view.finalized);
        let number = newest.map(|place| place.number);
        let lag = view.tip.number.saturating_sub(number.unwrap_or(0));
        self.gauge("claviger_watcher_final_lag_blocks", lag);
        let stands = self.stall.stands(number, view.tip.number, self.parts.clock.now());
        let is_stalled = stands || is_older_than_window(&view.window, newest);
        let chain = self.parts.plan.chain.name.as_str();
        match (is_stalled, self.stall.is_told) {
            (true, false) => tracing::error!(
                chain,
                finalized = number,
                tip = view.tip.number,
                window = self.parts.plan.chain.window_blocks,
                "finality stands still or is older than the window; triggers wait, and a reorg that \
                 leaves the window halts the chain"
            ),
            (false, true) => tracing::warn!(chain, finalized = number, "finality moves again"),
            _ => {}
        }
        self.stall.is_told = is_stalled;
    }
}
