//! Which request a mined transaction is, of those without a nonce that ask for just this. A database that was put
//! back may have several of them, and only one was signed: which one decides who is paid next.

use super::Choices;
use crate::app::adopt::OnChain;
use crate::app::release::Waiter;
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{GivenApproval, TransactionRow, WaitingRequest};
use std::collections::{BTreeMap, BTreeSet};

/// A request without a nonce.
pub(super) struct Unsent {
    /// The request.
    pub(super) row: TransactionRow,
    /// What it waits for, in this database.
    needs: Needs,
}

/// What has to happen before a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// A nonce only.
    Nonce,
    /// That its delay is over, and nobody's word.
    Time(Timestamp),
    /// Nobody's word any more: enough people have approved it.
    Release,
    /// Somebody's word.
    People,
}

/// What a mined transaction was found to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// No request asks for it.
    None,
    /// This one.
    One(RequestId),
    /// One of these, the oldest first, or a request that was lost: only people can say.
    Several(Vec<RequestId>),
}

impl Unsent {
    /// Reads what it needs. `groups` are the quorum groups of the bundle in force.
    pub(super) fn new(
        row: TransactionRow,
        waiting: Option<(WaitingRequest, Vec<GivenApproval>)>,
        groups: &BTreeMap<String, BTreeSet<String>>,
    ) -> Self {
        let needs = match (row.status, waiting) {
            (Status::Queued, _) => Needs::Nonce,
            (Status::Delayed, Some((wait, _))) if !is_to_be_approved(&row) => {
                Needs::Time(wait.due_at)
            }
            (Status::AwaitingApproval, Some((wait, given))) => {
                let waiter = Waiter { row: row.clone(), wait, given };
                if waiter.is_approved(groups) { Needs::Release } else { Needs::People }
            }
            _ => Needs::People,
        };
        Self { row, needs }
    }

    /// Whether only the time of a block can say what it needs.
    pub(super) const fn goes_by_time(&self) -> bool {
        matches!(self.needs, Needs::Time(_))
    }

    /// What it needed when a block of this time was made.
    fn needs_at(&self, mined_at: Timestamp) -> Needs {
        match self.needs {
            // All of them are of one kind, whenever their time came.
            Needs::Time(due_at) if due_at <= mined_at => Needs::Time(Timestamp::from_millis(0)),
            Needs::Time(_) => Needs::People,
            other => other,
        }
    }
}

/// Whether people are asked when its delay is over, by its last decision. What cannot be read has to be.
fn is_to_be_approved(row: &TransactionRow) -> bool {
    let read = serde_json::from_str::<serde_json::Value>(&row.new.decision_json).ok();
    let approval = read.as_ref().and_then(|decision| decision.get("approval"));
    approval.and_then(serde_json::Value::as_str) != Some("")
}

/// Says which request it is; each is named once. `true` beside it if an operator has said so.
///
/// What could be signed without anybody's further word comes before what somebody had to approve first: that
/// waits on, and nobody is paid for it but by that word. Among several kinds of the first, or several of the
/// second, nothing tells them apart.
pub(super) fn matching(
    rows: &[Unsent],
    (found, mined_at): (&OnChain, Timestamp),
    taken: &mut BTreeSet<RequestId>,
    choices: &Choices,
) -> (Match, bool) {
    let asks = rows.iter().filter(|it| found.is_asked_by(&it.row));
    let asks = asks.filter(|it| !taken.contains(&it.row.new.id));
    let asks: Vec<_> = asks.map(|it| (it.row.new.id, it.needs_at(mined_at))).collect();
    let (it, is_chosen) = match choices.get(&found.hash) {
        Some(None) => (Match::None, true),
        Some(Some(named)) if asks.iter().any(|(id, _)| id == named) => (Match::One(*named), true),
        _ => (most_likely(&asks, choices), false),
    };
    if let Match::One(id) = it {
        taken.insert(id);
    }
    (it, is_chosen)
}

fn most_likely(asks: &[(RequestId, Needs)], choices: &Choices) -> Match {
    // What an operator has named for another transaction is not this one.
    let is_free = |id: &RequestId| !choices.values().any(|named| named.as_ref() == Some(id));
    let asks: Vec<_> = asks.iter().filter(|(id, _)| is_free(id)).collect();
    let ready: Vec<_> = asks.iter().filter(|(_, needs)| *needs != Needs::People).collect();
    match (ready.as_slice(), asks.as_slice()) {
        ([(first, needs), more @ ..], _) if more.iter().all(|(_, other)| other == needs) => {
            Match::One(*first)
        }
        ([], []) => Match::None,
        ([], [(only, _)]) => Match::One(*only),
        _ => Match::Several(asks.iter().map(|(id, _)| *id).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const OVER: Needs = Needs::Time(Timestamp::from_millis(0));

    fn request(n: u128) -> RequestId {
        RequestId::new(Uuid::from_u128(n))
    }

    /// What is found of requests that need this, the oldest first.
    fn found(needs: &[Needs]) -> Match {
        let asks: Vec<_> = (1..).map(request).zip(needs.iter().copied()).collect();
        most_likely(&asks, &Choices::new())
    }

    fn several(ids: &[u128]) -> Match {
        Match::Several(ids.iter().copied().map(request).collect())
    }

    #[test]
    fn what_needed_nobody_comes_before_what_somebody_had_to_approve() {
        assert_eq!(found(&[]), Match::None);
        assert_eq!(found(&[Needs::People]), Match::One(request(1)));
        for ready in [Needs::Nonce, OVER, Needs::Release] {
            assert_eq!(found(&[Needs::People, ready, ready]), Match::One(request(2)), "{ready:?}");
        }
    }

    #[test]
    fn nothing_is_guessed_among_kinds_or_among_what_nobody_approved() {
        assert_eq!(found(&[Needs::People, Needs::People]), several(&[1, 2]));
        assert_eq!(found(&[OVER, Needs::Nonce]), several(&[1, 2]));
        assert_eq!(found(&[Needs::People, Needs::Release, Needs::Nonce]), several(&[1, 2, 3]));
    }

    #[test]
    fn what_was_named_for_another_transaction_is_not_this_one() {
        let asks = [(request(1), Needs::People), (request(2), Needs::People)];
        let choices = Choices::from([(alloy::primitives::B256::ZERO, Some(request(1)))]);
        assert_eq!(most_likely(&asks, &choices), Match::One(request(2)));
    }
}
