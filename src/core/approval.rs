//! Approvals: what exactly people approve, and when enough of them have.
//!
//! An approval is of a text: the request as it was decoded, the grants that cover it, who must approve it,
//! the bundle that says so, and until when. It is bound by the SHA-256 of that text, so nothing of it can
//! change between what people saw and what is signed: one wei more is another text, which nobody approved.

use crate::core::audit::Value;
use crate::core::id::{GrantId, KeyId, RequestId};
use crate::core::policy::verdict::ApprovalNeed;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// How many people of which quorum group.
pub type Quorum = BTreeMap<String, u32>;

/// Everything that an approval is about.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// The request.
    pub request: RequestId,
    /// Who asked for it.
    pub principal: &'a Principal,
    /// The key that would sign.
    pub key: KeyId,
    /// Its address.
    pub address: Address,
    /// What is asked, as leaves say it.
    pub asked: Value,
    /// What it would do, as leaves say it.
    pub effects: Value,
    /// The grants that cover it.
    pub grants: &'a [GrantId],
    /// Who must approve it, if anybody must.
    pub need: Option<&'a ApprovalNeed>,
    /// The bundle that decided.
    pub bundle: B256,
    /// Until when it may be approved; `None` where it only has to wait.
    pub expires_at: Option<Timestamp>,
}

impl Terms<'_> {
    /// The text that is approved: a JSON object in the encoding of audit leaves, so there is one way to
    /// write it.
    #[must_use]
    pub fn text(&self) -> String {
        let ids = |ids: &[GrantId]| Value::List(ids.iter().map(Value::from).collect());
        let asking = self.need.map_or(&[][..], |need| &need.grants);
        let quorums = self.need.map_or(&[][..], |need| &need.quorums);
        let fields = BTreeMap::from([
            ("v", Value::from("1")),
            ("kind", "approval".into()),
            ("id", self.request.into()),
            ("iss", (&self.principal.iss).into()),
            ("sub", (&self.principal.sub).into()),
            ("key", self.key.into()),
            ("address", format!("{:#x}", self.address).into()),
            ("request", self.asked.clone()),
            ("effects", self.effects.clone()),
            ("grants", ids(self.grants)),
            ("asked_by", ids(asking)),
            ("quorums", Value::List(quorums.iter().map(quorum_value).collect())),
            ("bundle", format!("{:#x}", self.bundle).into()),
            ("expires_at", self.expires_at.map_or_else(|| "".into(), Value::from)),
        ]);
        // Strings, lists and maps with string keys always serialise.
        serde_json::to_string(&fields).unwrap_or_default()
    }
}

fn quorum_value(quorum: &Quorum) -> Value {
    let groups = quorum.iter().map(|(group, people)| {
        Value::Map(BTreeMap::from([("group", group.into()), ("people", people.into())]))
    });
    Value::List(groups.collect())
}

/// The SHA-256 of [`Terms::text`]: what an approval names.
#[must_use]
pub fn hash(text: &str) -> B256 {
    B256::from_slice(&Sha256::digest(text.as_bytes()))
}

/// How far a quorum has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many people it wants.
    pub needed: u64,
    /// How many of those places are taken, each by another person.
    pub taken: u64,
}

impl Progress {
    /// Whether it is met.
    #[must_use]
    pub const fn is_met(self) -> bool {
        self.taken >= self.needed
    }
}

/// Who can take a place of a quorum: the members of its groups that have approved, without the requester.
#[derive(Clone, Debug)]
pub struct Approvers<'a> {
    people: BTreeSet<&'a str>,
    groups: &'a BTreeMap<String, BTreeSet<String>>,
}

impl<'a> Approvers<'a> {
    /// The people who have approved, by `sub`; who asked for the request is left out, whoever vouches for
    /// them.
    pub fn new(
        approved: impl IntoIterator<Item = &'a str>,
        requester: &str,
        groups: &'a BTreeMap<String, BTreeSet<String>>,
    ) -> Self {
        let people = approved.into_iter().filter(|sub| *sub != requester).collect();
        Self { people, groups }
    }

    /// Whether all quorums are met. Each is met by itself: one person may count in two of them.
    #[must_use]
    pub fn meet(&self, quorums: &[Quorum]) -> bool {
        quorums.iter().all(|quorum| self.progress(quorum).is_met())
    }

    /// How many places of a quorum can be taken by different people: of two groups with the same member, that
    /// member takes a place in one. A maximum matching of places and people (Kuhn's algorithm).
    #[must_use]
    pub fn progress(&self, quorum: &Quorum) -> Progress {
        let needed = quorum.values().fold(0_u64, |sum, many| sum.saturating_add((*many).into()));
        let mut places: Vec<&str> = Vec::new();
        for (group, many) in quorum {
            // More places than people cannot be taken: whoever asks for billions gets no more.
            let many = usize::try_from(*many).unwrap_or(usize::MAX).min(self.people.len());
            places.extend(std::iter::repeat_n(group.as_str(), many));
        }
        let mut seated = BTreeMap::new();
        let mut taken = 0_u64;
        for place in 0..places.len() {
            if self.seat(place, &places, &mut seated, &mut BTreeSet::new()) {
                taken = taken.saturating_add(1);
            }
        }
        Progress { needed, taken }
    }

    /// Finds somebody for a place, if need be by moving others to other places.
    fn seat(
        &self,
        place: usize,
        places: &[&str],
        seated: &mut BTreeMap<&'a str, usize>,
        asked: &mut BTreeSet<&'a str>,
    ) -> bool {
        let Some(members) = places.get(place).and_then(|group| self.groups.get(*group)) else {
            return false;
        };
        for person in self.people.iter().copied().filter(|person| members.contains(*person)) {
            if !asked.insert(person) {
                continue;
            }
            let is_free = match seated.get(person).copied() {
                None => true,
                Some(other) => self.seat(other, places, seated, asked),
            };
            if is_free {
                seated.insert(person, place);
                return true;
            }
        }
        false
    }
}

/// Whether a person is in one of the groups that these quorums name.
#[must_use]
pub fn is_member(
    sub: &str,
    quorums: &[Quorum],
    groups: &BTreeMap<String, BTreeSet<String>>,
) -> bool {
    let mut names = quorums.iter().flat_map(Quorum::keys);
    names.any(|name| groups.get(name).is_some_and(|members| members.contains(sub)))
}

#[cfg(test)]
mod tests;
