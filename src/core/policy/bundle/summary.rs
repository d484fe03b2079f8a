//! Grants for people: what a listing shows.

use super::grant::{Grant, Holds, Rules, SignerRef, Window};
use serde::Serialize;

/// One grant, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GrantSummary {
    /// Its id.
    pub id: String,
    /// Who answers for it.
    pub owner: String,
    /// Why it exists.
    pub reason: String,
    /// The action.
    pub action: &'static str,
    /// The last day (UTC) on which it allows anything.
    pub expires: String,
    /// Who may ask.
    pub principals: Vec<String>,
    /// Who signs.
    pub signers: Vec<String>,
    /// Where; empty for messages.
    pub chains: Vec<String>,
    /// Its windows in words; amounts in the smallest unit.
    pub windows: Vec<String>,
}

impl GrantSummary {
    /// The summary of a grant.
    #[must_use]
    pub fn of(grant: &Grant) -> Self {
        let windows = match &grant.rules {
            Rules::Message { windows, .. } => windows.iter().map(describe).collect(),
            Rules::OnChain(rules) => rules
                .iter()
                .flat_map(|(chain, rule)| {
                    let fees = rule.fee.iter().flat_map(|fee| &fee.windows);
                    let own = rule.windows.iter().map(describe);
                    own.chain(fees.map(|window| format!("fee {}", describe(window))))
                        .map(move |text| format!("{chain}: {text}"))
                })
                .collect(),
        };
        Self {
            id: grant.id.to_string(),
            owner: grant.owner.clone(),
            reason: grant.reason.clone(),
            action: grant.action_name(),
            expires: grant.expires.clone(),
            principals: grant.principals.iter().cloned().collect(),
            signers: grant.signers.iter().map(ToString::to_string).collect(),
            chains: grant.chains().map(ToString::to_string).collect(),
            windows,
        }
    }
}

impl std::fmt::Display for SignerRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Group(group) => group.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// A window in words.
fn describe(window: &Window) -> String {
    let holds = match window.holds {
        Holds::Amount(max) => format!("at most {max}"),
        Holds::Count(count) => format!("at most {count} requests"),
    };
    format!("{holds} in {} per {}", window.span, window.scope.name())
}
