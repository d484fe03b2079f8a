//! Read how full the windows are, as of now.

use crate::app::{App, AppError};
use crate::core::amount::Amount;
use crate::core::key::OperatorKey;
use crate::core::policy::{
    CountedKeys, LimitId, Period, WindowInForce, counted_keys, destination_in, windows_in_force,
    windows_in_force_to,
};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{KeyFilter, StoreError, Unit, look};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The scope of windows that count each principal alone.
const OWN: &str = "principal";

/// How many keys are read at once.
const PAGE: i64 = 1_000;

/// A window with what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitView {
    /// In words.
    pub label: String,
    /// The grant whose window it is.
    pub grant: String,
    /// The window; `None` if the bundle in force does not have it any more.
    pub window: Option<WindowInForce>,
    /// Its span of time.
    pub period: Period,
    /// Held by what is not final.
    pub held: Amount,
    /// Spent within the span that ends now.
    pub spent: Amount,
}

impl LimitView {
    /// Whether nobody else spends from it than who asks for its own windows.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.window.as_ref().is_some_and(|window| window.scope == OWN)
    }

    /// What is left of it; 0 where a newer bundle has made it smaller than what it holds.
    #[must_use]
    pub fn free(&self) -> Option<Amount> {
        let window = self.window.as_ref()?;
        let used = self.held.checked_add(self.spent);
        Some(used.and_then(|used| window.max.checked_sub(used)).unwrap_or(Amount::ZERO))
    }
}

/// All windows of the bundle in force, and the counters of older ones, by label. With `only`, the windows
/// of grants that name this principal.
///
/// # Errors
/// When the store does not answer.
pub async fn limits(
    app: &App,
    only: Option<&Principal>,
) -> Result<(Timestamp, Vec<LimitView>), AppError> {
    let now = app.clock.now();
    let counted = Arc::new(counted_keys(&app.bundle()));
    let (keys, rows) = look(&*app.store, "limits", move |unit| {
        let counted = Arc::clone(&counted);
        Box::pin(async move { Ok((keys(unit, &counted).await?, unit.limits_now(now).await?)) })
    })
    .await?;
    // Whom others pay is nobody's business who asks for its own windows.
    let rows_seen = if only.is_some() { &[][..] } else { &rows[..] };
    let seen = rows_seen.iter().filter_map(|row| destination_in(&row.label)).collect();
    let mut windows = windows_in_force_to(&app.bundle(), only, &keys, &seen);
    let mut found: Vec<LimitView> = Vec::new();
    for row in rows {
        let window = windows.remove(&row.id);
        if window.is_none() && only.is_some() {
            continue;
        }
        found.push(LimitView {
            label: row.label,
            grant: row.grant,
            window,
            period: row.period,
            held: row.held,
            spent: row.spent,
        });
    }
    found.extend(untouched(windows));
    found.sort_by(|a, b| a.label.cmp(&b.label));
    Ok((now, found))
}

/// The counters of windows that only this principal spends from.
#[must_use]
pub fn own_windows(app: &App, principal: &Principal) -> BTreeSet<LimitId> {
    let windows = windows_in_force(&app.bundle(), Some(principal), &[]);
    windows.into_values().filter(|window| window.scope == OWN).map(|window| window.limit).collect()
}

/// Where no window counts each key of a group alone, a group of any size costs nothing.
async fn keys(unit: &mut dyn Unit, counted: &CountedKeys) -> Result<Vec<OperatorKey>, StoreError> {
    let mut found = Vec::new();
    for group in &counted.groups {
        let mut after = None;
        loop {
            let filter = KeyFilter {
                after,
                group: Some(group.clone()),
                hsm: None,
                state: None,
                is_wrapped: None,
                limit: PAGE,
            };
            let page = unit.keys_page(&filter).await?;
            after = page.last().map(|key| key.id);
            found.extend(page);
            if after.is_none() {
                break;
            }
        }
    }
    for id in &counted.ids {
        found.extend(unit.key(*id).await?);
    }
    for address in &counted.addresses {
        found.extend(unit.key_at(*address).await?);
    }
    Ok(found)
}

/// Windows that nothing was charged to yet.
fn untouched<K>(windows: BTreeMap<K, WindowInForce>) -> impl Iterator<Item = LimitView> {
    windows.into_values().map(|window| LimitView {
        label: window.label.clone(),
        grant: window.grant.as_str().to_owned(),
        period: window.period,
        window: Some(window),
        held: Amount::ZERO,
        spent: Amount::ZERO,
    })
}
