//! Which process does what: leases on duties, and the term that a loop works in.
//!
//! A lease saves work, and decides who starts. Safety rests on the fence: every write of a loop names its
//! term, and the database refuses those of a term that is over. So no clock decides what is written;
//! processes whose clocks differ take duties from each other too early or too late, and nothing else.

use crate::core::time::Timestamp;
use crate::ports::clock::Clock;
use crate::ports::watch_store::{Duty, Fence, WatchStore, WatchStoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A duty that this process has, as it believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    token: i64,
    until: Timestamp,
}

type Held = BTreeMap<String, Term>;

/// The leases of this process.
pub struct Leads {
    store: Arc<dyn WatchStore>,
    clock: Arc<dyn Clock>,
    holder: String,
    lease_ms: i64,
    wanted: Mutex<BTreeSet<String>>,
    held: watch::Sender<Held>,
    /// Whose duties this process waits for; told when it changes.
    others: Mutex<BTreeSet<String>>,
}

/// Host, process id and a random word: for people, and never the same twice.
#[must_use]
pub fn holder_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    let word = uuid::Uuid::new_v4().simple().to_string();
    let word = word.get(..8).unwrap_or_default();
    format!("{}:{}:{word}", if host.is_empty() { "host" } else { &host }, std::process::id())
}

impl Leads {
    /// None yet. Each lease lasts so many milliseconds unless it is renewed.
    #[must_use]
    pub fn new(
        store: Arc<dyn WatchStore>,
        clock: Arc<dyn Clock>,
        holder: String,
        lease_ms: i64,
    ) -> Self {
        let (wanted, others) = (Mutex::default(), Mutex::default());
        Self { store, clock, holder, lease_ms, wanted, held: watch::Sender::default(), others }
    }

    /// The place of a loop that works only while this process has the duty.
    pub fn seat(&self, duty: String) -> Seat {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(duty.clone());
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        Seat { duty, store, clock, held: self.held.subscribe(), over: 0 }
    }

    /// How often [`step`](Self::step) is due: three may fail before a lease ends.
    #[must_use]
    pub fn every(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.lease_ms).unwrap_or(u64::MAX) / 4)
    }

    /// Renews what this process has, and takes what nobody has.
    ///
    /// # Errors
    /// When the database fails; what is held then stays so until its lease ends.
    pub async fn step(&self) -> Result<(), WatchStoreError> {
        let now = self.clock.now();
        let until = now.plus_millis(self.lease_ms);
        let duties = self.store.renew(&self.holder, until).await?;
        let known: BTreeMap<&str, &Duty> =
            duties.iter().map(|duty| (duty.name.as_str(), duty)).collect();
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut held, mut others) = (Held::new(), BTreeSet::new());
        for name in wanted {
            let own = known.get(name.as_str()).filter(|duty| duty.holder == self.holder);
            let token = match own {
                Some(duty) if duty.until > now => Some(duty.token),
                _ => self.store.take(&name, &self.holder, now, until).await?,
            };
            match token {
                Some(token) => drop(held.insert(name, Term { token, until })),
                None => others.extend(known.get(name.as_str()).map(|duty| duty.holder.clone())),
            }
        }
        self.tell(&held, others);
        self.held.send_replace(held);
        Ok(())
    }

    /// Gives back all that this process has. Its loops have ended.
    ///
    /// # Errors
    /// When the database fails; others then wait until the leases end.
    pub async fn give_back(&self) -> Result<(), WatchStoreError> {
        self.held.send_replace(Held::new());
        self.store.give_back(&self.holder).await
    }

    fn tell(&self, held: &Held, others: BTreeSet<String>) {
        let before = self.held.borrow();
        let term = |held: &Held, name: &str| held.get(name).map(|term| term.token);
        for name in held.keys().filter(|name| term(&before, name) != term(held, name)) {
            tracing::info!(duty = name, holder = self.holder, "this process leads");
            metrics::gauge!("claviger_watcher_leader", "duty" => name.clone()).set(1);
        }
        for name in before.keys().filter(|name| !held.contains_key(*name)) {
            tracing::warn!(duty = name, "another process leads now");
            metrics::gauge!("claviger_watcher_leader", "duty" => name.clone()).set(0);
        }
        drop(before);
        let mut known = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != others {
            for holder in others.difference(&known) {
                tracing::info!(holder, "standing by: another process leads");
            }
            *known = others;
        }
    }
}

/// The place of one loop.
pub struct Seat {
    duty: String,
    store: Arc<dyn WatchStore>,
    clock: Arc<dyn Clock>,
    held: watch::Receiver<Held>,
    /// The newest term that is known to be over.
    over: i64,
}

impl Seat {
    /// Waits for a term. `None` at the stop.
    pub async fn term(&mut self, stop: &CancellationToken) -> Option<Fence> {
        loop {
            if stop.is_cancelled() {
                return None;
            }
            if let Some(fence) = self.now() {
                return Some(fence);
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = self.held.changed() => changed.ok()?,
            }
        }
    }

    /// The present term, if this process has the duty.
    #[must_use]
    pub fn now(&self) -> Option<Fence> {
        let term = self.held.borrow().get(&self.duty).copied()?;
        let is_on = term.token > self.over && self.clock.now() < term.until;
        is_on.then(|| Fence { duty: self.duty.clone(), token: term.token })
    }

    /// Whether that term goes on, as far as this process knows.
    #[must_use]
    pub fn holds(&self, fence: &Fence) -> bool {
        self.now().as_ref() == Some(fence)
    }

    /// The database said that another process has the duty.
    pub fn lost(&mut self, fence: &Fence) {
        self.over = self.over.max(fence.token);
    }

    /// The database, for this term.
    #[must_use]
    pub fn store(&self, fence: &Fence) -> Arc<dyn WatchStore> {
        self.store.under(fence.clone())
    }
}
