//! Whether our clock may be believed: a jump ahead would free windows, a jump back would date spend too early.
//!
//! A decision compares the clock with a moment that was trusted and with the time that has passed since by a
//! clock that nobody sets; it reads no database. A job writes the time into the database, so that the next start
//! knows when the server was last seen; a server that was stopped for long asks the chains.

use crate::app::record::Instruction;
use crate::app::{App, AppError, record};
use crate::core::time::{Timestamp, duration_text};
use crate::ports::chain::Claim;
use crate::ports::store::{End, Hold, look, unit};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The newest time that a server has seen, in `meta`.
const SEEN: &str = "clock_seen";
/// What an operator has confirmed last, in `meta`.
const CONFIRMED: &str = "clock_confirmed";

/// A moment that was trusted: by our clock, and by the one that nobody sets.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    wall: Timestamp,
    steady_ms: i64,
}

#[derive(Debug, Default)]
struct Trust {
    anchor: Option<Anchor>,
    doubt: Option<String>,
    /// What was found confirmed; nothing was read yet if `None`.
    confirmed: Option<Option<String>>,
}

/// What this process makes of its clock.
#[derive(Debug)]
pub struct ClockWatch {
    jump_ms: i64,
    trust: Mutex<Trust>,
}

impl ClockWatch {
    /// Nothing is trusted yet. More than this many milliseconds are a jump.
    #[must_use]
    pub fn new(jump_ms: i64) -> Self {
        Self { jump_ms, trust: Mutex::default() }
    }

    fn trust(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_new(&self) -> bool {
        let trust = self.trust();
        trust.anchor.is_none() && trust.doubt.is_none()
    }

    /// How far the clock is ahead of what it should be; `None` if nothing was trusted yet.
    fn drift(&self, now: Timestamp, steady_ms: i64) -> Option<i64> {
        let anchor = self.trust().anchor?;
        Some(now.since(anchor.wall).saturating_sub(steady_ms.saturating_sub(anchor.steady_ms)))
    }

    fn is_jump(&self, ms: i64) -> bool {
        ms.saturating_abs() > self.jump_ms
    }

    /// Why the clock is not believed now, if it is not.
    fn doubt(&self, now: Timestamp, steady_ms: i64) -> Option<String> {
        match self.drift(now, steady_ms) {
            Some(drift) if self.is_jump(drift) => {
                Some(told(drift, "than it was, by what has passed"))
            }
            _ => self.trust().doubt.clone(),
        }
    }

    /// `true` if it was not trusted before.
    fn believe(&self, wall: Timestamp, steady_ms: i64) -> bool {
        let mut trust = self.trust();
        trust.anchor = Some(Anchor { wall, steady_ms });
        trust.doubt.take().is_some()
    }

    /// `true` if it was not doubted before.
    fn disbelieve(&self, why: &str) -> bool {
        self.trust().doubt.replace(why.to_owned()).is_none()
    }
}

fn told(ms: i64, than: &str) -> String {
    let (by, way) = (duration_text(ms.saturating_abs()), if ms < 0 { "earlier" } else { "later" });
    format!("the clock is {by} {way} {than}")
}

/// Whether a decision that uses windows may be made now.
///
/// # Errors
/// `ClockUnconfirmed`; and when nothing was trusted yet, as [`watch`].
pub async fn check(app: &App, hold: &Hold) -> Result<(), AppError> {
    if hold.uses_windows() { believed(app).await } else { Ok(()) }
}

/// Whether our clock may be believed now, as what waits for a time must know.
///
/// # Errors
/// As [`check`].
pub async fn believed(app: &App) -> Result<(), AppError> {
    if app.clock_watch.is_new() {
        watch(app).await?;
    }
    match app.clock_watch.doubt(app.clock.now(), app.clock.steady_ms()) {
        Some(why) => Err(AppError::ClockUnconfirmed(why)),
        None => Ok(()),
    }
}

/// Compares the clock with when the server was last seen and, where it is ahead of that, with the chains; writes
/// the time down if it is believed.
///
/// # Errors
/// When the store does not answer.
pub async fn watch(app: &App) -> Result<(), AppError> {
    let (seen, confirmed) = look(&*app.store, "clock_seen", |unit| {
        Box::pin(async move { Ok((unit.meta(SEEN).await?, unit.meta(CONFIRMED).await?)) })
    })
    .await?;
    let seen = seen.and_then(|seen| seen.parse().ok()).map(Timestamp::from_millis);
    let (now, steady_ms) = (app.clock.now(), app.clock.steady_ms());
    let why = doubt(app, (now, steady_ms), seen, confirmed).await;
    metrics::gauge!("claviger_clock_confirmed").set(if why.is_none() { 1.0 } else { 0.0 });
    match why {
        Some(why) => alarm(app, &why, now).await,
        None if seen.is_none_or(|seen| seen < now) => write(app, now).await,
        None => Ok(()),
    }
}

/// Why the clock is not believed; it is from now on if there is nothing.
async fn doubt(
    app: &App,
    (now, steady_ms): (Timestamp, i64),
    seen: Option<Timestamp>,
    confirmed: Option<String>,
) -> Option<String> {
    let watch = &app.clock_watch;
    let before = watch.trust().confirmed.replace(confirmed.clone());
    let told_at = confirmed.as_ref().and_then(|at| at.parse().ok()).map(Timestamp::from_millis);
    // An operator has confirmed it since the last look, perhaps at another server.
    let is_told = before.is_some_and(|before| before != confirmed)
        && told_at.is_some_and(|at| !watch.is_jump(now.since(at)));
    let drift = watch.drift(now, steady_ms);
    let is_steady = drift.is_some_and(|drift| !watch.is_jump(drift));
    let ahead = seen.map_or(0, |seen| now.since(seen));
    if is_told {
        watch.believe(now, steady_ms);
        return None;
    }
    if watch.is_jump(ahead) && ahead < 0 {
        return Some(told(ahead, "than when the server was last seen"));
    }
    if is_steady {
        watch.trust().doubt = None;
        return None;
    }
    if watch.is_jump(ahead) || drift.is_some() {
        // A server that was stopped, or a machine that slept, is as late as the chains are.
        if !chains_agree(app, now).await {
            let by = drift.unwrap_or(ahead);
            let than = "than when the server was last seen, and no chain has a block of this time";
            return Some(told(by, than));
        }
    }
    watch.believe(now, steady_ms);
    None
}

/// Whether enough nodes of a chain have a newest block of about this time.
async fn chains_agree(app: &App, now: Timestamp) -> bool {
    let second = |ms: i64| u64::try_from(ms.div_euclid(1_000)).unwrap_or(0);
    let jump_ms = app.clock_watch.jump_ms;
    let claim = Claim::HeadTime {
        from_s: second(now.millis().saturating_sub(jump_ms)),
        until_s: second(now.millis().saturating_add(jump_ms)),
    };
    for chain in app.chains.values() {
        let said = chain.port.agreement(&claim, None).await;
        if said.is_enough(chain.settings.agree) {
            return true;
        }
    }
    false
}

async fn write(app: &App, now: Timestamp) -> Result<(), AppError> {
    let now = now.millis().to_string();
    Ok(unit(&*app.store, "clock_seen", move |unit| {
        let now = now.clone();
        Box::pin(async move { Ok(End::Commit(unit.set_meta(SEEN, &now).await?)) })
    })
    .await?)
}

/// Says so once, in the log and as a leaf.
async fn alarm(app: &App, why: &str, now: Timestamp) -> Result<(), AppError> {
    if !app.clock_watch.disbelieve(why) {
        return Ok(());
    }
    tracing::error!(
        why,
        "ALARM: nothing that uses windows is decided until the clock is confirmed"
    );
    let leaf = Arc::new(record::alarm("clock", why, now)?);
    Ok(unit(&*app.store, "clock_alarm", move |unit| {
        let leaf = leaf.clone();
        Box::pin(async move { Ok(End::Commit(unit.append_leaf(&leaf).await?)) })
    })
    .await?)
}

/// An operator says that the clock is right: windows go by it from now on.
///
/// # Errors
/// When the store does not answer.
pub async fn confirm(app: &App, said: &Instruction) -> Result<Timestamp, AppError> {
    let (now, steady_ms) = (app.clock.now(), app.clock.steady_ms());
    let leaf = record::instructed("clock", "clock_confirm", said, now)?;
    let work = Arc::new((now.millis().to_string(), leaf));
    let text = work.0.clone();
    unit(&*app.store, "clock_confirm", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (now, leaf) = &*work;
            unit.set_meta(SEEN, now).await?;
            unit.set_meta(CONFIRMED, now).await?;
            unit.append_leaf(leaf).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    app.clock_watch.believe(now, steady_ms);
    app.clock_watch.trust().confirmed = Some(Some(text));
    tracing::warn!(sub = %said.who.sub, "the clock was confirmed");
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000_i64.saturating_add(ms))
    }

    #[test]
    fn a_step_is_seen_at_once_and_so_are_many_small_ones() {
        let watch = ClockWatch::new(300_000);
        assert!(watch.is_new());
        watch.believe(at(0), 7);
        assert_eq!(watch.doubt(at(DAY_MS), DAY_MS.saturating_add(7)), None);
        assert_eq!(watch.doubt(at(300_000), 7), None);
        let ahead = watch.doubt(at(300_001), 7).unwrap_or_default();
        assert!(ahead.contains("later"), "{ahead}");
        let behind = watch.doubt(at(-300_001), 7).unwrap_or_default();
        assert!(behind.contains("earlier"), "{behind}");
        // Each second 200 seconds further: no reading in between is believed anew.
        let steps = (1..10).map(|n: i64| watch.doubt(at(n.saturating_mul(200_000)), n).is_some());
        assert_eq!(steps.filter(|seen| *seen).count(), 8);
    }

    #[test]
    fn what_was_doubted_is_doubted_until_something_is_believed() {
        let watch = ClockWatch::new(300_000);
        assert!(watch.disbelieve("wrong"));
        assert!(!watch.disbelieve("wrong"), "told once");
        assert_eq!(watch.doubt(at(0), 0).as_deref(), Some("wrong"));
        assert!(watch.believe(at(0), 0));
        assert_eq!(watch.doubt(at(0), 0), None);
    }
}
