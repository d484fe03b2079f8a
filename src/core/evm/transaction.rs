//! Transactions: from an intent with nonce and fees to the bytes that are signed, and strictly back.
//!
//! Sources: EIP-155 (legacy), EIP-2930, EIP-1559, EIP-2718 (envelopes).

use crate::core::amount::Amount;
use crate::core::id::ChainId;
use crate::core::intent::{AccessListItem, Fees, TransactionIntent, TxType};
use crate::core::permit::RawSignature;
use alloy::consensus::transaction::RlpEcdsaDecodableTx as _;
use alloy::consensus::{
    SignableTransaction as _, Transaction as _, TxEip1559, TxEip2930, TxEnvelope, TxLegacy,
    TypedTransaction,
};
use alloy::eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy::eips::eip2930::{AccessList, AccessListItem as AlloyItem};
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};

/// Everything that the signed bytes of a transaction say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedTransaction {
    /// The envelope.
    pub tx_type: TxType,
    /// Replay protection (EIP-155).
    pub chain_id: ChainId,
    /// The account's nonce.
    pub nonce: u64,
    /// The recipient; `None` creates a contract.
    pub to: Option<Address>,
    /// Native value, in wei.
    pub value: Amount,
    /// Calldata.
    pub data: Bytes,
    /// Gas limit.
    pub gas: u64,
    /// Fees in wei per gas.
    pub fees: Fees,
    /// EIP-2930 access list; empty for legacy.
    pub access_list: Vec<AccessListItem>,
}

/// The longest calldata that nodes' pools take, with room for the rest of 128 KiB.
pub const DATA_BYTES_MAX: usize = 120 * 1024;

/// What a transaction without calldata needs on most chains.
pub const NO_OP_GAS: u64 = 21_000;

/// A no-op, but for nonce and fees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoOp {
    /// The envelope.
    pub tx_type: TxType,
    /// Replay protection.
    pub chain: ChainId,
    /// Who sends nothing to itself.
    pub account: Address,
    /// Gas limit; some chains want more than [`NO_OP_GAS`].
    pub gas: u64,
}

/// The least gas that a transaction of this shape can be mined with: 21,000 (53,000 for a creation), 4 a
/// zero byte and 16 any other of calldata, 2,400 an address and 1,900 a slot of the access list, and at
/// least EIP-7623's floor of 10 a token. `None` on overflow.
#[must_use]
pub fn intrinsic_gas(
    to: Option<Address>,
    data: &[u8],
    access_list: &[AccessListItem],
) -> Option<u64> {
    let count = |n: usize| u64::try_from(n).ok();
    let zeros = count(data.iter().filter(|byte| **byte == 0).count())?;
    let others = count(data.len())?.checked_sub(zeros)?;
    let tokens = others.checked_mul(4)?.checked_add(zeros)?;
    let slots = count(access_list.iter().map(|item| item.storage_keys.len()).sum())?;
    let base: u64 = if to.is_some() { 21_000 } else { 53_000 };
    let listed =
        count(access_list.len())?.checked_mul(2_400)?.checked_add(slots.checked_mul(1_900)?)?;
    let plain = base.checked_add(tokens.checked_mul(4)?)?.checked_add(listed)?;
    let floor = 21_000_u64.checked_add(tokens.checked_mul(10)?)?;
    Some(plain.max(floor))
}

/// Signed bytes, ready for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTransaction {
    /// The EIP-2718 envelope (or legacy RLP).
    pub raw: Bytes,
    /// keccak-256 of `raw`: what the chain calls this attempt.
    pub hash: B256,
}

/// Why bytes are not a transaction that we would sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// The bytes do not parse, are of another type, or have no chain id.
    #[error("not an unsigned transaction of a known type: {0}")]
    NotATransaction(String),
    /// They parse, but encode to other bytes: a second way to say the same thing.
    #[error("the transaction is not in its canonical encoding")]
    NotCanonical,
    /// An access list in a legacy transaction, or a tip above the fee.
    #[error("{0}")]
    Inconsistent(&'static str),
    /// The signed envelope does not say what the permit said.
    #[error("the signed bytes differ from the approved ones")]
    Differs,
}

impl UnsignedTransaction {
    /// The transaction that an intent becomes with this nonce and these fees.
    #[must_use]
    pub fn from_intent(intent: &TransactionIntent, nonce: u64, fees: Fees) -> Self {
        Self {
            tx_type: intent.tx_type,
            chain_id: intent.chain.id,
            nonce,
            to: intent.to,
            value: intent.value,
            data: intent.data.clone(),
            gas: intent.gas,
            fees,
            access_list: intent.access_list.clone(),
        }
    }

    /// The transaction that uses a nonce up and does nothing: nothing sent by an account to itself.
    #[must_use]
    pub fn no_op(shape: NoOp, nonce: u64, fees: Fees) -> Self {
        Self {
            tx_type: shape.tx_type,
            chain_id: shape.chain,
            nonce,
            to: Some(shape.account),
            value: Amount::ZERO,
            data: Bytes::new(),
            gas: shape.gas,
            fees,
            access_list: Vec::new(),
        }
    }

    fn typed(&self) -> Result<TypedTransaction, TransactionError> {
        let chain_id = self.chain_id.get();
        let to = self.to.map_or(TxKind::Create, TxKind::Call);
        let (nonce, gas_limit, input) = (self.nonce, self.gas, self.data.clone());
        let value: U256 = self.value.units();
        let access_list = AccessList(
            self.access_list
                .iter()
                .map(|item| AlloyItem {
                    address: item.address,
                    storage_keys: item.storage_keys.clone(),
                })
                .collect(),
        );
        if self.fees.max_priority_fee > self.fees.max_fee {
            return Err(TransactionError::Inconsistent("the priority fee is above the fee"));
        }
        let one_price = self.fees.max_fee == self.fees.max_priority_fee;
        if self.tx_type != TxType::Eip1559 && !one_price {
            return Err(TransactionError::Inconsistent("this type has one gas price"));
        }
        let gas_price = self.fees.max_fee;
        Ok(match self.tx_type {
            TxType::Legacy => {
                if !self.access_list.is_empty() {
                    return Err(TransactionError::Inconsistent(
                        "a legacy transaction has no access list",
                    ));
                }
                let chain_id = Some(chain_id);
                TxLegacy { chain_id, nonce, gas_price, gas_limit, to, value, input }.into()
            }
            TxType::Eip2930 => {
                TxEip2930 { chain_id, nonce, gas_price, gas_limit, to, value, access_list, input }
                    .into()
            }
            TxType::Eip1559 => TxEip1559 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas: self.fees.max_fee,
                max_priority_fee_per_gas: self.fees.max_priority_fee,
                to,
                value,
                access_list,
                input,
            }
            .into(),
        })
    }

    fn from_typed(tx: &TypedTransaction) -> Result<Self, TransactionError> {
        let unknown = |what: &str| TransactionError::NotATransaction(what.to_owned());
        let tx_type = match tx {
            TypedTransaction::Legacy(_) => TxType::Legacy,
            TypedTransaction::Eip2930(_) => TxType::Eip2930,
            TypedTransaction::Eip1559(_) => TxType::Eip1559,
            TypedTransaction::Eip4844(_) => return Err(unknown("EIP-4844 is not signed here")),
            TypedTransaction::Eip7702(_) => return Err(unknown("EIP-7702 is not signed here")),
        };
        let max_fee = tx.max_fee_per_gas();
        Ok(Self {
            tx_type,
            chain_id: ChainId::new(tx.chain_id().ok_or_else(|| unknown("no chain id"))?),
            nonce: tx.nonce(),
            to: tx.kind().to().copied(),
            value: Amount::new(tx.value()),
            data: tx.input().clone(),
            gas: tx.gas_limit(),
            fees: Fees {
                max_fee,
                max_priority_fee: tx.max_priority_fee_per_gas().unwrap_or(max_fee),
            },
            access_list: tx
                .access_list()
                .map(|list| {
                    list.0
                        .iter()
                        .map(|item| AccessListItem {
                            address: item.address,
                            storage_keys: item.storage_keys.clone(),
                        })
                        .collect()
                })
                .unwrap_or_default(),
        })
    }

    /// The exact bytes whose keccak-256 is signed.
    ///
    /// # Errors
    /// When the fields contradict the type.
    pub fn signing_bytes(&self) -> Result<Vec<u8>, TransactionError> {
        Ok(self.typed()?.encoded_for_signing())
    }

    /// Reads what [`Self::signing_bytes`] wrote, and nothing else: the bytes must encode again to
    /// themselves.
    ///
    /// # Errors
    /// When they do not.
    pub fn from_signing_bytes(bytes: &[u8]) -> Result<Self, TransactionError> {
        let broken =
            |error: &dyn std::fmt::Display| TransactionError::NotATransaction(error.to_string());
        let typed = match bytes.split_first() {
            Some((1, rest)) => {
                let mut rest = rest;
                TxEip2930::rlp_decode(&mut rest).map_err(|e| broken(&e))?.into()
            }
            Some((2, rest)) => {
                let mut rest = rest;
                TxEip1559::rlp_decode(&mut rest).map_err(|e| broken(&e))?.into()
            }
            Some((first, _)) if *first >= 0xc0 => {
                let mut rest = bytes;
                let tx = <TxLegacy as alloy::rlp::Decodable>::decode(&mut rest);
                TypedTransaction::Legacy(tx.map_err(|e| broken(&e))?)
            }
            _ => return Err(broken(&"unknown envelope")),
        };
        let tx = Self::from_typed(&typed)?;
        if tx.signing_bytes()? != bytes {
            return Err(TransactionError::NotCanonical);
        }
        Ok(tx)
    }

    /// Reads signed bytes back: the transaction and its signature. Nothing but the one encoding of a type
    /// that we sign is taken. Whose signature it is, is not looked at.
    ///
    /// # Errors
    /// When they are anything else.
    pub fn from_envelope(raw: &[u8]) -> Result<(Self, RawSignature), TransactionError> {
        let broken =
            |error: &dyn std::fmt::Display| TransactionError::NotATransaction(error.to_string());
        let mut rest = raw;
        let envelope = TxEnvelope::decode_2718(&mut rest).map_err(|e| broken(&e))?;
        if !rest.is_empty() {
            return Err(TransactionError::NotCanonical);
        }
        let signed = *envelope.signature();
        let transaction = Self::from_typed(&TypedTransaction::from(envelope))?;
        let signature = RawSignature {
            r: signed.r().to_be_bytes(),
            s: signed.s().to_be_bytes(),
            y_parity: signed.v(),
        };
        if transaction.assemble(&signature)?.raw.as_ref() != raw {
            return Err(TransactionError::NotCanonical);
        }
        Ok((transaction, signature))
    }

    /// Whether it asks for the same as another, whatever nonce and fees they have.
    #[must_use]
    pub fn is_same_but_for_fees(&self, other: &Self) -> bool {
        let bare = |it: &Self| Self {
            nonce: 0,
            fees: Fees { max_fee: 0, max_priority_fee: 0 },
            ..it.clone()
        };
        bare(self) == bare(other)
    }

    /// Whether it does nothing but use a nonce of this account up.
    #[must_use]
    pub fn is_no_op_of(&self, account: Address) -> bool {
        self.to == Some(account)
            && self.value == Amount::ZERO
            && self.data.is_empty()
            && self.access_list.is_empty()
    }

    /// Puts the signature to the transaction, then reads the result back and compares: what leaves
    /// here says exactly what `self` says.
    ///
    /// # Errors
    /// When the fields contradict the type, or what was written reads back differently.
    pub fn assemble(
        &self,
        signature: &RawSignature,
    ) -> Result<SignedTransaction, TransactionError> {
        let alloy_signature = Signature::new(
            U256::from_be_bytes(signature.r),
            U256::from_be_bytes(signature.s),
            signature.y_parity,
        );
        let envelope: TxEnvelope = self.typed()?.into_envelope(alloy_signature);
        let raw = envelope.encoded_2718();
        let mut rest = raw.as_slice();
        let read = TxEnvelope::decode_2718(&mut rest).map_err(|_| TransactionError::Differs)?;
        let same_signature = *read.signature() == alloy_signature;
        let says = Self::from_typed(&TypedTransaction::from(read))?;
        if !rest.is_empty() || !same_signature || says != *self {
            return Err(TransactionError::Differs);
        }
        let hash = keccak256(&raw);
        Ok(SignedTransaction { raw: raw.into(), hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_transaction() -> impl Strategy<Value = UnsignedTransaction> {
        let kind = prop_oneof![Just(TxType::Legacy), Just(TxType::Eip2930), Just(TxType::Eip1559)];
        let list = proptest::collection::vec(
            (any::<[u8; 20]>(), proptest::collection::vec(any::<[u8; 32]>(), 0..3)),
            0..3,
        );
        (
            kind,
            1..u64::MAX / 4,
            any::<(u64, u64, u128, u128, [u8; 32])>(),
            any::<Option<[u8; 20]>>(),
            proptest::collection::vec(any::<u8>(), 0..80),
            list,
        )
            .prop_map(|(tx_type, chain, (nonce, gas, fee, tip, value), to, data, list)| {
                let typed = tx_type == TxType::Eip1559;
                let tip = if typed { tip.min(fee) } else { fee };
                UnsignedTransaction {
                    tx_type,
                    chain_id: ChainId::new(chain),
                    nonce,
                    to: to.map(Address::from),
                    value: Amount::new(U256::from_be_bytes(value)),
                    data: data.into(),
                    gas,
                    fees: Fees { max_fee: fee, max_priority_fee: tip },
                    access_list: if tx_type == TxType::Legacy {
                        vec![]
                    } else {
                        list.into_iter()
                            .map(|(address, keys)| AccessListItem {
                                address: Address::from(address),
                                storage_keys: keys.into_iter().map(B256::from).collect(),
                            })
                            .collect()
                    },
                }
            })
    }

    proptest! {
        #[test]
        fn signing_bytes_read_back_to_the_same_transaction(tx in any_transaction()) {
            let bytes = tx.signing_bytes().unwrap();
            prop_assert_eq!(UnsignedTransaction::from_signing_bytes(&bytes).unwrap(), tx);
        }

        #[test]
        fn a_changed_byte_never_reads_as_the_same_transaction(
            tx in any_transaction(), at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let mut bytes = tx.signing_bytes().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(other) = UnsignedTransaction::from_signing_bytes(&bytes) {
                prop_assert_ne!(other, tx);
            }
        }

        #[test]
        fn trailing_bytes_are_refused(tx in any_transaction(), extra in any::<u8>()) {
            let mut bytes = tx.signing_bytes().unwrap();
            bytes.push(extra);
            prop_assert!(UnsignedTransaction::from_signing_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn signed_bytes_read_back() {
        // EIP-155's own example.
        let raw = "f86c098504a817c800825208943535353535353535353535353535353535353535880de0b6b3a76400008025\
            a028ef61340bd939bc2195fe537567866003e1a15d3c71ff63e1590620aa636276\
            a067cbe9d8997f761aecb703304b3800ccf555c9f3dc64214b297fb1966a3b6d83";
        let mut raw = hex::decode(raw).unwrap();
        let (tx, signature) = UnsignedTransaction::from_envelope(&raw).unwrap();
        assert_eq!((tx.nonce, tx.chain_id, tx.gas), (9, ChainId::new(1), 21_000));
        assert_eq!((signature.r[0], signature.s[0], signature.y_parity), (0x28, 0x67, false));
        let account = Address::repeat_byte(0x11);
        let dearer = UnsignedTransaction {
            nonce: 10,
            fees: Fees { max_fee: 1, max_priority_fee: 1 },
            ..tx.clone()
        };
        assert!(dearer.is_same_but_for_fees(&tx) && !tx.is_no_op_of(account));
        assert!(!UnsignedTransaction { gas: 21_001, ..tx.clone() }.is_same_but_for_fees(&tx));
        let nothing = UnsignedTransaction { to: Some(account), value: Amount::ZERO, ..tx };
        assert!(nothing.is_no_op_of(account));
        raw.push(0);
        assert!(UnsignedTransaction::from_envelope(&raw).is_err());
    }

    #[test]
    fn intrinsic_gas_counts_bytes_lists_and_the_floor() {
        let to = Some(Address::ZERO);
        assert_eq!(intrinsic_gas(to, &[], &[]), Some(21_000));
        assert_eq!(intrinsic_gas(None, &[], &[]), Some(53_000));
        // Five tokens: the floor of 50 is above the 20.
        assert_eq!(intrinsic_gas(to, &[0, 1], &[]), Some(21_050));
        let item = AccessListItem { address: Address::ZERO, storage_keys: vec![B256::ZERO; 2] };
        assert_eq!(intrinsic_gas(to, &[], &[item]), Some(21_000 + 2_400 + 3_800));
    }

    #[test]
    fn a_tip_above_the_fee_and_two_prices_in_a_legacy_transaction_are_refused() {
        let mut tx = UnsignedTransaction {
            tx_type: TxType::Eip1559,
            chain_id: ChainId::new(1),
            nonce: 0,
            to: None,
            value: Amount::ZERO,
            data: Bytes::new(),
            gas: 21_000,
            fees: Fees { max_fee: 1, max_priority_fee: 2 },
            access_list: vec![],
        };
        assert!(matches!(tx.signing_bytes(), Err(TransactionError::Inconsistent(_))));
        tx.tx_type = TxType::Legacy;
        tx.fees = Fees { max_fee: 2, max_priority_fee: 1 };
        assert!(matches!(tx.signing_bytes(), Err(TransactionError::Inconsistent(_))));
    }
}
