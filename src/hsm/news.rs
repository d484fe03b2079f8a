//! What happened to the tokens and is not in the audit log yet.

use crate::core::id::HsmName;
use crate::hsm::lock;
use crate::ports::signer::{HsmEvent, HsmNews};
use std::sync::Mutex;
use std::time::Instant;

/// More than this, and what is of one kind is told as one: the database may be away for long.
const KEPT_MAX: usize = 256;

/// In the order in which it happened.
#[derive(Default)]
pub(super) struct News(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    last: u64,
    items: Vec<Item>,
}

struct Item {
    number: u64,
    hsm: HsmName,
    at: Instant,
    times: u64,
    news: HsmNews,
}

impl News {
    /// Something has happened.
    pub(super) fn add(&self, hsm: &HsmName, news: HsmNews) {
        let mut kept = lock(&self.0);
        if kept.items.len() >= KEPT_MAX && kept.merge(hsm, &news) {
            return;
        }
        kept.last = kept.last.saturating_add(1);
        let (number, hsm) = (kept.last, hsm.clone());
        kept.items.push(Item { number, hsm, at: Instant::now(), times: 1, news });
    }

    /// What is kept.
    pub(super) fn list(&self) -> Vec<HsmEvent> {
        let kept = lock(&self.0);
        let event = |item: &Item| HsmEvent {
            number: item.number,
            hsm: item.hsm.clone(),
            age: item.at.elapsed(),
            times: item.times,
            news: item.news.clone(),
        };
        kept.items.iter().map(event).collect()
    }

    /// What is up to this number is recorded.
    pub(super) fn recorded(&self, up_to: u64) {
        lock(&self.0).items.retain(|item| item.number > up_to);
    }
}

impl Kept {
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
        }
        self.items.sort_by_key(|item| item.number);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::KeyId;
    use std::time::Duration;
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
