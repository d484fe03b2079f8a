//! Roles × actions, one table. No role includes another and there is no root.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a token may say its bearer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Asks for signatures and transactions, reads its own.
    Client,
    /// Reads all transactions, cancels them, speeds them up, makes keys.
    Operator,
    /// Approves or rejects what waits, never its own request.
    Approver,
    /// Proposes and activates bundles.
    PolicyAdmin,
    /// Reads everything, changes nothing.
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::Client, Self::Operator, Self::Approver, Self::PolicyAdmin, Self::Auditor];

    /// The name in tokens and bundles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::PolicyAdmin => "policy_admin",
            Self::Auditor => "auditor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("unknown role `{text}`; known roles: {known}")
        })
    }
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for a transaction or a signature.
    Request,
    /// Read transactions that the caller asked for.
    ReadOwn,
    /// Read everybody's transactions.
    ReadAll,
    /// Cancel a transaction, or speed it up.
    Intervene,
    /// Make an operator key.
    CreateKey,
    /// List keys, groups, chains.
    ReadKeys,
    /// Read the audit log.
    ReadAudit,
    /// Read how full windows are: a client those of the grants that name it.
    ReadLimits,
    /// Propose policy bundles and put them in force.
    ChangePolicy,
    /// Read policy bundles, compare them, replay decisions by them.
    ReadPolicy,
    /// Read what waits for approval, with all that there is to know of it.
    ReadApprovals,
    /// Approve or reject what waits, never the caller's own request.
    Approve,
    /// Be told in full why policy refused: who may ask for signatures could probe for limits.
    ReadReasons,
}

/// Whether a bearer of this role may do this. The only table of its kind.
#[must_use]
pub const fn may(role: Role, action: Action) -> bool {
    match action {
        Action::Request | Action::ReadOwn => matches!(role, Role::Client),
        Action::ReadAll | Action::ReadKeys => matches!(role, Role::Operator | Role::Auditor),
        Action::CreateKey | Action::Intervene => matches!(role, Role::Operator),
        Action::ReadAudit => matches!(role, Role::Auditor),
        Action::ReadLimits => matches!(role, Role::Client | Role::Operator | Role::Auditor),
        Action::ChangePolicy => matches!(role, Role::PolicyAdmin),
        Action::ReadPolicy => matches!(role, Role::PolicyAdmin | Role::Auditor),
        Action::ReadApprovals => matches!(role, Role::Approver | Role::Operator | Role::Auditor),
        Action::Approve => matches!(role, Role::Approver),
        Action::ReadReasons => {
            matches!(role, Role::Approver | Role::Operator | Role::Auditor | Role::PolicyAdmin)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_may_do_everything_and_an_auditor_changes_nothing() {
        let all = [
            Action::Request,
            Action::ReadOwn,
            Action::ReadAll,
            Action::Intervene,
            Action::CreateKey,
            Action::ReadKeys,
            Action::ReadAudit,
            Action::ReadLimits,
            Action::ChangePolicy,
            Action::ReadPolicy,
            Action::ReadApprovals,
            Action::Approve,
            Action::ReadReasons,
        ];
        for role in Role::ALL {
            assert!(all.iter().any(|action| !may(role, *action)), "{role} is root");
        }
        assert!(!may(Role::Auditor, Action::Request));
        assert!(!may(Role::Auditor, Action::CreateKey));
        assert!(!may(Role::Auditor, Action::Intervene));
        assert!(!may(Role::Auditor, Action::ChangePolicy));
        assert!(!may(Role::Auditor, Action::Approve));
        assert!(!may(Role::Client, Action::ReadReasons), "limits are not to be probed");
    }
}
