//! What one bundle permits that another does not, and the other way round: computed from the checked
//! grants and guardrails, never from what an author says about them.
//!
//! What cannot be shown to tighten counts as loosening. So a change that only tightens may be called
//! loosening, and never the other way round.

mod bounds;
#[cfg(test)]
mod choices;
#[cfg(test)]
mod edits;
mod frame;
mod grants;
mod overlap;
#[cfg(test)]
mod properties;
mod rules;
#[cfg(test)]
mod tests;
mod words;

use super::Bundle;
use serde::Serialize;

/// Which way a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Something may be permitted that was not.
    Loosens,
    /// Something may be refused that was not, and nothing is newly permitted by it.
    Tightens,
    /// No decision changes by it.
    Neutral,
}

impl Direction {
    /// The name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loosens => "loosens",
            Self::Tightens => "tightens",
            Self::Neutral => "neutral",
        }
    }
}

/// One thing that is different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which way it goes.
    pub direction: Direction,
    /// What it is about, such as ``grant `usdc-payouts` ``.
    pub about: String,
    /// What is different, in a sentence.
    pub what: String,
}

/// All that is different between two bundles: what loosens first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Each difference.
    pub changes: Vec<Change>,
}

impl Diff {
    /// Whether the new bundle may permit anything that the old one does not.
    #[must_use]
    pub fn is_looser(&self) -> bool {
        self.changes.iter().any(|change| change.direction == Direction::Loosens)
    }

    /// Whether no decision and no name is different.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// What `new` permits and refuses that `old` does not.
#[must_use]
pub fn diff(old: &Bundle, new: &Bundle) -> Diff {
    let mut notes = Notes { about: String::new(), changes: Vec::new() };
    frame::compare(old, new, &mut notes);
    grants::compare(old, new, &mut notes);
    let mut changes = notes.changes;
    // Stable: within a direction, in the order in which they were found.
    changes.sort_by_key(|change| change.direction);
    changes.dedup();
    Diff { changes }
}

/// Gathers what is different.
struct Notes {
    about: String,
    changes: Vec<Change>,
}

impl Notes {
    fn about(&mut self, about: impl Into<String>) {
        self.about = about.into();
    }

    fn add(&mut self, direction: Direction, what: impl Into<String>) {
        let (about, what) = (self.about.clone(), what.into());
        self.changes.push(Change { direction, about, what });
    }

    fn loosens(&mut self, what: impl Into<String>) {
        self.add(Direction::Loosens, what);
    }

    fn tightens(&mut self, what: impl Into<String>) {
        self.add(Direction::Tightens, what);
    }

    fn neutral(&mut self, what: impl Into<String>) {
        self.add(Direction::Neutral, what);
    }
}
