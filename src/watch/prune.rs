//! What nobody needs any more goes, a little at a time.

use crate::ports::clock::Clock;
use crate::ports::watch_store::{PruneFrom, WatchStore, WatchStoreError};
use std::sync::Arc;

/// How many batches a round has at most; each looks at some hundred rows, in a transaction of its own.
const BATCHES_MAX: u32 = 20;

/// Prunes events and deliveries that ended long ago.
pub struct Pruner {
    clock: Arc<dyn Clock>,
    keep_ms: i64,
    from: PruneFrom,
}

impl Pruner {
    /// A pruner that keeps what ended within so many milliseconds.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, keep_ms: i64) -> Self {
        Self { clock, keep_ms, from: PruneFrom::default() }
    }

    /// One round: goes on where the last one ended, from the beginning again once it has come to what is
    /// young. Answers how many rows are gone.
    ///
    /// # Errors
    /// When the database fails, or another process has the duty.
    pub async fn round(&mut self, store: &dyn WatchStore) -> Result<u64, WatchStoreError> {
        let before = self.clock.now().plus_millis(self.keep_ms.saturating_neg());
        let mut rows = 0_u64;
        for _ in 0..BATCHES_MAX {
            let pruned = store.prune(self.from, before).await?;
            rows = rows.saturating_add(pruned.rows);
            self.from = pruned.next.unwrap_or_default();
            if pruned.next.is_none() {
                break;
            }
        }
        if rows > 0 {
            tracing::info!(rows, "pruned");
            metrics::counter!("claviger_watcher_pruned_total").increment(rows);
        }
        Ok(rows)
    }
}
