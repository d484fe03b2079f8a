//! The kinds of events that the server tells, and how somebody says which of them they want.

use crate::core::tx::state::Status;

/// Which kinds of events somebody wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KindFilter {
    /// This kind.
    Is(String),
    /// Every kind that begins with this text; the empty one is all of them.
    Begins(String),
}

impl KindFilter {
    /// Reads `claviger.transaction.finalized`, `claviger.transaction.*` or `*`. `None` for a text that is
    /// neither: a `*` stands at the end, alone or after a dot.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |text: &str| {
            text.split('.').all(|word| {
                let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                !word.is_empty() && word.chars().all(known)
            })
        };
        match text.strip_suffix('*') {
            Some("") => Some(Self::Begins(String::new())),
            Some(begin) => {
                let words = begin.strip_suffix('.')?;
                plain(words).then(|| Self::Begins(begin.to_owned()))
            }
            None => plain(text).then(|| Self::Is(text.to_owned())),
        }
    }

    /// As [`parse`](Self::parse) reads it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Is(kind) => kind.clone(),
            Self::Begins(begin) => format!("{begin}*"),
        }
    }

    /// Whether it takes events of this kind.
    #[must_use]
    pub fn takes(&self, kind: &str) -> bool {
        match self {
            Self::Is(wanted) => kind == wanted,
            Self::Begins(begin) => kind.starts_with(begin.as_str()),
        }
    }
}

/// Every kind of event that the server tells, in the order of `docs/EVENTS.md`.
#[must_use]
pub fn all() -> Vec<String> {
    let statuses = Status::ALL.into_iter();
    let mut kinds: Vec<String> =
        statuses.map(|status| format!("claviger.transaction.{}", status.name())).collect();
    let others = [
        "transaction.source_retracted",
        "approval.requested",
        "approval.decided",
        "key.created",
        "key.imported",
        "policy.activated",
    ];
    kinds.extend(others.map(|it| format!("claviger.{it}")));
    kinds
}

/// Reads a filter that takes at least one of the kinds there are: a misspelt one would tell nothing, for ever.
#[must_use]
pub fn known_filter(text: &str) -> Option<KindFilter> {
    KindFilter::parse(text).filter(|filter| all().iter().any(|kind| filter.takes(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_kind_or_the_beginning_of_kinds() {
        let read = |text: &str| KindFilter::parse(text);
        assert!(read("*").unwrap().takes("claviger.key.created"));
        let below = read("claviger.transaction.*").unwrap();
        assert!(below.takes("claviger.transaction.finalized"));
        assert!(!below.takes("claviger.transactions") && !below.takes("claviger.transaction"));
        let one = read("claviger.transaction.mined").unwrap();
        assert!(one.takes("claviger.transaction.mined"));
        assert!(!one.takes("claviger.transaction.mined.again"));
        for text in ["*", "claviger.transaction.*", "claviger.key.created"] {
            assert_eq!(read(text).unwrap().text(), text);
        }
        for wrong in ["", "claviger.*.mined", "claviger*", ".*", "a..b", "A.b", "a.b ", "a.**"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_filter_that_would_take_nothing_is_not_known() {
        for known in ["*", "claviger.*", "claviger.transaction.*", "claviger.key.created"] {
            assert!(known_filter(known).is_some(), "{known}");
        }
        for misspelt in ["claviger.transactions.*", "claviger.transaction", "transaction.*"] {
            assert_eq!(known_filter(misspelt), None, "{misspelt}");
        }
    }

    #[test]
    fn the_page_about_events_has_every_kind_once_and_no_other() {
        let page = include_str!("../../docs/EVENTS.md");
        let table = page.split("\n## ").find(|section| section.starts_with("Types\n")).unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `claviger."));
        let told: Vec<String> = rows
            .filter_map(|row| row.split('`').next())
            .map(|kind| format!("claviger.{kind}"))
            .collect();
        assert_eq!(told, all(), "docs/EVENTS.md, in this order");
    }
}
