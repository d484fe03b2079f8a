//! Operator keys and pinned chains.

use super::column::{address, corrupt, hash, parsed, to_i64};
use super::statement::{Tx, Value, values};
use crate::core::id::{ChainId, GroupName, HsmName, KeyId};
use crate::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey, PublicKey, WrappedKey};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{NewKey, StoreError};
use alloy::primitives::B256;
use sqlx::FromRow;

statements! {
    BEGIN_KEY = "INSERT INTO operator_keys \
        (id, cka_id, label, group_name, mode, state, iss, sub, created_at, hsm) \
        VALUES ($1, $2, $3, $4, $5, 'creating', $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    PIN_KEY = "UPDATE operator_keys SET state = 'active', public_key = $2, address = $3 \
        WHERE id = $1 AND state = 'creating'";
    UNFINISHED_KEYS = "SELECT * FROM operator_keys WHERE state = 'creating' \
        ORDER BY created_at, id";
    KEYS = "SELECT * FROM operator_keys WHERE state <> 'creating' ORDER BY created_at, id";
    GROUP_KEYS = "SELECT * FROM operator_keys WHERE state = 'active' AND group_name = $1 \
        ORDER BY created_at, id";
    PIN_CHAIN = "INSERT INTO chains (chain_id, genesis) VALUES ($1, $2) \
        ON CONFLICT (chain_id) DO NOTHING";
    PINNED_CHAIN = "SELECT genesis FROM chains WHERE chain_id = $1";
}

#[derive(FromRow)]
pub(super) struct KeyColumns {
    id: String,
    cka_id: Vec<u8>,
    label: String,
    group_name: String,
    mode: String,
    state: String,
    public_key: Option<Vec<u8>>,
    address: Option<Vec<u8>>,
    iss: String,
    sub: String,
    created_at: i64,
    hsm: String,
    wrapped: Option<Vec<u8>>,
    wrapped_under: Option<Vec<u8>>,
}

#[derive(FromRow)]
struct Genesis {
    genesis: Vec<u8>,
}

impl KeyColumns {
    fn mode(&self) -> Result<NonceMode, StoreError> {
        NonceMode::from_name(&self.mode).ok_or_else(|| corrupt("a key's mode"))
    }

    fn group(&self) -> Option<GroupName> {
        (!self.group_name.is_empty()).then(|| GroupName::new(self.group_name.clone()))
    }

    pub(super) fn finished(self) -> Result<OperatorKey, StoreError> {
        let broken = || corrupt("a pinned public key");
        let key = self.public_key.as_deref().and_then(PublicKey::from_sec1).ok_or_else(broken)?;
        let pinned = address(self.address.as_deref().ok_or_else(broken)?)?;
        if key.address() != pinned {
            return Err(corrupt("the address of a key"));
        }
        Ok(OperatorKey {
            id: parsed(&self.id)?,
            custody: custody(self.wrapped.clone(), self.wrapped_under.clone())?,
            hsm: HsmName::new(self.hsm.clone()),
            mode: self.mode()?,
            group: self.group(),
            cka_id: CkaId::new(self.cka_id),
            label: self.label,
            public_key: key,
            address: pinned,
            state: KeyState::from_name(&self.state).ok_or_else(|| corrupt("a key's state"))?,
            created_at: Timestamp::from_millis(self.created_at),
        })
    }

    fn unfinished(self) -> Result<NewKey, StoreError> {
        Ok(NewKey {
            id: parsed(&self.id)?,
            hsm: HsmName::new(self.hsm.clone()),
            mode: self.mode()?,
            group: self.group(),
            cka_id: CkaId::new(self.cka_id),
            label: self.label,
            principal: Principal { iss: self.iss, sub: self.sub },
            at: Timestamp::from_millis(self.created_at),
        })
    }
}

pub(super) fn custody(
    blob: Option<Vec<u8>>,
    under: Option<Vec<u8>>,
) -> Result<Custody, StoreError> {
    match (blob, under) {
        (None, None) => Ok(Custody::Token),
        (Some(blob), Some(under)) => {
            Ok(Custody::Wrapped(WrappedKey { blob, under: CkaId::new(under) }))
        }
        _ => Err(corrupt("a wrapped key")),
    }
}

/// What is known of a key before it is made: `$1` to `$9` of the statements that insert one.
pub(super) fn new_key(key: &NewKey) -> Vec<Value> {
    values![
        key.id.to_string(),
        key.cka_id.as_bytes(),
        key.label.as_str(),
        key.group.as_ref().map_or("", |group| group.as_str()),
        key.mode.name(),
        key.principal.iss.as_str(),
        key.principal.sub.as_str(),
        key.at.millis(),
        key.hsm.as_str(),
    ]
}

pub(super) async fn begin_key(tx: &mut Tx, key: &NewKey) -> Result<bool, StoreError> {
    Ok(tx.execute(BEGIN_KEY, new_key(key)).await? == 1)
}

pub(super) async fn pin_key(tx: &mut Tx, id: KeyId, key: &PublicKey) -> Result<bool, StoreError> {
    let values = values![id.to_string(), key.as_bytes().as_slice(), key.address().as_slice()];
    Ok(tx.execute(PIN_KEY, values).await? == 1)
}

pub(super) async fn unfinished_keys(tx: &mut Tx) -> Result<Vec<NewKey>, StoreError> {
    let rows = tx.all::<KeyColumns>(UNFINISHED_KEYS, values![]).await?;
    rows.into_iter().map(KeyColumns::unfinished).collect()
}

pub(super) async fn keys(tx: &mut Tx) -> Result<Vec<OperatorKey>, StoreError> {
    let rows = tx.all::<KeyColumns>(KEYS, values![]).await?;
    rows.into_iter().map(KeyColumns::finished).collect()
}

pub(super) async fn group_keys(
    tx: &mut Tx,
    group: &GroupName,
) -> Result<Vec<OperatorKey>, StoreError> {
    let rows = tx.all::<KeyColumns>(GROUP_KEYS, values![group.as_str()]).await?;
    rows.into_iter().map(KeyColumns::finished).collect()
}

pub(super) async fn pin_chain(
    tx: &mut Tx,
    chain: ChainId,
    genesis: B256,
) -> Result<B256, StoreError> {
    let id = to_i64(chain.get())?;
    tx.execute(PIN_CHAIN, values![id, genesis.as_slice()]).await?;
    match tx.one::<Genesis>(PINNED_CHAIN, values![id]).await? {
        Some(row) => hash(&row.genesis),
        None => Err(tx.corrupt("a chain was pinned and is not there")),
    }
}
