//! One history: workers over one database, what they did, and what was learnt of what was cut off.

use super::program::{Answer, Do, Rng, Terms, settlement, sights};
use crate::support::services::poll_until;
use claviger::ports::store::{End, Store, StoreError, look, unit};
use claviger::store::{OpenMode, open};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Notify;

pub const WORKERS: usize = 6;
pub const OWNERS: usize = 8;
const DAY_MS: i64 = 86_400_000;
/// The last three seconds of a January.
const BEGIN: i64 = 20_120 * DAY_MS - 3_000;

/// What an operation came to, in the order in which the database did it.
pub struct Entry {
    /// Taken while the unit had its locks: so in each limit they are in the order of its row lock.
    pub order: u64,
    pub worker: usize,
    /// When it was begun and when its answer was there, counted in the same numbers as `order`.
    pub began: u64,
    pub ended: u64,
    pub now: i64,
    pub what: Arc<Do>,
    pub answer: Answer,
    pub is_kept: bool,
}

impl Entry {
    /// In a line of the story.
    pub fn line(&self) -> String {
        let Self { order, worker, began, ended, now, what, answer, is_kept } = self;
        let (kept, what) = (if *is_kept { "kept" } else { "not kept" }, what.short());
        format!("{order} [{began} to {ended}] worker {worker} at {now}: {what}: {answer:?}, {kept}")
    }
}

/// An operation that has no answer yet.
#[derive(Debug, Clone)]
struct Flight {
    worker: usize,
    fence: String,
    began: u64,
    now: i64,
    what: Arc<Do>,
    is_kept: bool,
    /// Of its last run: its place in the order, and what it answered.
    run: Arc<Mutex<Option<(u64, Answer)>>>,
    /// The reservation that is over with it.
    ends: Option<usize>,
}

/// The next owner of this place is another once its reservation is over.
#[derive(Debug, Default)]
struct Owner {
    /// Many may ask for more of the same, but none beside its end, as requests are locked.
    gate: tokio::sync::RwLock<()>,
    life: AtomicU32,
}

pub struct World {
    pub terms: Terms,
    url: String,
    /// As many processes: two on PostgreSQL.
    stores: RwLock<Vec<Arc<dyn Store>>>,
    pub clock: AtomicI64,
    /// By how much the clock of each worker is off.
    skew: Vec<i64>,
    numbers: Arc<AtomicU64>,
    block: AtomicU64,
    owners: Vec<Owner>,
    flights: Mutex<BTreeMap<u64, Flight>>,
    pub log: Mutex<Vec<Entry>>,
    pub steps: AtomicU64,
    /// At which step `reached` is told.
    pub mark: AtomicU64,
    pub reached: Notify,
    pub conflicts: AtomicU64,
}

impl World {
    pub async fn new(terms: Terms, url: &str, stores: usize, rng: &mut Rng) -> Arc<Self> {
        let is_skewed = rng.one_in(2);
        let skew = |_| if is_skewed { i64::try_from(rng.up_to(40)).unwrap() - 20 } else { 0 };
        let world = Self {
            terms,
            url: url.to_owned(),
            stores: RwLock::default(),
            clock: AtomicI64::new(BEGIN),
            skew: (0..WORKERS).map(skew).collect(),
            numbers: Arc::new(AtomicU64::new(1)),
            block: AtomicU64::new(1),
            owners: (0..OWNERS).map(|_| Owner::default()).collect(),
            flights: Mutex::default(),
            log: Mutex::default(),
            steps: AtomicU64::new(0),
            mark: AtomicU64::new(u64::MAX),
            reached: Notify::new(),
            conflicts: AtomicU64::new(0),
        };
        for _ in 0..stores {
            world.open_another().await;
        }
        Arc::new(world)
    }

    async fn open_another(&self) {
        let store = poll_until(Duration::from_secs(20), "the database is opened", async || {
            match open(&self.url, OpenMode::Existing).await {
                // A commit that nobody waits for any more keeps the file.
                Err(StoreError::Held(_)) => None,
                store => Some(store.unwrap()),
            }
        });
        let store = store.await;
        self.stores.write().unwrap().push(store);
    }

    /// As if a process had ended and another had begun.
    pub async fn reopen_one(&self) {
        drop(self.stores.write().unwrap().remove(0));
        self.open_another().await;
    }

    /// As if all had. Nobody may be using them.
    pub async fn reopen_all(&self) {
        let stores = std::mem::take(&mut *self.stores.write().unwrap());
        let count = stores.len();
        drop(stores);
        for _ in 0..count {
            self.open_another().await;
        }
    }

    pub fn stores(&self) -> usize {
        self.stores.read().unwrap().len()
    }

    pub fn store(&self, which: usize) -> Arc<dyn Store> {
        let stores = self.stores.read().unwrap();
        stores[which % stores.len()].clone()
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, SeqCst)
    }

    /// A moment that no clock has passed yet.
    pub fn late(&self) -> i64 {
        self.clock.load(SeqCst) + 20
    }

    /// So many operations, one after the other.
    pub async fn work(
        self: Arc<Self>,
        worker: usize,
        seed: u64,
        steps: usize,
    ) -> Result<(), String> {
        let mut rng = Rng(seed);
        for _ in 0..steps {
            let done = self.step(worker, &mut rng).await;
            done.map_err(|error| format!("worker {worker}: {error}"))?;
            if self.steps.fetch_add(1, SeqCst) + 1 == self.mark.load(SeqCst) {
                self.reached.notify_one();
            }
        }
        Ok(())
    }

    async fn step(&self, worker: usize, rng: &mut Rng) -> Result<(), StoreError> {
        let (n, number) = (usize::try_from(rng.below(OWNERS as u64)).unwrap(), self.number());
        let owner = &self.owners[n];
        let key = u8::try_from(n + 1).unwrap();
        let name = || format!("{} {n} {}", self.terms.seed, owner.life.load(SeqCst));
        match rng.below(100) {
            0..45 => {
                let _shared = owner.gate.read().await;
                let what = self.terms.hold(rng, name(), key, false);
                self.go(worker, rng, what, None).await
            }
            45..53 => {
                let name = format!("{} alone {number}", self.terms.seed);
                let what = self.terms.hold(rng, name, key, true);
                self.go(worker, rng, what, None).await
            }
            53..70 => {
                let _alone = owner.gate.write().await;
                let what = Do::Settle { owner: name(), outcome: settlement(rng) };
                if rng.one_in(3) {
                    // Two processes have seen the same final block.
                    let (mut one, mut other) = (rng.clone(), Rng(rng.next()));
                    let twice = tokio::join!(
                        self.go(worker, &mut one, what.clone(), Some(n)),
                        self.go(worker + 1, &mut other, what, Some(n)),
                    );
                    return twice.0.and(twice.1);
                }
                self.go(worker, rng, what, Some(n)).await
            }
            70..77 => {
                let _alone = owner.gate.write().await;
                let ends = rng.one_in(2).then_some(n);
                self.go(worker, rng, Do::Release { owner: name() }, ends).await
            }
            77..92 => self.watch(worker, rng).await,
            _ => {
                self.pass(rng);
                Ok(())
            }
        }
    }

    /// Looks for open exposures, and sees one group of them, or only begins to look.
    async fn watch(&self, worker: usize, rng: &mut Rng) -> Result<(), StoreError> {
        let (chain, block) = (self.terms.chain, self.block.fetch_add(1, SeqCst));
        let store = self.store(worker);
        let groups = look(&*store, "due", move |unit| {
            Box::pin(async move { unit.open_exposures(chain, block, 6).await })
        });
        let mut groups = groups.await?;
        drop(store);
        if groups.is_empty() {
            return Ok(());
        }
        if rng.one_in(4) {
            let rows = groups.into_iter().flatten().collect();
            return self.go(worker, rng, Do::LookAt(rows), None).await;
        }
        let group = groups.remove(usize::try_from(rng.below(groups.len() as u64)).unwrap());
        let seen = sights(rng, group, block);
        self.go(worker, rng, Do::See(seen), None).await
    }

    /// Time goes on: mostly a little, at times far, and at times to just before a day begins.
    fn pass(&self, rng: &mut Rng) {
        let on = match rng.below(16) {
            0 => rng.below(20_000),
            1 if rng.one_in(4) => rng.below(2 * DAY_MS as u64),
            2 => {
                let left = DAY_MS - 3 - self.clock.load(SeqCst).rem_euclid(DAY_MS);
                u64::try_from(left).unwrap_or(0)
            }
            _ => rng.below(40),
        };
        self.clock.fetch_add(i64::try_from(on).unwrap(), SeqCst);
    }

    /// Does it in a unit: now and then one that is rolled back, and now and then one that is dropped on its way.
    async fn go(
        &self,
        worker: usize,
        rng: &mut Rng,
        what: Do,
        ends: Option<usize>,
    ) -> Result<(), StoreError> {
        let id = self.number();
        let flight = Flight {
            worker,
            fence: format!("fence {} {id}", self.terms.seed),
            began: id,
            now: self.clock.load(SeqCst) + self.skew[worker % WORKERS],
            what: Arc::new(what),
            is_kept: !rng.one_in(12),
            run: Arc::default(),
            ends,
        };
        self.flights.lock().unwrap().insert(id, flight.clone());
        let most = if rng.one_in(2) { 3 } else { 60 };
        let polls = if rng.one_in(8) { rng.up_to(most) } else { u64::MAX };
        let store = self.store(if rng.one_in(4) { worker + 1 } else { worker });
        let answer = up_to_polls(polls, self.run(&store, &flight)).await;
        match answer {
            Some(Err(StoreError::Contended)) => {
                self.flights.lock().unwrap().remove(&id);
                _ = self.conflicts.fetch_add(1, SeqCst);
            }
            Some(answer) => {
                answer?;
                self.end(id, flight.is_kept);
            }
            None => self.learn(&store, id).await?,
        }
        Ok(())
    }

    async fn run(&self, store: &Arc<dyn Store>, flight: &Flight) -> Result<(), StoreError> {
        let (numbers, this) = (self.numbers.clone(), flight.clone());
        let runs = Arc::new(AtomicU64::new(0));
        let counted = runs.clone();
        let done = unit(&**store, "history", move |unit| {
            let (numbers, this) = (numbers.clone(), this.clone());
            counted.fetch_add(1, SeqCst);
            Box::pin(async move {
                unit.set_meta(&this.fence, "done").await?;
                let answer = this.what.perform(unit, this.now).await?;
                let is_kept = this.is_kept && matches!(answer, Answer::Done);
                *this.run.lock().unwrap() = Some((numbers.fetch_add(1, SeqCst), answer));
                Ok(if is_kept { End::Commit(()) } else { End::Rollback(()) })
            })
        })
        .await;
        // A unit is run again only where it would have waited for one that waits for it.
        self.conflicts.fetch_add(runs.load(SeqCst).saturating_sub(1), SeqCst);
        done
    }

    /// An operation has its answer.
    fn end(&self, id: u64, is_kept: bool) {
        let Some(flight) = self.flights.lock().unwrap().remove(&id) else { return };
        let (order, answer) = flight.run.lock().unwrap().clone().unwrap();
        let is_kept = is_kept && matches!(answer, Answer::Done);
        if let Some(owner) = flight.ends.filter(|_| is_kept) {
            self.owners[owner].life.fetch_add(1, SeqCst);
        }
        let (worker, began, now, what) = (flight.worker, flight.began, flight.now, flight.what);
        let ended = self.number();
        let entry = Entry { order, worker, began, ended, now, what, answer, is_kept };
        self.log.lock().unwrap().push(entry);
    }

    /// What became of an operation whose answer nobody heard: whoever gets the lock that it takes first finds
    /// it over.
    async fn learn(&self, store: &Arc<dyn Store>, id: u64) -> Result<(), StoreError> {
        let fence = self.flights.lock().unwrap()[&id].fence.clone();
        let waits = fence.clone();
        unit(&**store, "wait", move |unit| {
            let fence = waits.clone();
            Box::pin(async move {
                unit.set_meta(&fence, "waited for").await?;
                Ok(End::Rollback(()))
            })
        })
        .await?;
        let found = look(&**store, "learn", move |unit| {
            let fence = fence.clone();
            Box::pin(async move { unit.meta(&fence).await })
        });
        if found.await?.is_some() {
            self.end(id, true);
        } else {
            self.flights.lock().unwrap().remove(&id);
        }
        Ok(())
    }

    /// The same of all whose workers are gone.
    pub async fn learn_all(&self) -> Result<(), StoreError> {
        let ids: Vec<u64> = self.flights.lock().unwrap().keys().copied().collect();
        for id in ids {
            self.learn(&self.store(0), id).await?;
        }
        Ok(())
    }

    /// What was done since the last time, in the order in which it was done.
    pub fn taken(&self) -> Vec<Entry> {
        let mut log = std::mem::take(&mut *self.log.lock().unwrap());
        log.sort_by_key(|entry| entry.order);
        log
    }
}

/// Drops the future after so many polls that did not end it.
async fn up_to_polls<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut left) = (pin!(future), polls);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}
