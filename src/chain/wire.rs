//! Nodes' answers into the port's types. Every number is checked; nothing here can panic.
//!
//! Receipts have a lean type of our own: layer-2 chains add transaction types and fields that a strict
//! envelope would refuse, and we need six members of them.

use crate::ports::chain::{Block, FeeMarket, Log, Receipt};
use alloy::primitives::{B256, Bytes, U64, U256};
use alloy::rpc::types::{FeeHistory, Header, Log as WireLog};
use serde::Deserialize;

pub(super) fn block(header: &Header) -> Block {
    Block {
        number: header.inner.number,
        hash: header.hash,
        parent: header.inner.parent_hash,
        timestamp_s: header.inner.timestamp,
        base_fee: header.inner.base_fee_per_gas.map_or(0, u128::from),
        logs_bloom: Bytes::copy_from_slice(header.inner.logs_bloom.as_slice()),
    }
}

/// `None` for a log that has no place (pending) or was removed by a reorganization.
pub(super) fn log(log: WireLog) -> Option<Log> {
    if log.removed {
        return None;
    }
    Some(Log {
        block_number: log.block_number?,
        block_hash: log.block_hash?,
        transaction_hash: log.transaction_hash?,
        log_index: log.log_index?,
        address: log.inner.address,
        topics: log.inner.data.topics().to_vec(),
        data: log.inner.data.data,
    })
}

/// `eth_getTransactionReceipt`, the members that we use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireReceipt {
    transaction_hash: B256,
    block_number: Option<U64>,
    block_hash: Option<B256>,
    gas_used: U64,
    effective_gas_price: Option<U256>,
    status: Option<U64>,
    logs: Vec<WireLog>,
}

impl WireReceipt {
    /// `None` if it has no block yet. A receipt without a status (before EIP-658) or a price says neither
    /// whether value moved nor what was paid: it is refused, never taken as a revert or as free.
    pub(super) fn into_receipt(self) -> Result<Option<Receipt>, &'static str> {
        let (Some(number), Some(block_hash)) = (self.block_number, self.block_hash) else {
            return Ok(None);
        };
        let price = self.effective_gas_price.ok_or("a receipt without effectiveGasPrice")?;
        let status = self.status.ok_or("a receipt without status")?;
        let logs: Option<Vec<Log>> = self.logs.into_iter().map(log).collect();
        Ok(Some(Receipt {
            transaction_hash: self.transaction_hash,
            block_number: number.to::<u64>(),
            block_hash,
            gas_used: self.gas_used.to::<u64>(),
            effective_gas_price: u128::try_from(price).map_err(|_| "gas price out of range")?,
            success: status == U64::from(1),
            logs: logs.ok_or("a receipt with a removed log")?,
        }))
    }
}

/// Tips of blocks that had no transactions are dropped: their zero is an absence, not a price.
pub(super) fn fee_market(history: &FeeHistory) -> Result<FeeMarket, &'static str> {
    let base_fee = *history.base_fee_per_gas.last().ok_or("a fee history without base fees")?;
    let rewards = history.reward.as_deref().unwrap_or_default();
    let used = history.gas_used_ratio.iter().copied().map(Some).chain(std::iter::repeat(None));
    let tips = rewards
        .iter()
        .zip(used)
        .filter_map(|(rewards, used)| Some((*rewards.first()?, used)))
        .filter(|(tip, used)| *tip > 0 || used.is_some_and(|ratio| ratio > 0.0))
        .map(|(tip, _)| tip)
        .collect();
    Ok(FeeMarket { base_fee, tips })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_tips_of_empty_blocks_are_dropped() {
        let history: FeeHistory = serde_json::from_str(
            r#"{"oldestBlock":"0x1","baseFeePerGas":["0x7","0x8","0x9"],
                "gasUsedRatio":[0,0.5],"reward":[["0x0"],["0x2"]]}"#,
        )
        .unwrap();
        assert_eq!(fee_market(&history), Ok(FeeMarket { base_fee: 9, tips: vec![2] }));
    }

    #[test]
    fn a_receipt_of_an_unknown_type_is_still_read() {
        let receipt: WireReceipt = serde_json::from_str(
            r#"{"type":"0x7e","depositNonce":"0x1","status":"0x1","gasUsed":"0x5208","logs":[],
                "transactionHash":"0x0101010101010101010101010101010101010101010101010101010101010101",
                "blockHash":"0x0202020202020202020202020202020202020202020202020202020202020202",
                "blockNumber":"0x9","effectiveGasPrice":"0x3"}"#,
        )
        .unwrap();
        let receipt = receipt.into_receipt().unwrap().unwrap();
        assert_eq!((receipt.block_number, receipt.gas_used, receipt.success), (9, 21_000, true));
    }

    #[test]
    fn a_receipt_that_does_not_say_whether_it_succeeded_or_what_it_cost_is_refused() {
        for said in [r#""status":"0x1""#, r#""effectiveGasPrice":"0x3""#] {
            let text = format!(
                r#"{{{said},"gasUsed":"0x5208","logs":[],"transactionHash":"{0}",
                    "blockHash":"{0}","blockNumber":"0x9"}}"#,
                B256::ZERO
            );
            let receipt: WireReceipt = serde_json::from_str(&text).unwrap();
            assert!(receipt.into_receipt().is_err(), "{said}");
        }
    }

    #[test]
    fn a_gas_price_beyond_128_bits_is_refused() {
        let text = format!(
            r#"{{"status":"0x1","gasUsed":"0x5208","logs":[],"transactionHash":"{0}",
                "blockHash":"{0}","blockNumber":"0x9","effectiveGasPrice":"{1}"}}"#,
            B256::ZERO,
            U256::MAX
        );
        let receipt: WireReceipt = serde_json::from_str(&text).unwrap();
        assert!(receipt.into_receipt().is_err());
    }
}
