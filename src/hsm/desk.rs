//! The sessions of a token between two jobs, one seat for each thread.
//!
//! A session is known by a number, and a module may give the number of one that is gone to the next one that
//! is opened. So a session that the module does not know any more is *forgotten*: closing it would close
//! another thread's. And before a new one is opened in its place, all others are looked through while nobody
//! is inside the module, so that no thread is left with a number that comes to mean another session.

use crate::hsm::errors::Class;
use crate::hsm::fault::class;
use crate::hsm::gate::Alone;
use crate::hsm::lock;
use crate::hsm::module::OpenSession;
use cryptoki::slot::Slot;
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The seats of one token.
pub(super) struct Desk {
    seats: Vec<Mutex<Option<OpenSession>>>,
    /// A session of an older epoch means nothing any more.
    epoch: AtomicU64,
}

impl Desk {
    pub(super) fn new(seats: usize) -> Self {
        let seats = (0..seats).map(|_| Mutex::new(None)).collect();
        Self { seats, epoch: AtomicU64::new(0) }
    }

    /// Which sessions are good.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes the session of a seat, if there is a good one.
    pub(super) fn take(&self, seat: usize) -> Option<OpenSession> {
        let session = lock(self.seats.get(seat)?).take()?;
        if session.epoch() == self.epoch() {
            return Some(session);
        }
        session.forget();
        None
    }

    /// Puts a session in a seat, unless it has had its time.
    pub(super) fn put(&self, seat: usize, session: OpenSession) {
        if session.is_spent() {
            return self.discard(session);
        }
        let Some(place) = self.seats.get(seat) else { return self.discard(session) };
        if let Some(other) = lock(place).replace(session) {
            self.discard(other);
        }
    }

    /// As [`Self::put`], if there is one.
    pub(super) fn put_any(&self, seat: usize, session: Option<OpenSession>) {
        if let Some(session) = session {
            self.put(seat, session);
        }
    }

    /// As [`Self::discard`], if there is one.
    pub(super) fn discard_any(&self, session: Option<OpenSession>) {
        if let Some(session) = session {
            self.discard(session);
        }
    }

    /// Puts a session in the first empty seat of the first `seats`; closes it if there is none.
    pub(super) fn fill(&self, seats: usize, session: OpenSession) {
        for place in self.seats.iter().take(seats) {
            let mut place = lock(place);
            if place.is_none() {
                *place = Some(session);
                return;
            }
        }
        self.discard(session);
    }

    /// Whether each of the first `seats` has a session.
    pub(super) fn is_full(&self, seats: usize) -> bool {
        self.seats.iter().take(seats).all(|place| lock(place).is_some())
    }

    /// No other seat has this session's number: the module gave it anew, so what had it before is gone.
    pub(super) fn only(&self, session: &OpenSession) {
        for place in &self.seats {
            let mut place = lock(place);
            if let Some(other) = place.take_if(|it| it.get().handle() == session.get().handle()) {
                other.forget();
            }
        }
    }

    /// Closes a session, or forgets it if its number may be another's.
    pub(super) fn discard(&self, session: OpenSession) {
        if session.epoch() == self.epoch() {
            drop(session);
        } else {
            session.forget();
        }
    }

    /// Looks through the seats while nobody is inside: what the token of this slot still knows stays. Where
    /// threads could not be kept out, nothing stays.
    pub(super) fn muster(&self, alone: Option<&Alone<'_>>, slot: Option<Slot>) {
        let epoch = self.epoch().saturating_add(1);
        let mut numbers = HashSet::new();
        for place in &self.seats {
            let mut place = lock(place);
            let Some(session) = place.take() else { continue };
            let is_second = !numbers.insert(session.get().handle());
            if alone.is_none() || is_second || session.epoch() != self.epoch() {
                session.forget();
                continue;
            }
            match session.get().get_session_info() {
                Ok(about) if Some(about.slot_id()) == slot => *place = Some(session.renewed(epoch)),
                Ok(_) => session.forget(),
                Err(error) => match class(&error) {
                    Class::SessionLost | Class::ModuleGone => session.forget(),
                    // It is ours still, whatever state it is in.
                    _ => drop(session),
                },
            }
        }
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Closes all sessions, for a module that is about to be finalised while nobody is inside.
    pub(super) fn clear(&self, _alone: &Alone<'_>) {
        for place in &self.seats {
            if let Some(session) = lock(place).take() {
                self.discard(session);
            }
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether a seat has a session.
    pub(super) fn has_any(&self) -> bool {
        self.seats.iter().any(|place| lock(place).is_some())
    }
}
