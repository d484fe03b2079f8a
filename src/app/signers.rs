//! Which key signs: callers name a group, a key id, or an address.

use crate::app::{App, AppError, ChainRuntime};
use crate::core::id::{ChainId, GroupName, KeyId};
use crate::core::intent::Intent;
use crate::core::key::{KeyState, NonceMode, OperatorKey};
use crate::ports::signer::SignerError;
use crate::ports::store::{Candidate, candidates_max, look};
use alloy::primitives::aliases::U160;
use alloy::primitives::{Address, keccak256};
use std::sync::atomic::Ordering;

/// What a name stands for.
enum Named {
    Group(GroupName),
    Key(Box<OperatorKey>),
}

async fn named(app: &App, signer: &str) -> Result<Named, AppError> {
    let group = GroupName::new(signer);
    if app.groups.contains(&group) {
        return Ok(Named::Group(group));
    }
    let (id, address) = (signer.parse::<KeyId>().ok(), parse_address(signer));
    let key = look(&*app.store, "named_key", move |unit| {
        Box::pin(async move {
            match (id, address) {
                (Some(id), _) => unit.key(id).await,
                (None, Some(address)) => unit.key_at(address).await,
                (None, None) => Ok(None),
            }
        })
    })
    .await?;
    match key.filter(|key| key.state == KeyState::Active) {
        Some(key) => Ok(Named::Key(Box::new(key))),
        None => Err(nobody()),
    }
}

fn nobody() -> AppError {
    AppError::invalid(
        "signer",
        "no group with keys, key id or address of an active key has this name",
    )
}

/// The key that a name stands for, for a request that has no lane of ours: of a group the oldest active one.
/// Where that one cannot sign now, a message is signed by another that can; what uses up a nonce is of its account.
///
/// # Errors
/// When it stands for none.
pub async fn first(app: &App, signer: &str, intent: &Intent) -> Result<OperatorKey, AppError> {
    let group = match named(app, signer).await? {
        Named::Key(key) => return Ok(*key),
        Named::Group(group) => group,
    };
    let sought = group.clone();
    let oldest = look(&*app.store, "oldest_of", move |unit| {
        let group = sought.clone();
        Box::pin(async move { unit.oldest_of(&group).await })
    });
    let oldest = oldest.await?.ok_or_else(nobody)?;
    let is_bound = intent.nonce().is_some();
    if is_bound || app.signer.ready(&oldest).is_ok() {
        return Ok(oldest);
    }
    // The chain does not matter: a message has no lane.
    let mut from = anywhere(app.turn.fetch_add(1, Ordering::Relaxed));
    for _ in 0..WINDOWS {
        let others = window(app, ChainId::new(0), &group, from).await?;
        let last = others.last().map(|one| one.key.address);
        if let Some(able) = others.into_iter().find(|one| app.signer.ready(&one.key).is_ok()) {
            return Ok(able.key);
        }
        let Some(next) = last.and_then(after) else { break };
        from = next;
    }
    Ok(oldest)
}

/// So many parts of a large group are looked through for a key that can be given work.
const WINDOWS: usize = 4;

/// Some keys of a group, from an address on; all of a small one.
async fn window(
    app: &App,
    chain: ChainId,
    group: &GroupName,
    from: Address,
) -> Result<Vec<Candidate>, AppError> {
    let group = group.clone();
    let found = look(&*app.store, "candidates", move |unit| {
        let group = group.clone();
        Box::pin(async move { unit.candidates(chain, &group, from).await })
    });
    Ok(found.await?)
}

/// Where a turn's look at a large group begins.
fn anywhere(turn: usize) -> Address {
    Address::from_word(keccak256(turn.to_be_bytes()))
}

/// The next address; none after the last one.
fn after(address: Address) -> Option<Address> {
    let next = U160::from_be_bytes(address.into_array()).checked_add(U160::from(1))?;
    Some(Address::from(next.to_be_bytes::<20>()))
}

/// Whether an active key is one of those that a name stands for.
#[must_use]
pub fn is_named(app: &App, key: &OperatorKey, signer: &str) -> bool {
    if key.state != KeyState::Active {
        return false;
    }
    let group = GroupName::new(signer);
    if app.groups.contains(&group) {
        return key.group == Some(group);
    }
    signer.parse() == Ok(key.id) || parse_address(signer) == Some(key.address)
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

/// The managed key that a name stands for; of a group the one with the least work waiting on this chain, of
/// those that this process may work at once: where another process holds the lane, or the lane is full, the
/// caller would wait for an answer. Equals take turns, so that requests which arrive together, before any of
/// them is stored, do not all meet on one lane. A large group is not looked through: as many of its keys as
/// [`candidates_max`](crate::ports::store::candidates_max) says, others at each turn, are compared.
///
/// # Errors
/// When it stands for none, or none of them is managed there.
pub async fn least_busy(
    app: &App,
    chain: &ChainRuntime,
    signer: &str,
    purpose: Purpose,
) -> Result<OperatorKey, AppError> {
    let id = chain.settings.id;
    let group = match named(app, signer).await? {
        Named::Group(group) => group,
        Named::Key(key) => {
            let address = key.address;
            let lane = look(&*app.store, "lane", move |unit| {
                Box::pin(async move { unit.lane(id, address).await })
            })
            .await?;
            let mode = lane.map_or(key.mode, |lane| lane.mode);
            return if mode == NonceMode::Managed { Ok(*key) } else { Err(external()) };
        }
    };
    let turn = match purpose {
        Purpose::Accept => app.turn.fetch_add(1, Ordering::Relaxed),
        // The key that the next request would get.
        Purpose::Tell => app.turn.load(Ordering::Relaxed),
    };
    let mut from = anywhere(turn);
    let mut best: Option<((u8, i64), OperatorKey)> = None;
    for _ in 0..WINDOWS {
        let mut candidates = window(app, chain.settings.id, &group, from).await?;
        if candidates.is_empty() {
            return Err(nobody());
        }
        let is_large = i64::try_from(candidates.len()).unwrap_or(0) >= candidates_max();
        let next = candidates.last().and_then(|one| after(one.key.address));
        let first = turn.checked_rem(candidates.len()).unwrap_or(0);
        candidates.rotate_left(first);
        for one in candidates {
            let Some(load) = load(app, chain, &one) else { continue };
            if best.as_ref().is_none_or(|(least, _)| load < *least) {
                best = Some((load, one.key));
            }
        }
        // Among the others there may be one that can work now.
        let is_good = best.as_ref().is_some_and(|((kind, _), _)| *kind == 0);
        match next {
            Some(next) if is_large && !is_good => from = next,
            _ => break,
        }
    }
    best.map(|(_, key)| key).ok_or_else(external)
}

/// How far a key is from being given work on a chain: 0 where it can be, and then how much waits in its lane;
/// `None` where its nonces are not ours to give.
fn load(app: &App, chain: &ChainRuntime, one: &Candidate) -> Option<(u8, i64)> {
    let Candidate { key, lane } = one;
    // An account without a lane has not been used on this chain.
    if lane.as_ref().map_or(key.mode, |lane| lane.mode) != NonceMode::Managed {
        return None;
    }
    let now = app.clock.now();
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
    Some(if app.signer.ready(key).is_err() { (3, load.1) } else { load })
}

fn external() -> AppError {
    AppError::invalid(
        "signer",
        "the nonces of this signer are given by its callers; use /v1/signatures",
    )
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
