//! How far sources are, and how fast they come on.

use crate::core::time::Timestamp;
use crate::ports::watch_store::{ChainState, Progress, SourceState, WatchStore, WatchStoreError};
use std::collections::BTreeMap;

/// A rate that nobody has measured for so long is not shown, in milliseconds.
const STALE_MS: i64 = 60_000;

/// A source that is behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Behind {
    /// The block that it was sent back to, or began with.
    pub from_block: u64,
    /// The last block that it has to read.
    pub to_block: u64,
    /// Blocks that are left.
    pub blocks_left: u64,
    /// How much is done, from 0 to 100.
    pub percent: f64,
    /// Blocks a second, if it was measured lately.
    pub rate: Option<f64>,
    /// Seconds that are left at that rate.
    pub seconds_left: Option<u64>,
}

/// Block counts as floating point: exact up to 2^53.
fn float(number: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shares and rates for people")]
    let number = number as f64;
    number
}

/// Whether a source is behind, and how far.
#[must_use]
pub fn behind(
    chain: &ChainState,
    source: &SourceState,
    progress: Option<&Progress>,
    now: Timestamp,
) -> Option<Behind> {
    let next = source.next_block;
    let only_to = progress.and_then(|progress| progress.to_block);
    let to_block = only_to.unwrap_or(chain.cursor.number);
    if next > to_block {
        return None;
    }
    let from_block = progress.map_or(next, |progress| progress.from_block.min(next));
    let blocks_left = to_block.saturating_sub(next).saturating_add(1);
    let all = to_block.saturating_sub(from_block).saturating_add(1);
    let percent = float(next.saturating_sub(from_block)) / float(all) * 100.0;
    let fresh =
        |progress: &&Progress| progress.rate > 0 && now.since(progress.sampled_at) < STALE_MS;
    let rate = progress.filter(fresh).map(|progress| float(progress.rate) / 1000.0);
    let whole = |seconds: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "a positive number of seconds")]
        #[expect(clippy::cast_sign_loss, reason = "a positive number of seconds")]
        let seconds = seconds.ceil() as u64;
        seconds
    };
    let seconds_left = rate.map(|rate| whole(float(blocks_left) / rate));
    Some(Behind { from_block, to_block, blocks_left, percent, rate, seconds_left })
}

/// Measures how fast sources come on.
#[derive(Debug, Default)]
pub struct Rates(BTreeMap<String, (u64, Timestamp, u64)>);

impl Rates {
    /// Looks at the sources of a chain, and notes the rates of those that are behind.
    ///
    /// # Errors
    /// When the database fails, or another process has the duty.
    pub async fn note(
        &mut self,
        store: &dyn WatchStore,
        chain: &ChainState,
        now: Timestamp,
    ) -> Result<(), WatchStoreError> {
        for source in &chain.sources {
            let rate = if source.next_block <= chain.cursor.number {
                self.measure(source, now)
            } else {
                Some(0)
            };
            let last = self.0.get(&source.name).map_or(0, |known| known.2);
            let rate = rate.unwrap_or(last);
            self.0.insert(source.name.clone(), (source.next_block, now, rate));
            if rate != 0 || last != 0 {
                store.note_rate(&source.name, rate, now).await?;
            }
        }
        Ok(())
    }

    /// Blocks in a thousand seconds since the last look; half of it is what it was before.
    fn measure(&self, source: &SourceState, now: Timestamp) -> Option<u64> {
        let (next, at, rate) = *self.0.get(&source.name)?;
        let ms = u64::try_from(now.since(at)).ok().filter(|ms| *ms > 0)?;
        let blocks = source.next_block.checked_sub(next)?;
        let newest = blocks.saturating_mul(1_000_000).checked_div(ms)?;
        Some(if rate == 0 { newest } else { newest.midpoint(rate) })
    }
}
