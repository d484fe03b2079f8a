//! The columns of a transaction, read into our types.

use super::column::{address, amount, corrupt, hash, parsed, price, to_u64};
use crate::core::id::{ChainId, ChainName};
use crate::core::intent::{
    AccessListItem, ChainRef, EventSource, FeeAsk, Fees, TransactionIntent, TxType,
};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::store::{
    DecisionSummary, Failure, MinedRow, NewTransaction, StoreError, TransactionRow, Wait,
};
use alloy::primitives::{Address, B256};
use sqlx::FromRow;

/// Reads and writes access lists: `address slot slot;address …`, all in hex.
pub(super) struct AccessListText;

/// The one of its kind.
pub(super) const TX_ACCESS: AccessListText = AccessListText;

impl AccessListText {
    pub(super) fn write(&self, list: &[AccessListItem]) -> String {
        let item = |item: &AccessListItem| {
            let slots = item.storage_keys.iter().map(|slot| format!(" {slot:#x}"));
            format!("{:#x}{}", item.address, slots.collect::<String>())
        };
        list.iter().map(item).collect::<Vec<_>>().join(";")
    }

    pub(super) fn read(&self, text: &str) -> Result<Vec<AccessListItem>, StoreError> {
        let broken = || corrupt("an access list");
        text.split(';')
            .filter(|item| !item.is_empty())
            .map(|item| {
                let mut words = item.split(' ');
                let address = words.next().and_then(|word| word.parse::<Address>().ok());
                let storage_keys = words.map(|word| word.parse::<B256>().map_err(|_| broken()));
                Ok(AccessListItem {
                    address: address.ok_or_else(broken)?,
                    storage_keys: storage_keys.collect::<Result<_, _>>()?,
                })
            })
            .collect()
    }
}

#[derive(FromRow)]
pub(super) struct TransactionColumns {
    seq: i64,
    id: String,
    iss: String,
    sub: String,
    chain: String,
    chain_id: i64,
    signer: String,
    key_id: String,
    address: Vec<u8>,
    status: String,
    nonce: Option<i64>,
    tx_type: String,
    recipient: Option<Vec<u8>>,
    value: Vec<u8>,
    data: Vec<u8>,
    gas: i64,
    cap_fee: Vec<u8>,
    cap_tip: Vec<u8>,
    access_list: String,
    not_after: Option<i64>,
    source_block: Option<Vec<u8>>,
    source_tx: Option<Vec<u8>>,
    source_log: Option<i64>,
    outcome: String,
    bundle: Vec<u8>,
    grants: String,
    decision: String,
    metadata: String,
    mined_hash: Option<Vec<u8>>,
    mined_block: Option<Vec<u8>>,
    mined_number: Option<i64>,
    mined_gas_used: Option<i64>,
    mined_price: Option<Vec<u8>>,
    mined_success: Option<i64>,
    failure_code: Option<String>,
    failure_detail: Option<String>,
    ending: Option<String>,
    waits_code: Option<String>,
    waits_detail: Option<String>,
    waits_since: Option<i64>,
    source_gone_at: Option<i64>,
    created_at: i64,
    updated_at: i64,
    version: i64,
}

impl TransactionColumns {
    pub(super) fn read(self) -> Result<TransactionRow, StoreError> {
        let mined = self.mined()?;
        let fee_cap =
            Fees { max_fee: price(&self.cap_fee)?, max_priority_fee: price(&self.cap_tip)? };
        let intent = self.intent(fee_cap)?;
        let failure = self
            .failure_code
            .map(|code| Failure { code, detail: self.failure_detail.unwrap_or_default() });
        let waits = match (self.waits_code, self.waits_since) {
            (Some(code), Some(since)) => Some(Wait {
                code,
                detail: self.waits_detail.unwrap_or_default(),
                since: Timestamp::from_millis(since),
            }),
            _ => None,
        };
        Ok(TransactionRow {
            seq: self.seq,
            status: Status::from_name(&self.status).ok_or_else(|| corrupt("a status"))?,
            nonce: self.nonce.map(to_u64).transpose()?,
            mined,
            ending: ending(self.ending.as_deref())?,
            failure,
            waits,
            source_gone_at: self.source_gone_at.map(Timestamp::from_millis),
            updated_at: Timestamp::from_millis(self.updated_at),
            version: self.version,
            new: NewTransaction {
                id: parsed(&self.id)?,
                principal: Principal { iss: self.iss, sub: self.sub },
                intent,
                fee_cap,
                signer: self.signer,
                key: parsed(&self.key_id)?,
                address: address(&self.address)?,
                decision: summary(self.outcome, &self.bundle, &self.grants)?,
                decision_json: self.decision,
                metadata_json: self.metadata,
                at: Timestamp::from_millis(self.created_at),
            },
        })
    }

    fn intent(&self, cap: Fees) -> Result<TransactionIntent, StoreError> {
        let source = match (&self.source_block, &self.source_tx, self.source_log) {
            (Some(block), Some(transaction), Some(log)) => Some(EventSource {
                block_hash: hash(block)?,
                transaction_hash: hash(transaction)?,
                log_index: to_u64(log)?,
            }),
            (None, None, None) => None,
            _ => return Err(corrupt("a source")),
        };
        Ok(TransactionIntent {
            chain: ChainRef {
                name: ChainName::new(self.chain.clone()),
                id: ChainId::new(to_u64(self.chain_id)?),
            },
            tx_type: TxType::from_name(&self.tx_type).ok_or_else(|| corrupt("a type"))?,
            to: self.recipient.as_deref().map(address).transpose()?,
            value: amount(&self.value)?,
            data: self.data.clone().into(),
            gas: to_u64(self.gas)?,
            fees: FeeAsk::UpTo(cap),
            access_list: TX_ACCESS.read(&self.access_list)?,
            nonce: None,
            not_after: self.not_after.map(Timestamp::from_millis),
            source,
        })
    }

    fn mined(&self) -> Result<Option<MinedRow>, StoreError> {
        let Some(transaction_hash) = &self.mined_hash else {
            return Ok(None);
        };
        let missing = || corrupt("a mined row");
        let number = |value: Option<i64>| to_u64(value.ok_or_else(missing)?);
        Ok(Some(MinedRow {
            transaction_hash: hash(transaction_hash)?,
            block_hash: hash(self.mined_block.as_deref().ok_or_else(missing)?)?,
            block_number: number(self.mined_number)?,
            gas_used: number(self.mined_gas_used)?,
            effective_gas_price: price(self.mined_price.as_deref().ok_or_else(missing)?)?,
            success: number(self.mined_success)? == 1,
        }))
    }
}

fn ending(name: Option<&str>) -> Result<Option<Ending>, StoreError> {
    name.map(|name| Ending::from_name(name).ok_or_else(|| corrupt("an ending"))).transpose()
}

/// A decision's summary from its columns.
pub(super) fn summary(
    outcome: String,
    bundle: &[u8],
    grants: &str,
) -> Result<DecisionSummary, StoreError> {
    let grants = grants.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
    Ok(DecisionSummary { outcome, bundle: hash(bundle)?, grants })
}
