//! What a request would do, decoded: the words of which grants and windows speak.
//!
//! Whose asset moves is said in each effect: inside a Safe, a multicall contract or a smart account it is
//! that contract's, not the signing account's.

use crate::core::amount::Amount;
use alloy::primitives::{Address, B256, Bytes, U256};

/// What a request would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Native value leaves an account, to one without code.
    NativeOut {
        /// Whose.
        from: Address,
        /// To whom.
        to: Address,
        /// Wei.
        amount: Amount,
    },
    /// At most this is paid for gas: gas limit × the cap of the fee. Always the signing account's.
    FeeMax {
        /// Wei.
        amount: Amount,
    },
    /// ERC-20 tokens of a registered asset leave an account.
    TokenOut {
        /// The asset's name in the registry.
        asset: String,
        /// Whose.
        from: Address,
        /// To whom.
        to: Address,
        /// Smallest units.
        amount: Amount,
    },
    /// Tokens of a registered ERC-721 or ERC-1155 contract leave an account.
    NftOut {
        /// The asset's name in the registry.
        asset: String,
        /// Whose.
        from: Address,
        /// To whom.
        to: Address,
        /// Which token.
        id: U256,
        /// How many: 1 for ERC-721.
        amount: Amount,
    },
    /// Somebody may take tokens of a registered ERC-20 asset, now or until the allowance ends.
    Approve {
        /// The asset's name in the registry.
        asset: String,
        /// Whose.
        owner: Address,
        /// Who may take.
        spender: Address,
        /// How much in all, in smallest units: of `increaseAllowance` what is added.
        amount: Amount,
        /// How it was given.
        form: ApprovalForm,
        /// Bounds of a signed permit; `None` for a transaction.
        permit: Option<PermitTerms>,
    },
    /// Somebody may take tokens of a registered ERC-721, ERC-1155 or ERC-777 contract.
    OperatorApproval {
        /// The asset's name in the registry.
        asset: String,
        /// Whose.
        owner: Address,
        /// Who may take.
        operator: Address,
        /// Which token; `None` for all of them.
        id: Option<U256>,
        /// Whether it is given (`true`) or taken back.
        approved: bool,
    },
    /// EIP-7702: the account's code would be that of another. It persists when the transaction reverts.
    Delegate {
        /// The authority, whose code is set.
        authority: Address,
        /// Whose code; the zero address takes a delegation back.
        to: Address,
        /// The authority's nonce, which the authorization uses up.
        nonce: u64,
    },
    /// A contract would be created.
    Create {
        /// Who creates it.
        from: Address,
        /// keccak-256 of the init code.
        init_code_hash: B256,
        /// Wei that goes with it.
        value: Amount,
    },
    /// A function that changes who rules a contract of the book, or its code.
    AdminOp(CallEffect),
    /// Any other function of a contract in the address book, decoded with the ABI bound to it.
    Call(CallEffect),
    /// EIP-712 typed data that moves nothing that is known.
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
    /// Anything that was not understood to the last byte.
    Opaque {
        /// Why not.
        why: String,
        /// The call, where a grant may name it as opaque; `None` for what no grant can allow.
        call: Option<OpaqueCall>,
    },
}

/// A decoded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEffect {
    /// Who calls: the signing account, or the contract that it acts through.
    pub from: Address,
    /// The contract's name in the book.
    pub contract: String,
    /// The contract.
    pub to: Address,
    /// The function's canonical signature, such as `executeCharge(uint256,uint256)`.
    pub function: String,
    /// Each argument: name, ABI type, value as text.
    pub args: Vec<CallArgument>,
    /// Wei that goes with it.
    pub value: Amount,
}

/// A call that was not understood, and who would be called with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueCall {
    /// Who calls.
    pub from: Address,
    /// Who is called.
    pub to: Address,
    /// The first four bytes; `None` where there is no data at all.
    pub selector: Option<[u8; 4]>,
    /// Wei that goes with it.
    pub value: Amount,
    /// keccak-256 of the recipient's code, where it was read.
    pub code_hash: Option<B256>,
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

/// How an allowance is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApprovalForm {
    /// `approve`, or a function that sets an allowance.
    Approve,
    /// `increaseAllowance`: it adds.
    Increase,
    /// EIP-2612 permit.
    Permit,
    /// DAI's permit: all or nothing.
    DaiPermit,
    /// Signed for Permit2 (`PermitSingle`, `PermitBatch`): an allowance that it keeps, whose nonce is a number.
    Permit2,
    /// Signed for Permit2 (`PermitTransferFrom` and its kin): one transfer, whose nonce is a bit.
    Permit2Transfer,
    /// `approve` or `lockdown` of this Permit2 contract: an allowance that it keeps.
    Permit2Approve(Address),
    /// EIP-3009: a signed transfer, which somebody else submits.
    TransferAuthorization,
    /// An offer of a Seaport order.
    Seaport,
}

impl ApprovalForm {
    /// The name in leaves and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Increase => "increase_allowance",
            Self::Permit => "permit",
            Self::DaiPermit => "dai_permit",
            Self::Permit2 => "permit2",
            Self::Permit2Transfer => "permit2_transfer",
            Self::Permit2Approve(_) => "permit2_approve",
            Self::TransferAuthorization => "transfer_authorization",
            Self::Seaport => "seaport",
        }
    }
}

/// What bounds a signed permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermitTerms {
    /// Whose domain the permit is of: where its nonce is kept.
    pub verifying_contract: Address,
    /// Its nonce: a number, or 32 bytes of EIP-3009 as a number.
    pub nonce: U256,
    /// Until when it can be submitted, in seconds since 1970; `None` if it never ends.
    pub deadline: Option<u64>,
    /// Until when an allowance that it set can be used (Permit2), in seconds; `None` if it never ends.
    pub expires: Option<u64>,
}

impl Effect {
    /// To whom value goes, or who may take it: what "first use of a destination" asks about.
    #[must_use]
    pub const fn destination(&self) -> Option<Address> {
        match self {
            Self::NativeOut { to, .. } | Self::TokenOut { to, .. } | Self::NftOut { to, .. } => {
                Some(*to)
            }
            Self::Approve { spender, .. } => Some(*spender),
            Self::OperatorApproval { operator, .. } => Some(*operator),
            Self::Call(call) | Self::AdminOp(call) => Some(call.to),
            Self::Opaque { call: Some(call), .. } => Some(call.to),
            Self::Delegate { to, .. } => Some(*to),
            Self::FeeMax { .. }
            | Self::Create { .. }
            | Self::TypedMessage { .. }
            | Self::TextMessage { .. }
            | Self::Opaque { call: None, .. } => None,
        }
    }

    /// Whose asset moves, or who acts; `None` where it is the signer alone.
    #[must_use]
    pub const fn actor(&self) -> Option<Address> {
        match self {
            Self::NativeOut { from, .. }
            | Self::TokenOut { from, .. }
            | Self::NftOut { from, .. }
            | Self::Create { from, .. } => Some(*from),
            Self::Approve { owner, .. } | Self::OperatorApproval { owner, .. } => Some(*owner),
            Self::Call(call) | Self::AdminOp(call) => Some(call.from),
            Self::Opaque { call: Some(call), .. } => Some(call.from),
            Self::Delegate { authority, .. } => Some(*authority),
            Self::FeeMax { .. }
            | Self::TypedMessage { .. }
            | Self::TextMessage { .. }
            | Self::Opaque { call: None, .. } => None,
        }
    }

    /// Native value that goes with it, in wei.
    #[must_use]
    pub const fn native(&self) -> Amount {
        match self {
            Self::NativeOut { amount, .. } => *amount,
            Self::Call(call) | Self::AdminOp(call) => call.value,
            Self::Create { value, .. } => *value,
            Self::Opaque { call: Some(call), .. } => call.value,
            _ => Amount::ZERO,
        }
    }
}
