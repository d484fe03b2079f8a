//! What a final block shows of what others may take: what is used, and what nobody can take any more.
//!
//! Where anything is not known nothing is freed. What has shrunk counts as spent, also where it was taken
//! back: the chain's state alone does not tell the two apart, and it leaves the windows with time.

use crate::core::amount::Amount;
use crate::core::policy::effect::{ApprovalForm, PermitTerms};
use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::{SolCall, SolValue};
use std::collections::BTreeMap;

mod abi {
    alloy::sol! {
        interface Token {
            function allowance(address owner, address spender) external view returns (uint256);
            function nonces(address owner) external view returns (uint256);
            function authorizationState(address authorizer, bytes32 nonce)
                external view returns (bool);
        }
        interface Permit2 {
            function allowance(address owner, address token, address spender)
                external view returns (uint160 amount, uint48 expiration, uint48 nonce);
            function nonceBitmap(address owner, uint256 word) external view returns (uint256);
        }
    }
}

/// A read of the chain's state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Read {
    /// The contract.
    pub to: Address,
    /// Calldata.
    pub data: Bytes,
}

/// What the reads answered. A read that reverted is not among them.
pub type Answers = BTreeMap<Read, Bytes>;

/// One exposure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The token's contract.
    pub token: Address,
    /// Whose tokens.
    pub account: Address,
    /// Who may take them.
    pub spender: Address,
    /// How it was given.
    pub form: ApprovalForm,
    /// What is not known to be spent.
    pub remaining: Amount,
    /// The permit, if it is one.
    pub permit: Option<PermitTerms>,
    /// Whether the permit is known to be submitted, or there is none.
    pub submitted: bool,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Spent, or taken back: it counts from now.
    pub used: Amount,
    /// Nobody can take it, and nobody did.
    pub freed: Amount,
    /// Whether the permit is known to be submitted, or there is none.
    pub submitted: bool,
    /// Why it is over.
    pub ended: Option<&'static str>,
}

/// Where an allowance is kept: by the token itself, or by a Permit2 contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    ByToken,
    ByPermit2(Address),
}

fn read<C: SolCall>(to: Address, call: &C) -> Read {
    Read { to, data: call.abi_encode().into() }
}

impl View {
    fn kept(&self) -> Option<Kept> {
        match (self.form, &self.permit) {
            (
                ApprovalForm::Approve
                | ApprovalForm::Increase
                | ApprovalForm::Permit
                | ApprovalForm::DaiPermit,
                _,
            ) => Some(Kept::ByToken),
            (ApprovalForm::Permit2, Some(permit)) => {
                Some(Kept::ByPermit2(permit.verifying_contract))
            }
            (ApprovalForm::Permit2Approve(contract), _) => Some(Kept::ByPermit2(contract)),
            _ => None,
        }
    }

    fn allowance(&self, kept: Kept) -> Read {
        let (owner, spender, token) = (self.account, self.spender, self.token);
        match kept {
            Kept::ByToken => read(token, &abi::Token::allowanceCall { owner, spender }),
            Kept::ByPermit2(at) => read(at, &abi::Permit2::allowanceCall { owner, token, spender }),
        }
    }

    /// What the nonce of a permit is read by; that of an allowance of Permit2 is beside the allowance.
    fn permit_read(&self) -> Option<Read> {
        let permit = self.permit.as_ref().filter(|_| !self.submitted)?;
        let at = permit.verifying_contract;
        match self.form {
            ApprovalForm::Permit | ApprovalForm::DaiPermit => {
                Some(read(at, &abi::Token::noncesCall { owner: self.account }))
            }
            ApprovalForm::TransferAuthorization => {
                let (authorizer, nonce) = (self.account, permit.nonce.into());
                Some(read(at, &abi::Token::authorizationStateCall { authorizer, nonce }))
            }
            ApprovalForm::Permit2Transfer => {
                let word = permit.nonce.wrapping_shr(8);
                Some(read(at, &abi::Permit2::nonceBitmapCall { owner: self.account, word }))
            }
            ApprovalForm::Permit2 => Some(self.allowance(Kept::ByPermit2(at))),
            ApprovalForm::Approve
            | ApprovalForm::Increase
            | ApprovalForm::Permit2Approve(_)
            | ApprovalForm::Seaport => None,
        }
    }

    fn change(&self) -> Change {
        Change { submitted: self.submitted, ..Change::default() }
    }

    /// All of it counts from now, and it is over.
    fn used(&self, why: &'static str) -> Change {
        Change { used: self.remaining, ended: Some(why), ..self.change() }
    }

    /// Nobody took it, and nobody can.
    fn free(&self, why: &'static str) -> Change {
        Change { freed: self.remaining, ended: Some(why), ..self.change() }
    }
}

/// Everything that is to be read of these.
#[must_use]
pub fn reads(views: &[View]) -> Vec<Read> {
    let mut all = Vec::new();
    for view in views {
        all.extend(view.kept().map(|kept| view.allowance(kept)));
        all.extend(view.permit_read());
    }
    all.sort();
    all.dedup();
    all
}

/// What a final block of this time (in seconds) shows of exposures of one token, account and spender, the
/// oldest first.
#[must_use]
pub fn judge(views: &[View], answers: &Answers, time_s: u64) -> Vec<Change> {
    let mut changes: Vec<Change> =
        views.iter().map(|view| by_permit(view, answers, time_s)).collect();
    let mut kept: Vec<Kept> = views.iter().filter_map(View::kept).collect();
    kept.sort();
    kept.dedup();
    for kept in kept {
        by_allowance(views, &mut changes, kept, answers, time_s);
    }
    changes
}

fn word(answers: &Answers, read: &Read) -> Option<U256> {
    U256::abi_decode_validate(answers.get(read)?).ok()
}

/// What the permit's own nonce says. Times are compared so that a moment too late is waited, never too early.
fn by_permit(view: &View, answers: &Answers, time_s: u64) -> Change {
    let Some(permit) = view.permit.as_ref().filter(|_| !view.submitted) else {
        return match view.form {
            // Its transaction has carried it out.
            ApprovalForm::TransferAuthorization | ApprovalForm::Permit2Transfer => {
                view.used("used")
            }
            _ => view.change(),
        };
    };
    let past = permit.deadline.is_some_and(|deadline| time_s > deadline);
    let read = view.permit_read();
    let said = read.and_then(|read| match view.form {
        ApprovalForm::Permit2 => permit2(answers, &read).map(|(_, _, next)| next),
        _ => word(answers, &read),
    });
    match (view.form, said) {
        // An order may have been filled: whatever it was, no more comes of it.
        (ApprovalForm::Seaport, _) if past => view.used("expired"),
        (ApprovalForm::Permit | ApprovalForm::DaiPermit | ApprovalForm::Permit2, Some(next)) => {
            match next > permit.nonce {
                true => Change { submitted: true, ..view.change() },
                false if past => view.free("expired"),
                false => view.change(),
            }
        }
        (ApprovalForm::TransferAuthorization, Some(state)) => match state.is_zero() {
            false => view.used("used"),
            true if past => view.free("expired"),
            true => view.change(),
        },
        (ApprovalForm::Permit2Transfer, Some(bits)) => {
            match bits.bit(usize::from(permit.nonce.byte(0))) {
                true => view.used("used"),
                false if past => view.free("expired"),
                false => view.change(),
            }
        }
        _ => view.change(),
    }
}

/// Amount, expiration in seconds, next nonce.
fn permit2(answers: &Answers, read: &Read) -> Option<(U256, U256, U256)> {
    <(U256, U256, U256)>::abi_decode_validate(answers.get(read)?).ok()
}

/// What is less in the allowance than is open of it was taken, or taken back.
fn by_allowance(
    views: &[View],
    changes: &mut [Change],
    kept: Kept,
    answers: &Answers,
    time_s: u64,
) {
    let ours = |view: &View, change: &Change| {
        change.submitted && change.ended.is_none() && view.kept() == Some(kept)
    };
    let Some(first) = views.iter().find(|view| view.kept() == Some(kept)) else {
        return;
    };
    let read = first.allowance(kept);
    let known = match kept {
        Kept::ByToken => word(answers, &read).map(|left| (left, false)),
        // Until and with this moment it can be taken.
        Kept::ByPermit2(_) => {
            permit2(answers, &read).map(|(left, expires, _)| (left, U256::from(time_s) > expires))
        }
    };
    let Some((left, is_past)) = known else {
        return;
    };
    let open: Option<U256> = views
        .iter()
        .zip(&*changes)
        .filter(|(view, change)| ours(view, change))
        .try_fold(U256::ZERO, |sum, (view, _)| sum.checked_add(view.remaining.units()));
    // Without a bound nothing is known of what was taken, until nothing is left.
    let is_unlimited = open.is_none_or(|open| open == U256::MAX);
    if is_unlimited && !left.is_zero() {
        return;
    }
    let mut gone = open.unwrap_or(U256::MAX).saturating_sub(left);
    for (view, change) in views.iter().zip(changes) {
        if !ours(view, change) {
            continue;
        }
        let of_this =
            if is_unlimited { view.remaining.units() } else { gone.min(view.remaining.units()) };
        gone = gone.saturating_sub(of_this);
        change.used = Amount::new(of_this);
        let rest = view.remaining.checked_sub(change.used).unwrap_or_default();
        if rest.is_zero() {
            change.ended = Some("used");
        } else if is_past {
            (change.freed, change.ended) = (rest, Some("expired"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: u64 = 1_000;

    fn at(n: u8) -> Address {
        Address::repeat_byte(n)
    }

    fn view(form: ApprovalForm, remaining: u64, permit: Option<(u64, u64, Option<u64>)>) -> View {
        let submitted = permit.is_none();
        let permit = permit.map(|(nonce, deadline, expires)| PermitTerms {
            verifying_contract: match form {
                ApprovalForm::Permit2 | ApprovalForm::Permit2Transfer => at(9),
                _ => at(1),
            },
            nonce: U256::from(nonce),
            deadline: Some(deadline),
            expires,
        });
        let (token, account, spender) = (at(1), at(2), at(3));
        let remaining = Amount::from(remaining);
        View { token, account, spender, form, remaining, permit, submitted }
    }

    /// Answers to all reads of these: allowance of the token, allowance of Permit2, what the permit's read says.
    fn answers(views: &[View], token: u64, two: (u64, u64, u64), permit: u64) -> Answers {
        let mut all = Answers::new();
        for view in views {
            if let Some(read) = view.permit_read() {
                all.insert(read, U256::from(permit).abi_encode().into());
            }
            match view.kept() {
                Some(kept @ Kept::ByToken) => {
                    all.insert(view.allowance(kept), U256::from(token).abi_encode().into());
                }
                Some(kept @ Kept::ByPermit2(_)) => {
                    let (amount, expires, nonce) = two;
                    let said = (U256::from(amount), U256::from(expires), U256::from(nonce));
                    all.insert(view.allowance(kept), said.abi_encode().into());
                }
                None => {}
            }
        }
        all
    }

    fn told(change: &Change) -> (u64, u64, Option<&'static str>) {
        (change.used.units().to(), change.freed.units().to(), change.ended)
    }

    fn one(view: View, token: u64, two: (u64, u64, u64), permit: u64) -> Change {
        let views = [view];
        let answers = answers(&views, token, two, permit);
        judge(&views, &answers, TIME).remove(0)
    }

    #[test]
    fn what_an_allowance_lost_is_spent_and_the_rest_stays() {
        let of = |token| one(view(ApprovalForm::Approve, 100, None), token, (0, 0, 0), 0);
        assert_eq!(told(&of(100)), (0, 0, None));
        assert_eq!(told(&of(500)), (0, 0, None));
        assert_eq!(told(&of(40)), (60, 0, None));
        assert_eq!(told(&of(0)), (100, 0, Some("used")));
    }

    #[test]
    fn two_allowances_of_one_spender_are_one_and_the_oldest_goes_first() {
        let views =
            [view(ApprovalForm::Approve, 100, None), view(ApprovalForm::Increase, 50, None)];
        let changes = judge(&views, &answers(&views, 30, (0, 0, 0), 0), TIME);
        assert_eq!(
            changes.iter().map(told).collect::<Vec<_>>(),
            [(100, 0, Some("used")), (20, 0, None)]
        );
    }

    #[test]
    fn nothing_is_concluded_from_what_was_not_answered() {
        let forms = [
            view(ApprovalForm::Approve, 100, None),
            view(ApprovalForm::Permit, 100, Some((4, 1, None))),
            view(ApprovalForm::TransferAuthorization, 100, Some((4, 1, Some(1)))),
            view(ApprovalForm::Permit2, 100, Some((4, 1, Some(2)))),
            view(ApprovalForm::Permit2Transfer, 100, Some((4, 1, Some(1)))),
            view(ApprovalForm::Permit2Approve(at(9)), 100, None),
        ];
        for view in forms {
            let changes = judge(std::slice::from_ref(&view), &Answers::new(), TIME);
            assert_eq!(told(&changes[0]), (0, 0, None), "{view:?}");
            // A short or strange answer is none.
            let reads = reads(std::slice::from_ref(&view));
            let strange = reads.into_iter().map(|read| (read, Bytes::from(vec![1]))).collect();
            let changes = judge(std::slice::from_ref(&view), &strange, TIME);
            assert_eq!(told(&changes[0]), (0, 0, None), "{view:?}");
        }
    }

    #[test]
    fn a_permit_is_free_once_its_deadline_is_past_and_its_nonce_unused() {
        let of = |deadline, next| {
            one(view(ApprovalForm::Permit, 100, Some((4, deadline, None))), 30, (0, 0, 0), next)
        };
        assert_eq!(told(&of(TIME, 4)), (0, 0, None), "that second it can still be submitted");
        assert_eq!(told(&of(TIME - 1, 4)), (0, 100, Some("expired")));
        // Submitted: what its allowance lost is spent, and the deadline is of no matter any more.
        let submitted = of(TIME - 1, 5);
        assert_eq!((told(&submitted), submitted.submitted), ((70, 0, None), true));
    }

    #[test]
    fn a_signed_transfer_is_spent_once_its_nonce_is_used() {
        let of = |deadline, state| {
            let view = view(ApprovalForm::TransferAuthorization, 100, Some((4, deadline, None)));
            told(&one(view, 0, (0, 0, 0), state))
        };
        assert_eq!(of(TIME + 1, 0), (0, 0, None));
        assert_eq!(of(TIME + 1, 1), (100, 0, Some("used")));
        assert_eq!(of(TIME - 1, 1), (100, 0, Some("used")));
        assert_eq!(of(TIME - 1, 0), (0, 100, Some("expired")));
    }

    #[test]
    fn an_allowance_of_permit2_ends_with_its_own_expiration() {
        let of = |deadline, two| {
            let terms = Some((4, deadline, Some(5_000)));
            told(&one(view(ApprovalForm::Permit2, 100, terms), 0, two, 0))
        };
        assert_eq!(of(TIME, (0, 0, 4)), (0, 0, None));
        assert_eq!(of(TIME - 1, (0, 0, 4)), (0, 100, Some("expired")), "never submitted");
        assert_eq!(of(TIME - 1, (100, TIME, 5)), (0, 0, None), "submitted");
        assert_eq!(of(TIME - 1, (40, TIME, 5)), (60, 0, None));
        assert_eq!(of(TIME - 1, (40, TIME - 1, 5)), (60, 40, Some("expired")));
    }

    #[test]
    fn an_allowance_of_permit2_that_expires_with_its_deadline_is_no_transfer() {
        // Every bit of the word of its nonce is set, by transfers that are others.
        for until in [TIME + 9, TIME - 1] {
            let terms = Some((4, until, Some(until)));
            let all = U256::MAX;
            let views = [view(ApprovalForm::Permit2, 100, terms)];
            let mut known = answers(&views, 0, (100, until, 5), 0);
            let word = abi::Permit2::nonceBitmapCall { owner: at(2), word: U256::ZERO };
            known.insert(read(at(9), &word), all.abi_encode().into());
            let change = judge(&views, &known, TIME).remove(0);
            let freed = if until > TIME { (0, 0, None) } else { (0, 100, Some("expired")) };
            assert_eq!((told(&change), change.submitted), (freed, true));
        }
    }

    #[test]
    fn an_approve_of_permit2_is_followed_by_what_it_keeps() {
        let of = |two| told(&one(view(ApprovalForm::Permit2Approve(at(9)), 100, None), 0, two, 0));
        assert_eq!(of((100, TIME, 0)), (0, 0, None), "the token says nothing about it");
        assert_eq!(of((40, TIME, 7)), (60, 0, None));
        assert_eq!(of((40, TIME - 1, 0)), (60, 40, Some("expired")));
        assert_eq!(of((0, TIME, 0)), (100, 0, Some("used")));
    }

    #[test]
    fn an_allowance_of_the_token_says_nothing_about_one_that_permit2_keeps() {
        let views = [
            view(ApprovalForm::Approve, 1, None),
            view(ApprovalForm::Permit2Approve(at(9)), 999, None),
        ];
        let changes = judge(&views, &answers(&views, 1, (900, TIME, 0), 0), TIME);
        let all: Vec<_> = changes.iter().map(told).collect();
        assert_eq!(all, [(0, 0, None), (99, 0, None)]);
    }

    #[test]
    fn a_single_transfer_by_permit2_is_a_bit() {
        let of = |deadline: u64, bits| {
            let terms = Some((4, deadline, Some(deadline)));
            told(&one(view(ApprovalForm::Permit2Transfer, 100, terms), 0, (0, 0, 9), bits))
        };
        assert_eq!(of(TIME, 0), (0, 0, None));
        assert_eq!(of(TIME, 1 << 4), (100, 0, Some("used")));
        assert_eq!(of(TIME, 1 << 3), (0, 0, None), "another's bit");
        assert_eq!(of(TIME - 1, 0), (0, 100, Some("expired")));
    }

    #[test]
    fn without_a_bound_it_is_open_until_nothing_is_left() {
        let unlimited = || View { remaining: Amount::MAX, ..view(ApprovalForm::Approve, 1, None) };
        assert_eq!(one(unlimited(), 5, (0, 0, 0), 0).ended, None);
        let over = one(unlimited(), 0, (0, 0, 0), 0);
        assert_eq!((over.used, over.ended), (Amount::MAX, Some("used")));
    }
}
