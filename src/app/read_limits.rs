//! Read how full the windows are, as of now.

use crate::app::{App, AppError};
use crate::core::amount::Amount;
use crate::core::policy::{WindowInForce, windows_in_force};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::look;
use std::collections::BTreeMap;

/// A window with what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitView {
    /// In words.
    pub label: String,
    /// The grant whose window it is.
    pub grant: String,
    /// The window; `None` if the bundle in force does not have it any more.
    pub window: Option<WindowInForce>,
    /// Its length, in milliseconds.
    pub span_ms: i64,
    /// Held by what is not final.
    pub held: Amount,
    /// Spent within the span that ends now.
    pub spent: Amount,
}

impl LimitView {
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
    let (keys, rows) = look(&*app.store, "limits", move |unit| {
        Box::pin(async move { Ok((unit.keys().await?, unit.limits_now(now).await?)) })
    })
    .await?;
    let mut windows = windows_in_force(&app.bundle, only, &keys);
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
            span_ms: row.span_ms,
            held: row.held,
            spent: row.spent,
        });
    }
    found.extend(untouched(windows));
    found.sort_by(|a, b| a.label.cmp(&b.label));
    Ok((now, found))
}

/// Windows that nothing was charged to yet.
fn untouched<K>(windows: BTreeMap<K, WindowInForce>) -> impl Iterator<Item = LimitView> {
    windows.into_values().map(|window| LimitView {
        label: window.label.clone(),
        grant: window.grant.as_str().to_owned(),
        span_ms: window.span_ms,
        window: Some(window),
        held: Amount::ZERO,
        spent: Amount::ZERO,
    })
}
