//! Since when each HSM thread is in its present call. A call into the module cannot be cancelled, so one that
//! does not come back is seen, told, and its thread replaced.

use crate::hsm::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What one thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It waits for work.
    Idle,
    /// It has been in the module for so long.
    Busy(Duration),
    /// It has been in the module for so long, and another thread has taken its place.
    Replaced(Duration),
    /// It has ended, and nobody has asked it to.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    /// No thread has it.
    Free,
    Idle,
    Busy {
        since: Duration,
        is_told: bool,
    },
    Replaced {
        since: Duration,
    },
    Gone,
}

/// One cell for each thread, and as many again for those that take the places of others.
pub(super) struct Watch {
    start: Instant,
    cells: Mutex<Vec<Cell>>,
}

/// What is to be done about threads that do not come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Threads that have been in a call for too long, and were not seen before.
    pub(super) stalled: Vec<usize>,
    /// All threads that are in a call for too long.
    pub(super) stalled_now: usize,
    /// Cells for which a new thread is to be started.
    pub(super) vacant: Vec<usize>,
    /// Whether no thread takes work.
    pub(super) none_free: bool,
}

impl Watch {
    /// For so many threads, in so many cells.
    pub(super) fn new(threads: usize, cells: usize) -> Self {
        let cell = |index| if index < threads { Cell::Idle } else { Cell::Free };
        Self { start: Instant::now(), cells: Mutex::new((0..cells).map(cell).collect()) }
    }

    /// A call begins, or the next one of many: each of them may take its time. One whose place was given away
    /// does not get it back.
    pub(super) fn begin(&self, thread: usize) {
        let since = self.start.elapsed();
        if let Some(cell) = lock(&self.cells).get_mut(thread)
            && !matches!(cell, Cell::Replaced { .. })
        {
            *cell = Cell::Busy { since, is_told: false };
        }
    }

    /// The call has come back. `false` if the thread was replaced meanwhile: it is to end, and has its cell
    /// until then.
    pub(super) fn end(&self, thread: usize) -> bool {
        let mut cells = lock(&self.cells);
        match cells.get_mut(thread) {
            Some(Cell::Replaced { .. }) | None => false,
            Some(cell) => {
                *cell = Cell::Idle;
                true
            }
        }
    }

    /// The thread has ended.
    pub(super) fn gone(&self, thread: usize) {
        let mut cells = lock(&self.cells);
        match cells.get_mut(thread) {
            Some(Cell::Free) | None => {}
            Some(cell @ Cell::Replaced { .. }) => *cell = Cell::Free,
            Some(cell) => *cell = Cell::Gone,
        }
    }

    /// What each thread is doing now.
    pub(super) fn activities(&self) -> Vec<Activity> {
        let now = self.start.elapsed();
        let read = |cell: &Cell| match *cell {
            Cell::Free => None,
            Cell::Idle => Some(Activity::Idle),
            Cell::Busy { since, .. } => Some(Activity::Busy(now.saturating_sub(since))),
            Cell::Replaced { since } => Some(Activity::Replaced(now.saturating_sub(since))),
            Cell::Gone => Some(Activity::Gone),
        };
        lock(&self.cells).iter().filter_map(read).collect()
    }

    /// Whether a thread takes work, or will soon.
    pub(super) fn has_free(&self) -> bool {
        lock(&self.cells).iter().any(is_free)
    }

    /// Whether a thread was seen that does not come back, and still does not.
    pub(super) fn has_stalled(&self) -> bool {
        let is_stalled =
            |cell: &Cell| matches!(cell, Cell::Replaced { .. } | Cell::Busy { is_told: true, .. });
        lock(&self.cells).iter().any(is_stalled)
    }

    /// Looks for threads that have been in one call for longer than `limit`, and for such as have ended.
    /// Their places are given away, as far as there are free cells.
    pub(super) fn look(&self, limit: Duration) -> Found {
        self.look_at(self.start.elapsed(), limit)
    }

    fn look_at(&self, now: Duration, limit: Duration) -> Found {
        let mut cells = lock(&self.cells);
        let mut found = Found::default();
        for index in 0..cells.len() {
            match cells.get(index).copied() {
                Some(Cell::Gone) => {
                    replace(&mut cells, index, Cell::Idle);
                    found.vacant.push(index);
                }
                Some(Cell::Busy { since, is_told }) if now.saturating_sub(since) > limit => {
                    found.stalled_now = found.stalled_now.saturating_add(1);
                    if !is_told {
                        found.stalled.push(index);
                    }
                    let free = cells.iter().position(|cell| *cell == Cell::Free);
                    let stays = Cell::Busy { since, is_told: true };
                    replace(&mut cells, index, free.map_or(stays, |_| Cell::Replaced { since }));
                    if let Some(free) = free {
                        replace(&mut cells, free, Cell::Idle);
                        found.vacant.push(free);
                    }
                }
                Some(Cell::Replaced { .. }) => {
                    found.stalled_now = found.stalled_now.saturating_add(1);
                }
                Some(Cell::Free | Cell::Idle | Cell::Busy { .. }) | None => {}
            }
        }
        found.none_free = !cells.iter().any(is_free);
        found
    }
}

fn replace(cells: &mut [Cell], index: usize, with: Cell) {
    if let Some(cell) = cells.get_mut(index) {
        *cell = with;
    }
}

const fn is_free(cell: &Cell) -> bool {
    matches!(cell, Cell::Idle | Cell::Busy { is_told: false, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// The time at which what runs now is over the limit.
    fn late(watch: &Watch) -> Duration {
        watch.start.elapsed().saturating_add(LIMIT.saturating_mul(2))
    }

    #[test]
    fn a_stalled_thread_is_told_once_replaced_once_and_ends_when_it_comes_back() {
        let watch = Watch::new(2, 4);
        watch.begin(0);
        assert_eq!(watch.look(LIMIT), Found::default(), "a thread may be busy");
        let found = watch.look_at(late(&watch), LIMIT);
        let expected =
            Found { stalled: vec![0], stalled_now: 1, vacant: vec![2], none_free: false };
        assert_eq!(found, expected);
        let found = watch.look_at(late(&watch), LIMIT);
        assert_eq!(found, Found { stalled_now: 1, ..Found::default() });
        assert!(matches!(watch.activities()[0], Activity::Replaced(_)));
        assert_eq!(watch.activities().len(), 3);
        watch.begin(0);
        assert!(!watch.end(0), "its late answer does not count");
        let still = watch.look_at(late(&watch), LIMIT);
        assert_eq!(still.stalled_now, 1, "it has the cell until it has ended");
        watch.gone(0);
        assert_eq!(watch.activities(), [Activity::Idle, Activity::Idle]);
    }

    #[test]
    fn only_as_many_threads_are_started_as_there_were_and_then_nothing_is_taken() {
        let watch = Watch::new(2, 4);
        watch.begin(0);
        watch.begin(1);
        assert_eq!(watch.look_at(late(&watch), LIMIT).vacant, [2, 3]);
        watch.begin(2);
        watch.begin(3);
        assert!(watch.has_free());
        let found = watch.look_at(late(&watch), LIMIT);
        assert_eq!((found.vacant, found.none_free, found.stalled_now), (vec![], true, 4));
        assert_eq!(found.stalled, [2, 3]);
        assert!(watch.look_at(late(&watch), LIMIT).stalled.is_empty());
        assert!(!watch.has_free());
        assert!(watch.end(3), "nobody has taken its place: it goes on");
        assert!(watch.has_free());
        assert!(!watch.end(0));
        watch.gone(0);
        let found = watch.look_at(late(&watch), LIMIT);
        assert_eq!(found.vacant, [0], "there is room to replace the other one");
    }

    #[test]
    fn a_thread_that_has_ended_is_replaced() {
        let watch = Watch::new(1, 2);
        watch.begin(0);
        watch.gone(0);
        assert_eq!(watch.activities(), [Activity::Gone]);
        assert!(!watch.has_free());
        let found = watch.look(LIMIT);
        assert_eq!((found.vacant, found.none_free), (vec![0], false));
        assert_eq!(watch.activities(), [Activity::Idle]);
    }
}
