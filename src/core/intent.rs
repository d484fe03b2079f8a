//! What callers ask for, in our types, before any encoding. Every door ends here.

use crate::core::amount::Amount;
use crate::core::id::{ChainId, ChainName};
use crate::core::time::Timestamp;
use alloy::dyn_abi::TypedData;
use alloy::primitives::{Address, B256, Bytes};

/// A chain by both its names: what the configuration calls it and its EIP-155 id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRef {
    /// The configured name; grants speak of this.
    pub name: ChainName,
    /// The pinned id; signatures are bound to this.
    pub id: ChainId,
}

/// Which envelope a transaction is signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxType {
    /// EIP-155 legacy.
    Legacy,
    /// EIP-2930, with an access list.
    Eip2930,
    /// EIP-1559, with two fee fields.
    Eip1559,
}

impl TxType {
    /// The name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Eip2930 => "eip2930",
            Self::Eip1559 => "eip1559",
        }
    }

    /// Reads [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Legacy, Self::Eip2930, Self::Eip1559].into_iter().find(|kind| kind.name() == name)
    }
}

/// Fee fields in wei per gas. Legacy and EIP-2930 have one price: both fields hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// `maxFeePerGas`, or the gas price.
    pub max_fee: u128,
    /// `maxPriorityFeePerGas`, or the gas price.
    pub max_priority_fee: u128,
}

impl Fees {
    /// Each field, but no more than the other's.
    #[must_use]
    pub fn at_most(self, cap: Self) -> Self {
        Self {
            max_fee: self.max_fee.min(cap.max_fee),
            max_priority_fee: self.max_priority_fee.min(cap.max_priority_fee),
        }
    }
}

/// One entry of an EIP-2930 access list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessListItem {
    /// The account.
    pub address: Address,
    /// Its storage slots.
    pub storage_keys: Vec<B256>,
}

/// The chain event that a request says it answers. The server reads it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSource {
    /// The block that holds the log.
    pub block_hash: B256,
    /// The transaction that emitted it.
    pub transaction_hash: B256,
    /// The log's index in the block.
    pub log_index: u64,
}

/// How the fees of a transaction are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeeAsk {
    /// A managed transaction: we choose, never above these (chain's cap and caller's cap, the lower).
    UpTo(Fees),
    /// An external transaction: these very numbers will be signed.
    Exact(Fees),
}

impl FeeAsk {
    /// The highest fees that could be signed as far as the request goes.
    #[must_use]
    pub const fn highest(self) -> Fees {
        match self {
            Self::UpTo(fees) | Self::Exact(fees) => fees,
        }
    }
}

/// A transaction somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionIntent {
    /// Where.
    pub chain: ChainRef,
    /// The envelope.
    pub tx_type: TxType,
    /// The recipient; `None` would create a contract.
    pub to: Option<Address>,
    /// Native value, in wei.
    pub value: Amount,
    /// Calldata.
    pub data: Bytes,
    /// Gas limit.
    pub gas: u64,
    /// Bounds of the fees.
    pub fees: FeeAsk,
    /// EIP-2930 access list.
    pub access_list: Vec<AccessListItem>,
    /// The caller's nonce: external accounts only.
    pub nonce: Option<u64>,
    /// Never signed after this.
    pub not_after: Option<Timestamp>,
    /// The event it answers.
    pub source: Option<EventSource>,
}

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Intent {
    /// A transaction.
    Transaction(Box<TransactionIntent>),
    /// An EIP-191 message (version byte 0x45): text only.
    Message {
        /// The text, without the prefix.
        text: String,
    },
    /// EIP-712 typed data.
    TypedData {
        /// The chain it was asked for; must be the domain's.
        chain: ChainRef,
        /// Types, domain, message.
        data: Box<TypedData>,
    },
    /// An EIP-7702 authorization: the signing account's code becomes that of another. It uses up a nonce of
    /// the account, so only external accounts sign them.
    Authorization {
        /// Where; the signature is bound to its id, which is never 0.
        chain: ChainRef,
        /// Whose code; the zero address takes a delegation back.
        address: Address,
        /// The account's nonce, which its caller gives.
        nonce: u64,
    },
}

impl Intent {
    /// The chain, where the intent has one.
    #[must_use]
    pub const fn chain(&self) -> Option<&ChainRef> {
        match self {
            Self::Transaction(tx) => Some(&tx.chain),
            Self::TypedData { chain, .. } | Self::Authorization { chain, .. } => Some(chain),
            Self::Message { .. } => None,
        }
    }

    /// The nonce that its caller has given, where it uses one up.
    #[must_use]
    pub const fn nonce(&self) -> Option<u64> {
        match self {
            Self::Transaction(tx) => tx.nonce,
            Self::Authorization { nonce, .. } => Some(*nonce),
            Self::Message { .. } | Self::TypedData { .. } => None,
        }
    }
}
