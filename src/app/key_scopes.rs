//! Whose idempotency keys are the same: those of one principal, or of a configured set of them, such as two
//! watchers that follow the same chains.

mod own;

pub(crate) use own::make_own;

use crate::app::{App, AppError, record, source_gone};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{Bound, KeyBinding, StoreError, TransactionRow, Unit, look};
use std::collections::BTreeSet;

/// Sets of subjects that share their keys, each within its own issuer: two issuers never share anything.
#[derive(Debug, Clone, Default)]
pub struct KeyScopes {
    sets: Vec<BTreeSet<String>>,
}

impl KeyScopes {
    /// These sets; no subject may be in two.
    #[must_use]
    pub fn new(sets: &[Vec<String>]) -> Self {
        Self { sets: sets.iter().map(|set| set.iter().cloned().collect()).collect() }
    }

    /// The scopes in which a key of this principal is bound: its own and those of all who share with it, in
    /// one order, so that two of them that bind at once wait for each other. A key is bound for every member:
    /// so it stays bound for each when the set is changed or taken away.
    #[must_use]
    pub fn of(&self, principal: &Principal) -> BTreeSet<String> {
        self.members(principal).iter().map(Principal::scope).collect()
    }

    /// This principal, and all who share with it, each once.
    #[must_use]
    pub fn members(&self, principal: &Principal) -> Vec<Principal> {
        let set = self.sets.iter().find(|set| set.contains(&principal.sub));
        let others = set.into_iter().flatten().filter(|sub| **sub != principal.sub);
        let others = others.map(|sub| Principal { iss: principal.iss.clone(), sub: sub.clone() });
        [principal.clone()].into_iter().chain(others).collect()
    }

    /// Whether what the one asked for is the other's own too.
    #[must_use]
    pub fn share(&self, one: &Principal, other: &Principal) -> bool {
        let together = |set: &BTreeSet<String>| set.contains(&one.sub) && set.contains(&other.sub);
        one == other || (one.iss == other.iss && self.sets.iter().any(together))
    }
}

/// What a key of this principal is bound to, with the transaction if it is one. What it bound itself goes
/// before what others did who share its keys since.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn bound(
    app: &App,
    principal: &Principal,
    key: &str,
) -> Result<Option<(KeyBinding, Option<TransactionRow>)>, AppError> {
    let own = principal.scope();
    let mut scopes = vec![own.clone()];
    scopes.extend(app.key_scopes.of(principal).into_iter().filter(|scope| *scope != own));
    let key = key.to_owned();
    Ok(look(&*app.store, "bound_key", move |unit| {
        let (scopes, key) = (scopes.clone(), key.clone());
        Box::pin(async move {
            for scope in &scopes {
                if let Some(found) = unit.bound_key(scope, &key).await? {
                    let row = unit.transaction(found.request).await?;
                    return Ok(Some((found, row)));
                }
            }
            Ok(None)
        })
    })
    .await?)
}

/// A binding for every scope of a principal.
pub(crate) fn bindings(app: &App, principal: &Principal, of: &KeyBinding) -> Vec<KeyBinding> {
    let scopes = app.key_scopes.of(principal).into_iter();
    scopes.map(|scope| KeyBinding { scope, ..of.clone() }).collect()
}

/// The idempotency key, in every scope in which it is bound.
pub(crate) struct Keys {
    bindings: Vec<KeyBinding>,
    /// What it is bound to, where that ended unsigned because its event went away.
    renews: Option<KeyBinding>,
}

/// What became of binding a key.
pub(crate) enum Keyed {
    /// It is bound to the new request.
    Bound,
    /// It was bound before.
    Before(KeyBinding),
    /// What it was bound to has changed under our hands.
    Moved,
}

impl Keys {
    pub(crate) fn new(
        app: &App,
        principal: &Principal,
        binding: &KeyBinding,
        renews: Option<KeyBinding>,
    ) -> Self {
        Self { bindings: bindings(app, principal, binding), renews }
    }

    /// Binds the key in the unit; anything but `Bound` must be rolled back.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn bind(
        &self,
        unit: &mut dyn Unit,
        now: Timestamp,
    ) -> Result<Keyed, StoreError> {
        if let Some(before) = &self.renews {
            // Read again here, and its version moved on: whoever would make something of it after all, as a
            // reconciliation might, is excluded by this, and excludes it.
            let ended = unit.transaction(before.request).await?;
            let has_attempts = !unit.attempts(before.request).await?.is_empty();
            let ended = ended.filter(|row| source_gone::ended_unsigned(row, has_attempts));
            let Some(row) = ended else { return Ok(Keyed::Before(before.clone())) };
            if !unit.touch(row.new.id, row.version).await? {
                return Ok(Keyed::Moved);
            }
        }
        for binding in &self.bindings {
            let Bound::Before(found) = unit.bind_key(binding).await? else { continue };
            let is_old = self.renews.as_ref().is_some_and(|it| it.request == found.request);
            if !is_old {
                return Ok(Keyed::Before(found));
            }
            if !unit.rebind_key(&found, binding).await? {
                return Ok(Keyed::Moved);
            }
            unit.append_leaf(&record::key_rebound(binding.request, &found, now)?).await?;
        }
        Ok(Keyed::Bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(iss: &str, sub: &str) -> Principal {
        Principal { iss: iss.to_owned(), sub: sub.to_owned() }
    }

    #[test]
    fn a_set_shares_within_one_issuer_and_nobody_else_does() {
        let scopes = KeyScopes::new(&[vec!["a".to_owned(), "b".to_owned()]]);
        assert_eq!(scopes.of(&who("i", "a")), scopes.of(&who("i", "b")));
        assert_eq!(scopes.of(&who("i", "a")).len(), 2);
        assert!(scopes.of(&who("i", "a")).is_disjoint(&scopes.of(&who("j", "a"))));
        assert_eq!(scopes.of(&who("i", "c")), BTreeSet::from([who("i", "c").scope()]));
        assert!(scopes.share(&who("i", "a"), &who("i", "b")));
        assert!(!scopes.share(&who("i", "a"), &who("j", "b")));
        assert!(!scopes.share(&who("i", "a"), &who("i", "c")));
        assert!(scopes.share(&who("i", "c"), &who("i", "c")));
    }
}
