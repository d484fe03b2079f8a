//! Grants as checked: every name resolved, every amount scaled, per chain.

use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId, GroupName, KeyId};
use crate::core::intent::Fees;
use crate::core::policy::bundle::abi::AbiFunction;
use crate::core::policy::bundle::condition::ArgRule;
use crate::core::policy::verdict::Period;
use crate::core::time::Timestamp;
use alloy::dyn_abi::DynSolType;
use alloy::primitives::{Address, B256, U256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One allow rule.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Unique in the bundle.
    pub id: GrantId,
    /// Who answers for it.
    pub owner: String,
    /// Why it exists.
    pub reason: String,
    /// The last day (UTC) on which it allows anything, `YYYY-MM-DD`.
    pub expires: String,
    /// The first moment at which it allows nothing any more.
    pub expires_at: Timestamp,
    /// `sub`s, exact.
    pub principals: BTreeSet<String>,
    /// Who may be asked to sign.
    pub signers: BTreeSet<SignerRef>,
    /// When it allows anything; `None` at all hours.
    pub hours: Option<Hours>,
    /// Whether it decides, or is only recorded.
    pub mode: Mode,
    /// What it allows.
    pub rules: Rules,
}

/// Whether a grant decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It decides.
    Enforce,
    /// It is evaluated and recorded, and never decides. Its windows count nothing.
    Shadow,
}

/// Days and hours at which a grant allows anything, UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// Which days, from Monday.
    pub days: [bool; 7],
    /// First minute of the day, inclusive.
    pub from_minute: u16,
    /// First minute of the day that is not allowed any more, at most 1440; never below `from_minute`.
    pub to_minute: u16,
    /// As written.
    pub text: String,
}

/// Who must approve what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalRule {
    /// More than this needs approval, in the smallest unit of the action; `None`: whatever it is.
    pub above: Option<Amount>,
    /// How many people of which quorum group; never empty, none 0.
    pub quorum: BTreeMap<String, u32>,
    /// How long approvals may be gathered, in milliseconds.
    pub ttl_ms: i64,
}

/// What must wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayRule {
    /// How long what goes to a destination that was not paid before waits, in milliseconds.
    pub first_use_ms: Option<i64>,
    /// How long everything waits, in milliseconds.
    pub always_ms: Option<i64>,
}

/// A signer as a grant names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignerRef {
    /// Any key of a group.
    Group(GroupName),
    /// One key by its address.
    Address(Address),
    /// One key by its id.
    Key(KeyId),
}

/// What a grant allows.
#[derive(Clone, Debug)]
pub enum Rules {
    /// EIP-191 messages, which belong to no chain.
    Message {
        /// Which texts.
        text: TextRule,
        /// Count windows only.
        windows: Vec<Window>,
    },
    /// One rule for each chain that the grant names.
    OnChain(BTreeMap<ChainName, Arc<ChainRule>>),
}

/// What a grant allows on one chain.
#[derive(Clone, Debug)]
pub struct ChainRule {
    /// The action with its selectors and bounds.
    pub action: Action,
    /// Whose assets it may move beside the signing account's own: contracts of the book through which the
    /// account acts, such as a Safe.
    pub through: BTreeSet<Address>,
    /// Windows of the action.
    pub windows: Vec<Window>,
    /// Bounds of the fee; `None` for typed data and authorizations, which pay none.
    pub fee: Option<FeeRule>,
    /// Who must approve what. It applies to whatever the selectors match, whichever grant allows it.
    pub approval: Option<ApprovalRule>,
    /// What must wait. It applies like `approval`.
    pub delay: Option<DelayRule>,
}

/// An action on one chain.
#[derive(Clone, Debug)]
pub enum Action {
    /// Native value to an account without code.
    NativeTransfer {
        /// To whom.
        to: Destinations,
        /// Wei, inclusive.
        per_tx: Amount,
    },
    /// `transfer(address,uint256)` of a registered asset.
    TokenTransfer {
        /// The asset's name.
        asset: String,
        /// The asset's contract.
        address: Address,
        /// To whom.
        to: Destinations,
        /// Smallest units, inclusive.
        per_tx: Amount,
    },
    /// An allowance over a registered ERC-20 asset, in whatever form.
    TokenApprove {
        /// The asset's name.
        asset: String,
        /// The asset's contract.
        address: Address,
        /// Who may take.
        to: Destinations,
        /// Smallest units, inclusive; unlimited ones are above every amount.
        per_tx: Amount,
        /// Whether an allowance without end may be given: at least 2^255, or all or nothing.
        unlimited: bool,
        /// The longest life of a signed permit, in milliseconds; `None` if only transactions are allowed.
        permit_ms: Option<i64>,
    },
    /// A transfer of a registered ERC-721 or ERC-1155 asset.
    NftTransfer {
        /// The asset's name.
        asset: String,
        /// The asset's contract.
        address: Address,
        /// To whom.
        to: Destinations,
        /// Which tokens; `None` for all: said out loud.
        ids: Option<BTreeSet<U256>>,
        /// How many of one in all, inclusive.
        per_tx: Amount,
    },
    /// An operator for a registered ERC-721, ERC-1155 or ERC-777 asset.
    NftApprove {
        /// The asset's name.
        asset: String,
        /// The asset's contract.
        address: Address,
        /// Who may take.
        to: Destinations,
        /// Which tokens; `None` for all of them at once (`setApprovalForAll`, `authorizeOperator`) as well.
        ids: Option<BTreeSet<U256>>,
    },
    /// A function of a contract in the book.
    Call(Box<CallRule>),
    /// A function that changes who rules a contract of the book, or its code.
    Admin(Box<CallRule>),
    /// A contract from one of these init codes.
    Deploy {
        /// keccak-256 of each; never empty.
        init_code_hashes: BTreeSet<B256>,
        /// Native value that may go with it: wei, inclusive.
        value_max: Amount,
    },
    /// EIP-7702: the account's code becomes that of one of these.
    Delegate {
        /// Whose code.
        to: Destinations,
    },
    /// A call that is not understood: said out loud for one contract and one selector.
    Opaque {
        /// The contract's name in the book.
        contract: String,
        /// The contract.
        address: Address,
        /// The first four bytes; `None` for no data at all.
        selector: Option<[u8; 4]>,
        /// Native value that may go with it: wei, inclusive.
        value_max: Amount,
        /// keccak-256 that the contract's code must have; `None` for whatever it is.
        code_hash: Option<B256>,
    },
    /// EIP-712 typed data.
    TypedData(Box<TypedRule>),
}

/// A call that is allowed.
#[derive(Clone, Debug)]
pub struct CallRule {
    /// The contract's name in the book.
    pub contract: String,
    /// The function.
    pub function: AbiFunction,
    /// Conditions by argument name.
    pub args: Vec<ArgRule>,
    /// Native value that may go with it: wei, inclusive.
    pub value_max: Amount,
    /// The event that it must answer.
    pub event: Option<EventRule>,
}

/// The event that a call must answer.
#[derive(Clone, Debug)]
pub struct EventRule {
    /// The emitter's name in the book.
    pub contract: String,
    /// The emitter.
    pub address: Address,
    /// As written.
    pub signature: String,
    /// First topic.
    pub topic0: B256,
    /// Each argument of the event.
    pub inputs: Vec<EventInput>,
    /// For each argument of the function, in order, the index of the event's argument.
    pub mapping: Vec<usize>,
}

/// One argument of an event.
#[derive(Clone, Debug)]
pub struct EventInput {
    /// Its type.
    pub ty: DynSolType,
    /// Whether it is a topic.
    pub indexed: bool,
}

/// Typed data that is allowed.
#[derive(Clone, Debug)]
pub struct TypedRule {
    /// The contract's name in the book.
    pub contract: String,
    /// The domain's contract.
    pub verifying_contract: Address,
    /// The primary type's name.
    pub primary_type: String,
    /// keccak-256 of the full `encodeType`.
    pub type_hash: B256,
    /// Conditions by top-level field.
    pub args: Vec<ArgRule>,
}

/// To whom value may go.
#[derive(Clone, Debug)]
pub enum Destinations {
    /// Anybody: said out loud.
    Any,
    /// These only; never empty.
    These {
        /// How the grant names them, for people.
        label: String,
        /// The addresses.
        addresses: BTreeSet<Address>,
    },
}

impl Destinations {
    /// Whether value may go there.
    #[must_use]
    pub fn contains(&self, to: Address) -> bool {
        match self {
            Self::Any => true,
            Self::These { addresses, .. } => addresses.contains(&to),
        }
    }

    /// In words.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::Any => "any",
            Self::These { label, .. } => label,
        }
    }
}

/// Which texts a message may have.
#[derive(Clone, Debug)]
pub enum TextRule {
    /// Any text: said out loud.
    Any,
    /// One of these.
    Exact(BTreeSet<String>),
    /// Anything that begins so.
    Prefix(String),
}

/// A spend limit over a span of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which span.
    pub period: Period,
    /// As written, such as `24h`, `day`.
    pub span: String,
    /// What it holds.
    pub holds: Holds,
    /// Whose spending is counted together.
    pub scope: Scope,
}

/// What a window holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// An amount in the smallest unit.
    Amount(Amount),
    /// A number of requests.
    Count(u64),
}

/// Whose spending a window counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All keys of a group (a key without a group counts as a group of its own).
    Group,
    /// One key.
    Key,
    /// One principal.
    Principal,
    /// One destination: to whom value goes, or who may take it.
    Destination,
    /// Everything on the chain.
    Chain,
}

impl Scope {
    /// The name in bundles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Key => "key",
            Self::Principal => "principal",
            Self::Destination => "destination",
            Self::Chain => "chain",
        }
    }
}

/// Bounds of the fee.
#[derive(Clone, Debug)]
pub struct FeeRule {
    /// Wei per gas.
    pub max: Fees,
    /// Gas limit.
    pub max_gas: u64,
    /// Windows over gas × price, in wei.
    pub windows: Vec<Window>,
}

impl Grant {
    /// The action's name in bundles.
    #[must_use]
    pub fn action_name(&self) -> &'static str {
        match &self.rules {
            Rules::Message { .. } => "message",
            Rules::OnChain(rules) => {
                rules.values().next().map_or("none", |rule| rule.action.name())
            }
        }
    }

    /// The chains that it names; empty for messages.
    pub fn chains(&self) -> impl Iterator<Item = &ChainName> {
        let rules = match &self.rules {
            Rules::Message { .. } => None,
            Rules::OnChain(rules) => Some(rules),
        };
        rules.into_iter().flat_map(BTreeMap::keys)
    }
}

impl Action {
    /// The name in bundles.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NativeTransfer { .. } => "native.transfer",
            Self::TokenTransfer { .. } => "erc20.transfer",
            Self::TokenApprove { .. } => "erc20.approve",
            Self::NftTransfer { .. } => "nft.transfer",
            Self::NftApprove { .. } => "nft.approve",
            Self::Call(_) => "call",
            Self::Admin(_) => "admin",
            Self::Deploy { .. } => "deploy",
            Self::Delegate { .. } => "delegate",
            Self::Opaque { .. } => "opaque",
            Self::TypedData(_) => "typed_data",
        }
    }
}
