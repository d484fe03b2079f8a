//! What happened to the tokens and is not in the audit log yet.

use crate::core::id::{HsmName, KeyId};
use crate::hsm::lock;
use crate::ports::signer::{HsmEvent, HsmNews};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// More than this, and what is of one kind is told as one: the database may be away for long.
const KEPT_MAX: usize = 256;

/// Wrong signatures by one key are told no more often.
const OFTEN: Duration = Duration::from_secs(60);

/// In the order in which it happened.
#[derive(Default)]
pub(super) struct News(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    last: u64,
    items: Vec<Item>,
    /// When a wrong signature was told last.
    told: HashMap<Subject, Instant>,
}

struct Item {
    number: u64,
    hsm: HsmName,
    at: Instant,
    times: u64,
    news: HsmNews,
    /// It was told, and may have been recorded.
    is_told: bool,
}

/// A token and a key of it.
type Subject = (HsmName, KeyId);

impl News {
    /// Something has happened.
    pub(super) fn add(&self, hsm: &HsmName, news: HsmNews) {
        let mut kept = lock(&self.0);
        let is_often = matches!(news, HsmNews::WrongSignature { .. });
        if (is_often || kept.items.len() >= KEPT_MAX) && kept.merge(hsm, &news) {
            return;
        }
        kept.last = kept.last.saturating_add(1);
        let (number, hsm) = (kept.last, hsm.clone());
        kept.items.push(Item { number, hsm, at: Instant::now(), times: 1, news, is_told: false });
    }

    /// What is kept. Wrong signatures by one key are told once a minute.
    pub(super) fn list(&self) -> Vec<HsmEvent> {
        self.list_at(Instant::now())
    }

    fn list_at(&self, now: Instant) -> Vec<HsmEvent> {
        let mut kept = lock(&self.0);
        let Kept { items, told, .. } = &mut *kept;
        told.retain(|_, at| now.saturating_duration_since(*at) < OFTEN);
        for item in items.iter_mut().filter(|item| !item.is_told) {
            let subject = item.subject();
            item.is_told = !subject.as_ref().is_some_and(|subject| told.contains_key(subject));
            if let (true, Some(subject)) = (item.is_told, subject) {
                told.insert(subject, now);
            }
        }
        kept.told()
    }

    /// All that is kept, whenever something of its kind was told.
    pub(super) fn list_all(&self) -> Vec<HsmEvent> {
        let mut kept = lock(&self.0);
        kept.items.iter_mut().for_each(|item| item.is_told = true);
        kept.told()
    }

    /// What was told up to this number is recorded.
    pub(super) fn recorded(&self, up_to: u64) {
        lock(&self.0).items.retain(|item| item.number > up_to || !item.is_told);
    }
}

impl Item {
    /// Whose wrong signature it is.
    fn subject(&self) -> Option<Subject> {
        match self.news {
            HsmNews::WrongSignature { key, .. } => Some((self.hsm.clone(), key)),
            HsmNews::Down { .. } | HsmNews::Up { .. } => None,
        }
    }
}

impl Kept {
    /// What may be recorded, in its order.
    fn told(&self) -> Vec<HsmEvent> {
        let event = |item: &Item| HsmEvent {
            number: item.number,
            hsm: item.hsm.clone(),
            age: item.at.elapsed(),
            times: item.times,
            news: item.news.clone(),
        };
        self.items.iter().filter(|item| item.is_told).map(event).collect()
    }

    /// Counts it with the last of its kind. An outage that follows another is the same, longer one: its end
    /// is not kept. Both get a new number, so that what was read meanwhile is not taken for all of it.
    fn merge(&mut self, hsm: &HsmName, news: &HsmNews) -> bool {
        let same = |item: &Item| {
            item.hsm == *hsm
                && match (&item.news, news) {
                    (
                        HsmNews::WrongSignature { key, .. },
                        HsmNews::WrongSignature { key: it, .. },
                    ) => key == it,
                    (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
                }
        };
        let Some(at) = self.items.iter().rposition(same) else { return false };
        if matches!(news, HsmNews::Down { .. }) {
            let ended = |it: &Item| it.hsm == *hsm && matches!(it.news, HsmNews::Up { .. });
            if let Some(end) = self.items.iter().rposition(ended).filter(|end| *end > at) {
                self.items.remove(end);
            }
        } else if matches!(news, HsmNews::Up { .. }) {
            // The end of the last outage: there is one for each token at most.
            return false;
        }
        self.last = self.last.saturating_add(1);
        if let Some(item) = self.items.get_mut(at) {
            item.times = item.times.saturating_add(1);
            item.number = self.last;
            item.is_told = false;
        }
        self.items.sort_by_key(|item| item.number);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn down() -> HsmNews {
        HsmNews::Down { reason: "CKR_DEVICE_ERROR".to_owned() }
    }

    fn up() -> HsmNews {
        HsmNews::Up { lasted: Duration::from_secs(1) }
    }

    #[test]
    fn what_is_not_recorded_is_told_again_in_its_order() {
        let (news, hsm) = (News::default(), HsmName::default());
        news.add(&hsm, down());
        news.add(&hsm, up());
        let first = news.list();
        assert_eq!((first.len(), &first[0].news, &first[1].news), (2, &down(), &up()));
        assert_eq!(news.list().len(), 2);
        news.add(&hsm, down());
        news.recorded(first[1].number);
        let rest = news.list();
        assert_eq!((rest.len(), rest[0].times), (1, 1));
    }

    #[test]
    fn wrong_signatures_by_one_key_are_told_once_a_minute_with_their_number() {
        let (news, hsm, begun) = (News::default(), HsmName::default(), Instant::now());
        let wrong =
            |key| HsmNews::WrongSignature { key: KeyId::new(Uuid::from_u128(key)), request: None };
        let told_at = |after: u64| {
            let told = news.list_at(begun + Duration::from_secs(after));
            let last = told.last().map_or(0, |event| event.number);
            news.recorded(last);
            told.iter().map(|event| event.times).collect::<Vec<_>>()
        };
        news.add(&hsm, wrong(1));
        assert_eq!(told_at(0), [1]);
        for _ in 0..30 {
            news.add(&hsm, wrong(1));
        }
        assert_eq!(told_at(30), [] as [u64; 0], "within the minute");
        news.add(&hsm, wrong(2));
        assert_eq!(told_at(30), [1], "another key is another matter");
        assert_eq!(told_at(61), [30]);
        assert_eq!(told_at(200), [] as [u64; 0]);
        news.add(&hsm, wrong(1));
        assert_eq!(told_at(210), [1]);
        news.add(&hsm, wrong(1));
        assert_eq!(told_at(211), [] as [u64; 0]);
        assert_eq!(news.list_all().len(), 1, "the process ends");
    }

    #[test]
    fn what_comes_faster_than_it_is_recorded_is_counted_and_bounded() {
        let (news, hsm, other) = (News::default(), HsmName::default(), HsmName::new("other"));
        let wrong =
            |key| HsmNews::WrongSignature { key: KeyId::new(Uuid::from_u128(key)), request: None };
        news.add(&hsm, wrong(1));
        for _ in 0..5_000 {
            news.add(&hsm, down());
            news.add(&hsm, up());
        }
        news.add(&other, down());
        news.add(&hsm, wrong(1));
        let told = news.list();
        assert!(told.len() <= KEPT_MAX + 3, "{}", told.len());
        let count = |kind: &HsmNews| {
            let same = told.iter().filter(|event| event.hsm == hsm && event.news == *kind);
            same.map(|event| event.times).sum::<u64>()
        };
        assert_eq!((count(&down()), count(&wrong(1))), (5_000, 2));
        assert!(told.windows(2).all(|two| two[0].number < two[1].number));
        let ours: Vec<_> = told.iter().filter(|event| event.hsm == hsm).collect();
        assert_eq!(ours[ours.len() - 2].news, up(), "the last outage is over");
        assert!(told.iter().any(|event| event.hsm == other));
    }
}
