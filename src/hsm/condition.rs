//! Whether a token is up, and what is done while it is not. Pure: times are given, as spans since the start.

use std::time::Duration;

/// The longest pause before the first probe. Each next one may be twice as long, up to [`PAUSE_MAX`].
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// No pause between two probes is longer.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After so many failed probes the module is finalised and initialised; and again after as many more.
pub(super) const PROBES: u32 = 3;
/// So many errors in a row without a good signature mean that the token is gone, if no other key signs.
pub(super) const TROUBLES: u32 = 3;
/// A token that is down again so soon after it came back comes back more slowly.
const SHORT: Duration = Duration::from_secs(60);
/// The first pause grows no further with each such outage: up to eight seconds.
const RELAPSES_MAX: u32 = 5;
/// What callers are told to wait, at least and at most, in seconds.
const RETRY_AFTER_MIN_S: u64 = 1;
const RETRY_AFTER_MAX_S: u64 = 30;

/// Of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    state: State,
    troubles: u32,
    /// How many outages in a row followed each other soon.
    relapses: u32,
    /// When the last outage ended.
    rose: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down(Outage),
    /// The token has refused the PIN: only a person can help.
    Condemned {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Outage {
    since: Duration,
    reason: String,
    /// How many probes have failed.
    probes: u32,
    /// When the next one is due.
    next: Duration,
    /// The module is to be initialised anew at the next one.
    module_gone: bool,
}

/// What is to be done about a token that is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    /// Look whether it is back.
    Probe,
    /// Finalise and initialise the module, then look.
    Restart,
}

impl Rung {
    /// The name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Restart => "restart",
        }
    }
}

/// Why a token does nothing now, and when to come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) retry_after_s: u32,
    pub(super) is_condemned: bool,
}

impl Condition {
    /// Of a token that was just found well.
    pub(super) const fn up() -> Self {
        Self { state: State::Up, troubles: 0, relapses: 0, rose: None }
    }

    /// Whether it is up.
    #[cfg(test)]
    const fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// Why nothing is asked of it now, if so.
    pub(super) fn refusal(&self, now: Duration) -> Option<Refusal> {
        match &self.state {
            State::Up => None,
            State::Down(outage) => {
                let wait = outage.next.saturating_sub(now).as_millis().div_ceil(1_000);
                let wait = u64::try_from(wait).unwrap_or(RETRY_AFTER_MAX_S);
                let wait = wait.clamp(RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S);
                Some(Refusal {
                    reason: outage.reason.clone(),
                    retry_after_s: u32::try_from(wait).unwrap_or(u32::MAX),
                    is_condemned: false,
                })
            }
            State::Condemned { why } => Some(Refusal {
                reason: why.clone(),
                retry_after_s: u32::try_from(RETRY_AFTER_MAX_S).unwrap_or(u32::MAX),
                is_condemned: true,
            }),
        }
    }

    /// A key has signed, and nothing less counts: a module may answer all else from memory.
    pub(super) const fn worked(&mut self) {
        self.troubles = 0;
    }

    /// A job met an error that does not say that the token is gone; answers whether it was one too many.
    pub(super) const fn troubled(&mut self) -> bool {
        self.troubles = self.troubles.saturating_add(1);
        self.troubles >= TROUBLES
    }

    /// The token is gone. `luck` is any random number. Answers whether it was up: an outage begins.
    pub(super) fn fell(
        &mut self,
        reason: &str,
        module_gone: bool,
        now: Duration,
        luck: u64,
    ) -> bool {
        match &mut self.state {
            State::Up => {
                let is_relapse = self.rose.is_some_and(|rose| now.saturating_sub(rose) < SHORT);
                let relapses = self.relapses.saturating_add(1).min(RELAPSES_MAX);
                self.relapses = if is_relapse { relapses } else { 0 };
                let at_once = module_gone && self.relapses == 0;
                let pause = if at_once { Duration::ZERO } else { pause(self.relapses, luck) };
                self.state = State::Down(Outage {
                    since: now,
                    reason: reason.to_owned(),
                    probes: 0,
                    next: now.saturating_add(pause),
                    module_gone,
                });
                true
            }
            State::Down(outage) => {
                if module_gone && !outage.module_gone {
                    outage.module_gone = true;
                    outage.next = now;
                }
                false
            }
            State::Condemned { .. } => false,
        }
    }

    /// The PIN was refused. Answers whether that is new.
    pub(super) fn condemn(&mut self, why: &str) -> bool {
        if matches!(self.state, State::Condemned { .. }) {
            return false;
        }
        self.state = State::Condemned { why: why.to_owned() };
        true
    }

    /// How long until something is to be done; `None` while nothing is.
    pub(super) const fn wait(&self, now: Duration) -> Option<Duration> {
        match &self.state {
            State::Down(outage) => Some(outage.next.saturating_sub(now)),
            State::Up | State::Condemned { .. } => None,
        }
    }

    /// What is to be done now.
    pub(super) fn due(&self, now: Duration) -> Option<Rung> {
        let State::Down(outage) = &self.state else { return None };
        if outage.next > now {
            return None;
        }
        let every = PROBES.saturating_add(1);
        let is_turn = outage.probes.checked_rem(every) == Some(PROBES);
        Some(if outage.module_gone || is_turn { Rung::Restart } else { Rung::Probe })
    }

    /// What was done did not help; the reason may be another by now.
    pub(super) fn failed(&mut self, reason: &str, module_gone: bool, now: Duration, luck: u64) {
        if let State::Down(outage) = &mut self.state {
            reason.clone_into(&mut outage.reason);
            outage.probes = outage.probes.saturating_add(1);
            outage.module_gone = module_gone;
            let doublings = outage.probes.saturating_add(self.relapses);
            outage.next = now.saturating_add(pause(doublings, luck));
        }
    }

    /// It is back. Answers since when it was gone, if it was.
    pub(super) fn rose(&mut self, now: Duration) -> Option<Duration> {
        let State::Down(outage) = &self.state else { return None };
        let since = outage.since;
        *self = Self { relapses: self.relapses, rose: Some(now), ..Self::up() };
        Some(since)
    }
}

/// Full jitter: anything up to the longest pause, so that servers which lost one HSM together do not come
/// back to it together.
fn pause(probes: u32, luck: u64) -> Duration {
    let factor = 1_u32.checked_shl(probes).unwrap_or(u32::MAX);
    let most = PAUSE_FIRST.saturating_mul(factor).min(PAUSE_MAX);
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(luck.checked_rem(most.saturating_add(1)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const ANY: u64 = 7_499_999_999;

    fn longest(probes: u32) -> Duration {
        (0..=40_000).map(|luck| pause(probes, luck)).max().unwrap()
    }

    #[test]
    fn pauses_double_up_to_half_a_minute_and_may_be_anything_below() {
        let longest: Vec<_> = (0..10).map(longest).map(|it| it.as_millis()).collect();
        assert_eq!(longest, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(pause(5, 0), Duration::ZERO);
        assert!(pause(40, ANY) <= PAUSE_MAX);
    }

    #[test]
    fn an_outage_begins_once_and_ends_once() {
        let mut it = Condition::up();
        assert!(it.is_up() && it.refusal(at(0)).is_none() && it.wait(at(0)).is_none());
        assert!(it.fell("C_Sign: CKR_DEVICE_ERROR", false, at(1_000), 100));
        assert!(!it.fell("C_Sign: CKR_DEVICE_ERROR", false, at(1_001), 7), "it was down already");
        assert_eq!((it.due(at(1_099)), it.due(at(1_100))), (None, Some(Rung::Probe)));
        assert_eq!(it.wait(at(1_040)), Some(at(60)));
        assert_eq!(it.rose(at(1_101)), Some(at(1_000)));
        assert_eq!((it.rose(at(1_102)), it.is_up()), (None, true));
    }

    #[test]
    fn the_module_is_restarted_after_each_three_failed_probes() {
        let mut it = Condition::up();
        it.fell("gone", false, at(0), 0);
        let mut rungs = Vec::new();
        for _ in 0..9 {
            rungs.push(it.due(at(0)).unwrap().name());
            it.failed("still gone", false, at(0), 0);
        }
        let row = ["probe", "probe", "probe", "restart"];
        assert_eq!(rungs, [&row[..], &row[..], &row[..1]].concat());
    }

    #[test]
    fn a_module_that_forgot_us_is_restarted_at_once() {
        let mut it = Condition::up();
        assert!(it.fell("C_Sign: CKR_CRYPTOKI_NOT_INITIALIZED", true, at(5), 249));
        assert_eq!(it.due(at(5)), Some(Rung::Restart));
        it.failed("gone", false, at(5), 0);
        assert_eq!(it.due(at(5)), Some(Rung::Probe), "the module is there again, the token is not");
        assert!(!it.fell("C_Sign: CKR_CRYPTOKI_NOT_INITIALIZED", true, at(6), 249));
        assert_eq!(it.due(at(6)), Some(Rung::Restart));
    }

    #[test]
    fn callers_are_told_to_wait_until_the_next_probe_between_one_and_thirty_seconds() {
        let mut it = Condition::up();
        it.fell("gone", false, at(0), 0);
        let told = |it: &Condition, now| it.refusal(now).unwrap().retry_after_s;
        assert_eq!(told(&it, at(0)), 1);
        for _ in 0..12 {
            it.failed("gone", false, at(0), 29_999);
        }
        assert_eq!((told(&it, at(0)), told(&it, at(28_000)), told(&it, at(90_000))), (30, 2, 1));
        assert_eq!(it.refusal(at(0)).unwrap().reason, "gone");
    }

    #[test]
    fn a_condemned_pin_is_for_ever_and_is_never_probed() {
        let mut it = Condition::up();
        it.fell("gone", false, at(0), 0);
        assert!(it.condemn("CKR_PIN_INCORRECT"));
        assert!(!it.condemn("CKR_PIN_INCORRECT"));
        assert!(it.refusal(at(0)).unwrap().is_condemned);
        it.failed("x", true, at(1), 0);
        assert!(!it.fell("x", true, at(1), 0));
        assert_eq!((it.due(at(99_000)), it.wait(at(0)), it.rose(at(1))), (None, None, None));
        assert!(!it.is_up());
    }

    #[test]
    fn a_token_that_is_soon_down_again_comes_back_more_slowly_until_it_was_up_for_a_minute() {
        let mut it = Condition::up();
        let mut waits = Vec::new();
        for n in 0..8 {
            let now = at(n * 20_000);
            it.fell("gone", n == 1, now, u64::from(u32::MAX));
            waits.push(it.wait(now).unwrap() <= pause(0, 250));
            assert!(it.wait(now).unwrap() <= at(8_000));
            it.rose(now + at(10));
        }
        assert_eq!(it.relapses, RELAPSES_MAX);
        assert!(waits[0], "the first one is probed at once");
        it.fell("C_Sign: CKR_CRYPTOKI_NOT_INITIALIZED", true, at(140_100), 7_999);
        assert_eq!(it.due(at(140_100)), None, "nor is a module restarted again and again");
        it.rose(at(140_200));
        it.fell("gone", false, at(140_200) + SHORT, 250);
        assert_eq!((it.relapses, it.wait(at(140_200) + SHORT)), (0, Some(at(250))));
    }

    #[test]
    fn the_third_trouble_in_a_row_is_one_too_many() {
        let mut it = Condition::up();
        assert!(!it.troubled() && !it.troubled());
        it.worked();
        assert!(!it.troubled() && !it.troubled());
        assert!(it.troubled());
    }
}
