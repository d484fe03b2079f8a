//! Who may put a bundle in force, and when: the bundle that is in force says so.

use super::bundle::guardrail::Guardrails;
use crate::core::approval::Approvers;
use crate::core::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Somebody's word that a bundle may be activated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// Who, by `sub`: one person has one voice, whoever vouches for them.
    pub sub: String,
    /// When.
    pub at: Timestamp,
}

/// Whether a proposed bundle may be put in force now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Ready,
    /// More people must say so.
    NeedsPeople {
        /// How many of which quorum group, in words.
        quorum: String,
        /// Whose word counts so far.
        counted: BTreeSet<String>,
    },
    /// Enough people have said so; what loosens waits.
    Waits {
        /// From when on it may.
        until: Timestamp,
    },
    /// Somebody rejected it: it never may.
    Rejected {
        /// Who, by `sub`.
        by: String,
    },
}

/// Decides from the guardrails in force. The author's own word never counts. Without a change rule one other
/// person is enough.
#[must_use]
pub fn standing(
    in_force: &Guardrails,
    author: &str,
    voices: &[Voice],
    is_looser: bool,
    now: Timestamp,
) -> Standing {
    let quorum = in_force.change.as_ref().map(|change| &change.quorum);
    let may_speak = |sub: &String| {
        let is_member = |group| in_force.quorums.get(group).is_some_and(|all| all.contains(sub));
        sub != author && quorum.is_none_or(|quorum| quorum.keys().any(is_member))
    };
    let mut voices: Vec<&Voice> = voices.iter().filter(|voice| may_speak(&voice.sub)).collect();
    voices.sort_by(|a, b| (a.at, &a.sub).cmp(&(b.at, &b.sub)));
    // The quorum is met by whose word completed it; what is said later puts nothing off.
    let mut people = BTreeSet::new();
    let mut met_at = None;
    for voice in voices {
        people.insert(voice.sub.as_str());
        if is_met(in_force, quorum, (author, &people)) {
            met_at = Some(voice.at);
            break;
        }
    }
    let Some(met_at) = met_at else {
        return Standing::NeedsPeople {
            quorum: quorum.map_or_else(|| "one person other than its author".to_owned(), in_words),
            counted: people.into_iter().map(str::to_owned).collect(),
        };
    };
    let delay_ms = in_force.change.as_ref().map_or(0, |change| change.delay_ms);
    let until = met_at.plus_millis(delay_ms);
    if is_looser && now < until {
        return Standing::Waits { until };
    }
    Standing::Ready
}

fn in_words(quorum: &BTreeMap<String, u32>) -> String {
    let parts: Vec<String> =
        quorum.iter().map(|(group, count)| format!("{count} of {group}")).collect();
    parts.join(", ")
}

fn is_met(
    in_force: &Guardrails,
    quorum: Option<&BTreeMap<String, u32>>,
    (author, people): (&str, &BTreeSet<&str>),
) -> bool {
    let Some(quorum) = quorum else {
        return !people.is_empty();
    };
    let approvers = Approvers::new(people.iter().copied(), author, &in_force.quorums);
    approvers.progress(quorum).is_met()
}

/// What keeps a bundle from being put in force, in words.
impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready => f.write_str("it may be put in force"),
            Self::NeedsPeople { quorum, counted } if counted.is_empty() => {
                write!(f, "it needs {quorum}")
            }
            Self::NeedsPeople { quorum, counted } => {
                let people: Vec<&str> = counted.iter().map(String::as_str).collect();
                write!(f, "it needs {quorum}; so far: {}", people.join(", "))
            }
            Self::Rejected { by } => write!(f, "it was rejected by {by}: propose another one"),
            Self::Waits { until } => write!(f, "it loosens, and waits until {until}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::bundle::guardrail::ChangeRule;

    fn group(name: &str, members: &[&str]) -> (String, BTreeSet<String>) {
        (name.to_owned(), members.iter().map(|&member| member.to_owned()).collect())
    }

    fn rules(quorum: &[(&str, u32)], delay_ms: i64) -> Guardrails {
        let quorum = quorum.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Guardrails {
            quorums: BTreeMap::from([
                group("security", &["ann", "bob", "cy"]),
                group("treasury", &["ann", "dee"]),
            ]),
            change: Some(ChangeRule { quorum, delay_ms }),
            ..Guardrails::default()
        }
    }

    fn voices(subs: &[&str]) -> Vec<Voice> {
        let one = |(at, sub): (i64, &&str)| Voice {
            sub: (*sub).to_owned(),
            at: Timestamp::from_millis(at),
        };
        (0..).zip(subs).map(one).collect()
    }

    fn is_ready(rules: &Guardrails, subs: &[&str]) -> bool {
        let now = Timestamp::from_millis(1_000);
        standing(rules, "author", &voices(subs), false, now) == Standing::Ready
    }

    #[test]
    fn without_a_rule_anybody_but_the_author_is_enough() {
        let rules = Guardrails::default();
        assert!(!is_ready(&rules, &[]));
        assert!(!is_ready(&rules, &["author"]));
        assert!(is_ready(&rules, &["author", "zoe"]));
    }

    #[test]
    fn a_quorum_is_of_distinct_members_none_of_whom_is_the_author() {
        let two = rules(&[("security", 2)], 0);
        assert!(!is_ready(&two, &["ann"]));
        assert!(!is_ready(&two, &["ann", "ann"]));
        let heard = standing(&two, "author", &voices(&["zoe", "ann"]), false, Timestamp::default());
        let Standing::NeedsPeople { counted, .. } = heard else { panic!("{heard:?}") };
        assert_eq!(counted, BTreeSet::from(["ann".to_owned()]), "zoe is in no group");
        assert!(is_ready(&two, &["ann", "cy"]));
        let mut with_author = two;
        with_author.quorums.extend([group("security", &["ann", "author"])]);
        assert!(!is_ready(&with_author, &["ann", "author"]));
    }

    #[test]
    fn a_member_of_two_groups_counts_for_one_of_them() {
        let both = rules(&[("security", 1), ("treasury", 1)], 0);
        assert!(!is_ready(&both, &["ann"]));
        // Ann must sit for the treasury, whoever came first.
        assert!(is_ready(&both, &["ann", "bob"]));
        assert!(is_ready(&both, &["bob", "ann"]));
        assert!(!is_ready(&both, &["bob", "cy"]), "nobody of the treasury");
        assert!(is_ready(&both, &["dee", "ann"]));
    }

    #[test]
    fn a_quorum_group_that_is_not_there_is_never_met() {
        assert!(!is_ready(&rules(&[("nobody", 1)], 0), &["ann", "bob", "cy", "dee"]));
        assert!(!is_ready(&rules(&[("security", u32::MAX)], 0), &["ann", "bob", "cy"]));
    }

    #[test]
    fn what_loosens_waits_from_the_voice_that_completed_the_quorum() {
        let rules = rules(&[("security", 1)], 100);
        let voices = voices(&["zoe", "ann", "bob"]);
        let at = |ms| standing(&rules, "author", &voices, true, Timestamp::from_millis(ms));
        assert_eq!(at(50), Standing::Waits { until: Timestamp::from_millis(101) });
        assert_eq!(at(100), Standing::Waits { until: Timestamp::from_millis(101) });
        assert_eq!(at(101), Standing::Ready);
        let now = Timestamp::from_millis(50);
        assert_eq!(standing(&rules, "author", &voices, false, now), Standing::Ready);
    }
}
