//! Who is inside a module. Threads enter it for their calls; whoever must be alone closes it, waits until the
//! last one has come out, and lets them in again.

use crate::hsm::lock;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One for each module.
#[derive(Default)]
pub(super) struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    threads: usize,
    /// Since when it is.
    closed: Option<Instant>,
}

/// A thread is inside as long as it has this.
pub(super) struct Pass<'a>(&'a Gate);

/// Nobody is inside, and nobody enters, as long as somebody has this.
pub(super) struct Alone<'a>(&'a Gate);

impl Gate {
    /// Enters, once the gate is open. `None` if it is not within `limit`.
    pub(super) fn enter(&self, limit: Duration) -> Option<Pass<'_>> {
        let mut inside = self.opened(limit)?;
        inside.threads = inside.threads.saturating_add(1);
        Some(Pass(self))
    }

    /// Closes the gate and waits for those inside. `None` if one of them has not come out within `limit`, or
    /// another thread has it closed for as long; it is open for others again then. Whoever asks must not be
    /// inside.
    pub(super) fn close(&self, limit: Duration) -> Option<Alone<'_>> {
        let mut inside = self.opened(limit)?;
        inside.closed = Some(Instant::now());
        let waited = self.changed.wait_timeout_while(inside, limit, |it| it.threads > 0);
        let (mut inside, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if inside.threads > 0 {
            inside.closed = None;
            drop(inside);
            self.changed.notify_all();
            return None;
        }
        Some(Alone(self))
    }

    /// For how long it has been closed: whoever closed it may be in a call that does not come back.
    pub(super) fn closed_for(&self) -> Duration {
        lock(&self.inside).closed.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn opened(&self, limit: Duration) -> Option<MutexGuard<'_, Inside>> {
        let is_closed = |it: &mut Inside| it.closed.is_some();
        let waited = self.changed.wait_timeout_while(lock(&self.inside), limit, is_closed);
        let (inside, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inside.closed.is_none().then_some(inside)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut inside = lock(&self.0.inside);
        inside.threads = inside.threads.saturating_sub(1);
        drop(inside);
        self.0.changed.notify_all();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        lock(&self.0.inside).closed = None;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    const SOON: Duration = Duration::from_millis(1);
    const LATE: Duration = Duration::from_secs(20);

    #[test]
    fn nobody_is_alone_while_another_is_inside_and_nobody_enters_then() {
        let gate = Gate::default();
        let pass = gate.enter(SOON).unwrap();
        assert!(gate.close(SOON).is_none());
        let second = gate.enter(SOON);
        assert!(second.is_some(), "the gate is open again");
        drop((pass, second));
        let alone = gate.close(SOON).unwrap();
        assert!(gate.enter(SOON).is_none() && gate.close(SOON).is_none());
        assert!(gate.closed_for() >= SOON);
        drop(alone);
        assert!(gate.closed_for().is_zero() && gate.enter(SOON).is_some());
    }

    #[test]
    fn threads_that_come_and_go_never_meet_one_that_is_alone() {
        let (gate, inside) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (gate, inside, over) = (gate.clone(), inside.clone(), over.clone());
                std::thread::spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        let _pass = gate.enter(LATE).unwrap();
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            let _alone = gate.close(LATE).unwrap();
            assert_eq!(inside.load(Ordering::SeqCst), 0);
        }
        over.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
