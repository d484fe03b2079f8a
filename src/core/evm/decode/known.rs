//! The functions that are understood without an ABI, where the bundle says what stands at the address: an
//! asset's standard, or a wrapper. By themselves they mean nothing: a selector is four bytes, and anybody may
//! have a function with it.

use super::abi::decode_exact;
use alloy::dyn_abi::{DynSolType, DynSolValue};
use alloy::primitives::{Address, U256};

/// A function that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// ERC-20, like the four after it.
    Transfer,
    /// ERC-20 and ERC-721.
    TransferFrom,
    /// ERC-20 and ERC-721.
    Approve,
    IncreaseAllowance,
    DecreaseAllowance,
    /// ERC-777, like the two after it.
    Send,
    AuthorizeOperator,
    RevokeOperator,
    /// ERC-721, like the next.
    SafeTransfer,
    SafeTransferData,
    /// ERC-1155, like the next.
    SafeTransferAmount,
    SafeBatchTransfer,
    /// ERC-721 and ERC-1155.
    SetApprovalForAll,
    /// Multicall3, like the five after it.
    Aggregate,
    BlockAndAggregate,
    TryAggregate,
    TryBlockAndAggregate,
    Aggregate3,
    Aggregate3Value,
    /// Calls of a contract to itself, as whoever called it; like the two after it.
    Multicall,
    MulticallDeadline,
    MulticallBlockHash,
    /// Safe.
    ExecTransaction,
    /// MultiSend of Safe.
    MultiSend,
    /// ERC-4337 accounts, like the three after it.
    Execute,
    ExecuteBatch,
    ExecuteBatchValues,
    ExecuteBatchCalls,
    /// Permit2, like the three after it.
    Permit2Approve,
    Permit2Transfer,
    Permit2TransferBatch,
    Permit2Lockdown,
}

/// Each with its selector and its canonical signature.
const FUNCTIONS: [(Known, u32, &str); 32] = [
    (Known::Transfer, 0xa905_9cbb, "transfer(address,uint256)"),
    (Known::TransferFrom, 0x23b8_72dd, "transferFrom(address,address,uint256)"),
    (Known::Approve, 0x095e_a7b3, "approve(address,uint256)"),
    (Known::IncreaseAllowance, 0x3950_9351, "increaseAllowance(address,uint256)"),
    (Known::DecreaseAllowance, 0xa457_c2d7, "decreaseAllowance(address,uint256)"),
    (Known::Send, 0x9bd9_bbc6, "send(address,uint256,bytes)"),
    (Known::AuthorizeOperator, 0x959b_8c3f, "authorizeOperator(address)"),
    (Known::RevokeOperator, 0xfad8_b32a, "revokeOperator(address)"),
    (Known::SafeTransfer, 0x4284_2e0e, "safeTransferFrom(address,address,uint256)"),
    (Known::SafeTransferData, 0xb88d_4fde, "safeTransferFrom(address,address,uint256,bytes)"),
    (
        Known::SafeTransferAmount,
        0xf242_432a,
        "safeTransferFrom(address,address,uint256,uint256,bytes)",
    ),
    (
        Known::SafeBatchTransfer,
        0x2eb2_c2d6,
        "safeBatchTransferFrom(address,address,uint256[],uint256[],bytes)",
    ),
    (Known::SetApprovalForAll, 0xa22c_b465, "setApprovalForAll(address,bool)"),
    (Known::Aggregate, 0x252d_ba42, "aggregate((address,bytes)[])"),
    (Known::BlockAndAggregate, 0xc307_7fa9, "blockAndAggregate((address,bytes)[])"),
    (Known::TryAggregate, 0xbce3_8bd7, "tryAggregate(bool,(address,bytes)[])"),
    (Known::TryBlockAndAggregate, 0x3995_42e9, "tryBlockAndAggregate(bool,(address,bytes)[])"),
    (Known::Aggregate3, 0x82ad_56cb, "aggregate3((address,bool,bytes)[])"),
    (Known::Aggregate3Value, 0x174d_ea71, "aggregate3Value((address,bool,uint256,bytes)[])"),
    (Known::Multicall, 0xac96_50d8, "multicall(bytes[])"),
    (Known::MulticallDeadline, 0x5ae4_01dc, "multicall(uint256,bytes[])"),
    (Known::MulticallBlockHash, 0x1f04_64d1, "multicall(bytes32,bytes[])"),
    (
        Known::ExecTransaction,
        0x6a76_1202,
        "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,address,bytes)",
    ),
    (Known::MultiSend, 0x8d80_ff0a, "multiSend(bytes)"),
    (Known::Execute, 0xb61d_27f6, "execute(address,uint256,bytes)"),
    (Known::ExecuteBatch, 0x18df_b3c7, "executeBatch(address[],bytes[])"),
    (Known::ExecuteBatchValues, 0x47e1_da2a, "executeBatch(address[],uint256[],bytes[])"),
    (Known::ExecuteBatchCalls, 0x34fc_d5be, "executeBatch((address,uint256,bytes)[])"),
    (Known::Permit2Approve, 0x8751_7c45, "approve(address,address,uint160,uint48)"),
    (Known::Permit2Transfer, 0x36c7_8516, "transferFrom(address,address,uint160,address)"),
    (Known::Permit2TransferBatch, 0x0d58_b1db, "transferFrom((address,address,uint160,address)[])"),
    (Known::Permit2Lockdown, 0xcc53_287f, "lockdown((address,address)[])"),
];

/// Why arguments are not read.
pub(super) const NOT_CANONICAL: &str = "data is not canonical ABI";

/// The canonical signatures of all of them: no ABI of a bundle may give such a function another name.
pub fn signatures() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|(_, _, signature)| *signature)
}

impl Known {
    /// The function with this selector.
    pub(super) fn find(selector: [u8; 4]) -> Option<Self> {
        let selector = u32::from_be_bytes(selector);
        FUNCTIONS.iter().find(|(_, known, _)| *known == selector).map(|(known, ..)| *known)
    }

    fn signature(self) -> &'static str {
        FUNCTIONS.iter().find(|(known, ..)| *known == self).map_or("", |(.., signature)| *signature)
    }

    /// The arguments in order, if `data` is their one canonical encoding.
    pub(super) fn arguments(self, data: &[u8]) -> Result<Vec<DynSolValue>, String> {
        let signature = self.signature();
        let types = signature.find('(').and_then(|at| signature.get(at..));
        match types.and_then(|types| DynSolType::parse(types).ok()) {
            Some(DynSolType::Tuple(types)) => {
                decode_exact(&types, data).ok_or_else(|| NOT_CANONICAL.to_owned())
            }
            _ => Err(NOT_CANONICAL.to_owned()),
        }
    }
}

/// Reads values one after the other, each as what it must be. `None` where it is something else.
pub(super) struct Fields<'a>(std::slice::Iter<'a, DynSolValue>);

impl<'a> Fields<'a> {
    pub(super) fn new(values: &'a [DynSolValue]) -> Self {
        Self(values.iter())
    }

    /// Of a tuple or a struct.
    pub(super) fn of(value: &'a DynSolValue) -> Option<Self> {
        match value {
            DynSolValue::Tuple(inner) | DynSolValue::CustomStruct { tuple: inner, .. } => {
                Some(Self::new(inner))
            }
            _ => None,
        }
    }

    pub(super) fn address(&mut self) -> Option<Address> {
        self.0.next()?.as_address()
    }

    pub(super) fn uint(&mut self) -> Option<U256> {
        self.0.next()?.as_uint().map(|(number, _)| number)
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        self.0.next()?.as_bool()
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        self.0.next()?.as_bytes()
    }

    /// `bytes32` as a number.
    pub(super) fn word(&mut self) -> Option<U256> {
        match self.0.next()? {
            DynSolValue::FixedBytes(word, 32) => Some(U256::from_be_bytes(word.0)),
            _ => None,
        }
    }

    pub(super) fn array(&mut self) -> Option<&'a [DynSolValue]> {
        self.0.next()?.as_array()
    }

    /// Of a struct inside a struct.
    pub(super) fn inner(&mut self) -> Option<Self> {
        Self::of(self.0.next()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;

    #[test]
    fn every_selector_is_the_hash_of_its_signature_and_every_signature_is_read() {
        for (known, selector, signature) in FUNCTIONS {
            assert_eq!(keccak256(signature)[..4], selector.to_be_bytes(), "{signature}");
            assert_eq!(Known::find(selector.to_be_bytes()), Some(known), "{signature}");
            assert_eq!(known.signature(), signature);
            let (name, _) = signature.split_once('(').unwrap();
            let types = DynSolType::parse(signature.strip_prefix(name).unwrap()).unwrap();
            let DynSolType::Tuple(types) = types else { panic!("{types}") };
            let names: Vec<_> = types.iter().map(DynSolType::sol_type_name).collect();
            assert!(signature.ends_with(&format!("({})", names.join(","))), "{signature}");
        }
    }
}
