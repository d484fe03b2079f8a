//! Which key signs: callers name a group, a key id, or an address.

use crate::app::{App, AppError, ChainRuntime};
use crate::core::id::{GroupName, KeyId};
use crate::core::key::{KeyState, NonceMode, OperatorKey};
use crate::ports::signer::SignerError;
use crate::ports::store::look;
use alloy::primitives::Address;
use std::sync::atomic::Ordering;

/// The active keys that a name stands for.
///
/// # Errors
/// When it stands for none.
pub async fn named(app: &App, signer: &str) -> Result<Vec<OperatorKey>, AppError> {
    let group = GroupName::new(signer);
    let keys = if app.groups.contains(&group) {
        look(&*app.store, "group_keys", move |unit| {
            let group = group.clone();
            Box::pin(async move { unit.group_keys(&group).await })
        })
        .await?
    } else {
        let all =
            look(&*app.store, "keys", |unit| Box::pin(async move { unit.keys().await })).await?;
        let id = signer.parse::<KeyId>().ok();
        let address = parse_address(signer);
        all.into_iter()
            .filter(|key| key.state == KeyState::Active)
            .filter(|key| Some(key.id) == id || Some(key.address) == address)
            .collect()
    };
    if keys.is_empty() {
        return Err(AppError::invalid(
            "signer",
            "no group with keys, key id or address of an active key has this name",
        ));
    }
    Ok(keys)
}

/// Lower case or valid EIP-55, with `0x`.
#[must_use]
pub fn parse_address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x")?;
    if digits.len() != 40 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    if digits.bytes().all(|b| !b.is_ascii_uppercase()) {
        return text.parse().ok();
    }
    Address::parse_checksummed(text, None).ok()
}

/// Nothing new is taken for a key whose token is known to be down. One that this server cannot use, and
/// another may, does not stand in the way.
///
/// # Errors
/// When its token is down, and none stands by for it.
pub(crate) fn must_be_up(app: &App, key: &OperatorKey) -> Result<(), AppError> {
    match app.signer.ready(key) {
        Err(error) if error.is_unavailable() => Err(error.into()),
        _ => Ok(()),
    }
}

/// As [`must_be_up`], of what is signed at once: nor is anything taken while the token has no room in its queue.
/// (Transactions wait in their lanes, which bound what is in flight.)
///
/// # Errors
/// When its token is down and none stands by for it, or is overloaded.
pub(crate) fn must_have_room(app: &App, key: &OperatorKey) -> Result<(), AppError> {
    match app.signer.ready(key) {
        Err(error @ SignerError::Overloaded) => Err(error.into()),
        _ => must_be_up(app, key),
    }
}

/// Why a request is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be accepted.
    Accept,
    /// To be told only: nothing is kept, not even whose turn it is.
    Tell,
}

/// The managed key of a set with the least work waiting on this chain, of those that this process may work
/// at once: where another process holds the lane, or the lane is full, the caller would wait for an answer.
/// Equals take turns, so that requests which arrive together, before any of them is stored, do not all meet
/// on one lane.
///
/// # Errors
/// When none of them is managed there.
pub async fn least_busy(
    app: &App,
    chain: &ChainRuntime,
    keys: Vec<OperatorKey>,
    purpose: Purpose,
) -> Result<OperatorKey, AppError> {
    let id = chain.settings.id;
    let mut keys = keys;
    let turn = match purpose {
        Purpose::Accept => app.turn.fetch_add(1, Ordering::Relaxed),
        // The key that the next request would get.
        Purpose::Tell => app.turn.load(Ordering::Relaxed),
    };
    let first = turn.checked_rem(keys.len()).unwrap_or(0);
    keys.rotate_left(first);
    let loads =
        look(&*app.store, "least_busy", move |unit| Box::pin(async move { unit.loads(id).await }))
            .await?;
    let now = app.clock.now();
    let mut best: Option<((u8, i64), OperatorKey)> = None;
    for key in keys {
        // An account without a lane has not been used on this chain.
        let lane = loads.iter().find(|lane| lane.address == key.address);
        if lane.map_or(key.mode, |lane| lane.mode) != NonceMode::Managed {
            continue;
        }
        let load = match lane {
            None => (0, 0),
            Some(lane) => {
                let load = lane.flying.saturating_add(lane.queued);
                let is_full = load >= chain.known_in_flight_max(key.address, now);
                let waits = is_full || app.leases.is_foreign(lane.lease, now);
                // A halted lane takes new work only if there is no other.
                (if lane.halted { 2 } else { u8::from(waits) }, load)
            }
        };
        // And a key that cannot sign now only if none can.
        let load = if app.signer.ready(&key).is_err() { (3, load.1) } else { load };
        if best.as_ref().is_none_or(|(least, _)| load < *least) {
            best = Some((load, key));
        }
    }
    best.map(|(_, key)| key).ok_or_else(|| {
        AppError::invalid(
            "signer",
            "the nonces of this signer are given by its callers; use /v1/signatures",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lower_case_or_valid_eip_55() {
        let good = "0x52908400098527886e0f7030069857d2e4169ee7";
        assert!(parse_address(good).is_some());
        assert!(parse_address("0x52908400098527886E0F7030069857D2E4169EE7").is_some());
        for bad in [
            "52908400098527886e0f7030069857d2e4169ee7",
            "0X52908400098527886e0f7030069857d2e4169ee7",
            "0x52908400098527886e0F7030069857D2E4169EE7",
            " 0x52908400098527886e0f7030069857d2e4169ee7",
            "0x52908400098527886e0f7030069857d2e4169ee",
            "0x５2908400098527886e0f7030069857d2e4169ee",
        ] {
            assert!(parse_address(bad).is_none(), "{bad}");
        }
    }
}
