//! The outcome of an evaluation.

use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId};
use crate::core::intent::Fees;
use alloy::primitives::{Address, B256, Bytes};
use serde::Serialize;
use std::fmt;

/// What a request would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Native value leaves the account.
    NativeOut {
        /// To whom.
        to: Address,
        /// Wei.
        amount: Amount,
    },
    /// At most this is paid for gas: gas limit × the cap of the fee.
    FeeMax {
        /// Wei.
        amount: Amount,
    },
    /// ERC-20 tokens of a registered asset leave the account.
    TokenOut {
        /// The asset's name in the registry.
        asset: String,
        /// To whom.
        to: Address,
        /// Smallest units.
        amount: Amount,
    },
    /// A function of a contract in the address book, decoded with the ABI bound to it.
    Call {
        /// The contract's name in the book.
        contract: String,
        /// The function's canonical signature, such as `executeCharge(uint256,uint256)`.
        function: String,
        /// Each argument: name, ABI type, value as text.
        args: Vec<CallArgument>,
    },
    /// EIP-712 typed data.
    TypedMessage {
        /// Hash of the primary type's full `encodeType`.
        type_hash: B256,
        /// The primary type's name.
        primary_type: String,
        /// The domain's contract.
        verifying_contract: Address,
    },
    /// An EIP-191 message.
    TextMessage {
        /// The text.
        text: String,
    },
    /// A contract would be created.
    Create,
    /// Anything that was not understood to the last byte.
    Opaque {
        /// Why not.
        why: String,
    },
}

/// One decoded argument of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallArgument {
    /// The name in the ABI; empty if it has none.
    pub name: String,
    /// The ABI type, such as `uint256`.
    pub kind: String,
    /// The value: decimal for integers, lower-case hex for bytes and addresses, `true`/`false`.
    pub value: String,
    /// The ABI encoding of this one value alone; equality of arguments is equality of these.
    pub encoded: Bytes,
}

/// What comes of it. The strictest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Refused.
    Deny,
    /// Grants cover every effect.
    Allow,
}

impl Outcome {
    /// The name in the API and in leaves.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// Why something was refused: for each grant, the first field that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The grant that failed here; none if the refusal is about the whole request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    /// The field, such as `per_tx` or `args.amount.max`.
    pub field: String,
    /// What the grant says.
    pub expected: String,
    /// What the request says.
    pub actual: String,
}

/// Which counter: stable across bundles as long as the grant keeps its id, span, unit and scope.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitId(pub [u8; 32]);

impl fmt::Debug for LimitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", hex::encode(self.0))
    }
}

/// What a window counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeKind {
    /// Amounts of an asset: `value` is kept on success and dropped on a revert; `fee` becomes what was
    /// really paid.
    Amount {
        /// The part that moves only on success.
        value: Amount,
        /// The part that is paid in any case, at its cap (native windows only).
        fee: Amount,
    },
    /// One more request. Kept whatever becomes of it.
    Count,
}

/// What must be reserved before this may be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The counter.
    pub limit: LimitId,
    /// The counter in words, for people: grant, span, scope.
    pub label: String,
    /// The grant whose window it is.
    pub grant: GrantId,
    /// What it counts.
    pub kind: ChargeKind,
    /// How much the window holds.
    pub max: Amount,
    /// The window's length, in milliseconds.
    pub span_ms: i64,
}

impl Charge {
    /// All that is asked of the window. `None` on overflow, which denies.
    #[must_use]
    pub fn asked(&self) -> Option<Amount> {
        match self.kind {
            ChargeKind::Amount { value, fee } => value.checked_add(fee),
            ChargeKind::Count => Some(Amount::ONE),
        }
    }
}

/// A decision, with everything that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allow or deny.
    pub outcome: Outcome,
    /// The bundle that decided.
    pub bundle: B256,
    /// The grants that covered the effects (empty on deny).
    pub grants: Vec<GrantId>,
    /// What the request would do.
    pub effects: Vec<Effect>,
    /// Why not (empty on allow).
    pub reasons: Vec<Reason>,
    /// What to reserve (empty on deny), in the order of limit ids, each limit once.
    pub charges: Vec<Charge>,
    /// The fees that may be signed at most: the lowest of chain, caller and grant. `None` for
    /// messages and typed data.
    pub fee_cap: Option<Fees>,
    /// Set where the grant binds an event: which function on which chain this event is used up for.
    pub event_use: Option<EventUse>,
}

/// An event answers one request per function called: the pair is claimed when the request is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventUse {
    /// Where the event was seen, as CAIP-2 id (`eip155:1`).
    pub chain: ChainName,
    /// Its block.
    pub block_hash: B256,
    /// Its transaction.
    pub transaction_hash: B256,
    /// Its index in the block.
    pub log_index: u64,
    /// Contract address and function selector, in hex.
    pub used_for: String,
}
