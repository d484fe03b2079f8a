//! What goes into and comes out of the store.

use super::Wait;
use crate::core::amount::Amount;
use crate::core::id::{ChainId, ChainName, GroupName, HolderId, HsmName, KeyId, RequestId};
use crate::core::intent::{Fees, TransactionIntent};
use crate::core::key::{CkaId, KeyPlace, NonceMode};
use crate::core::permit::{PayloadKind, RawSignature};
use crate::core::policy::{LimitId, Period};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::chain::BlockId;
use alloy::primitives::{Address, B256, Bytes};

/// An idempotency key and what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBinding {
    /// Whose key it is; see [`Principal::scope`].
    pub scope: String,
    /// The key.
    pub key: String,
    /// SHA-256 of what was asked.
    pub body_hash: B256,
    /// The request that it made.
    pub request: RequestId,
}

/// The answer to binding a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It is bound to the new request.
    New,
    /// It was bound before.
    Before(KeyBinding),
}

/// A decision's summary, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionSummary {
    /// `allow`.
    pub outcome: String,
    /// The bundle's hash.
    pub bundle: B256,
    /// The grants that covered the effects.
    pub grants: Vec<String>,
}

/// A transaction that was just accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTransaction {
    /// Its id.
    pub id: RequestId,
    /// Who asked.
    pub principal: Principal,
    /// What was asked, with gas and fee caps as decided.
    pub intent: TransactionIntent,
    /// The most that may be offered: the lowest of chain, caller and grant.
    pub fee_cap: Fees,
    /// What the caller named as signer.
    pub signer: String,
    /// The key that was chosen.
    pub key: KeyId,
    /// Its address.
    pub address: Address,
    /// The decision.
    pub decision: DecisionSummary,
    /// The whole decision, as the leaf will say it (JSON).
    pub decision_json: String,
    /// The caller's metadata (a JSON object).
    pub metadata_json: String,
    /// Now.
    pub at: Timestamp,
}

/// Where a transaction was mined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinedRow {
    /// Which attempt.
    pub transaction_hash: B256,
    /// The block.
    pub block_hash: B256,
    /// Its height.
    pub block_number: u64,
    /// Gas that was used.
    pub gas_used: u64,
    /// Wei per gas that was paid.
    pub effective_gas_price: u128,
    /// Whether execution succeeded.
    pub success: bool,
}

impl MinedRow {
    /// Its block.
    #[must_use]
    pub const fn block(&self) -> BlockId {
        BlockId { number: self.block_number, hash: self.block_hash }
    }
}

/// Why a transaction will not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable kebab-case.
    pub code: String,
    /// For people.
    pub detail: String,
}

/// A stored transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRow {
    /// What was stored when it was accepted; `at` is its creation.
    pub new: NewTransaction,
    /// Order of acceptance.
    pub seq: i64,
    /// Where it is.
    pub status: Status,
    /// Its nonce, once it has one.
    pub nonce: Option<u64>,
    /// Where it is mined, if it is.
    pub mined: Option<MinedRow>,
    /// Why a no-op is to take its nonce, or took it.
    pub ending: Option<Ending>,
    /// Why it failed, if it did or is about to.
    pub failure: Option<Failure>,
    /// What it was found to wait for, if it was; forgotten when its status changes.
    pub waits: Option<Wait>,
    /// Since when it is known that its source event is not on the chain any more.
    pub source_gone_at: Option<Timestamp>,
    /// Last change.
    pub updated_at: Timestamp,
    /// Compare-and-swap counter.
    pub version: i64,
}

/// A change of status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusChange {
    /// Which transaction.
    pub id: RequestId,
    /// The version that was read.
    pub version: i64,
    /// The new status.
    pub status: Status,
    /// Where it is mined now; cleared if `None`.
    pub mined: Option<MinedRow>,
    /// Why a no-op is to take its nonce; once said it stays, and `None` leaves it.
    pub ending: Option<Ending>,
    /// Why it failed; once said it stays, and `None` leaves it.
    pub failure: Option<Failure>,
    /// Now.
    pub at: Timestamp,
}

/// Which transactions to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this principal's.
    pub principal: Option<Principal>,
    /// Only in this status.
    pub status: Option<Status>,
    /// Only on this chain.
    pub chain: Option<ChainName>,
    /// Only asked with this signer.
    pub signer: Option<String>,
    /// Created at or after.
    pub created_from: Option<Timestamp>,
    /// Created before.
    pub created_before: Option<Timestamp>,
    /// Only older than this order number (the cursor).
    pub before_seq: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

/// A lane: the order of nonces of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The chain.
    pub chain: ChainId,
    /// The account.
    pub address: Address,
    /// Its key.
    pub key: KeyId,
    /// Who gives the nonces.
    pub mode: NonceMode,
    /// The next nonce to give.
    pub next_nonce: u64,
    /// Why it stands still, if it does.
    pub halted: Option<String>,
    /// Compare-and-swap counter.
    pub version: i64,
}

/// How much work a lane has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneLoad {
    /// The account.
    pub address: Address,
    /// Who gives the nonces.
    pub mode: NonceMode,
    /// Whether it stands still.
    pub halted: bool,
    /// Transactions that have a nonce and are not mined.
    pub flying: i64,
    /// Transactions that wait for a nonce, counted up to 256.
    pub queued: i64,
    /// Its lease, if it ever had one: who, until when by their clock.
    pub lease: Option<(HolderId, Timestamp)>,
}

/// A decision to be stored: these bytes may be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttempt {
    /// Whose.
    pub request: RequestId,
    /// From 1.
    pub number: i64,
    /// Why there is this attempt: `first`, `replacement`, `speed_up`, [`ADOPTED`] or [`NO_OP`].
    pub reason: &'static str,
    /// The key.
    pub key: KeyId,
    /// What the bytes are.
    pub kind: PayloadKind,
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Their keccak-256.
    pub digest: B256,
    /// The fees in them; zero for messages.
    pub fees: Fees,
    /// Now.
    pub at: Timestamp,
}

/// A signature to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAttempt {
    /// Whose.
    pub request: RequestId,
    /// Which attempt.
    pub number: i64,
    /// The signature.
    pub signature: RawSignature,
    /// The signed envelope and its hash: transactions only.
    pub envelope: Option<(Bytes, B256)>,
    /// Now.
    pub at: Timestamp,
}

/// A stored attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// From 1.
    pub number: i64,
    /// Why there is this attempt.
    pub reason: String,
    /// The unsigned bytes that were decided.
    pub bytes: Vec<u8>,
    /// Its fees.
    pub fees: Fees,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// The signature, once there.
    pub signature: Option<RawSignature>,
    /// The signed envelope, once there.
    pub raw: Option<Bytes>,
    /// Its hash.
    pub hash: Option<B256>,
    /// When it was signed.
    pub signed_at: Option<Timestamp>,
    /// When it was first handed to nodes.
    pub first_sent_at: Option<Timestamp>,
    /// When it was last handed to nodes.
    pub sent_at: Option<Timestamp>,
    /// How often it was handed to nodes.
    pub sends: i64,
    /// What the nodes said last; a name of [`Sent`].
    pub answer: Option<String>,
    /// What each node said then, by its place in the configuration.
    pub answer_detail: Option<String>,
    /// When a node first took it.
    pub accepted_at: Option<Timestamp>,
    /// Since when, each time they answered, the nodes have refused it for a reason of its own.
    pub refused_since: Option<Timestamp>,
    /// When they refused it last.
    pub refused_at: Option<Timestamp>,
    /// What they said then.
    pub refusal: Option<String>,
}

/// What became of handing bytes to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// A node took them, or has them.
    Accepted,
    /// All that answered refuse them for a reason of their own, which is kept since the first time.
    Refused(String),
    /// The account cannot pay for them now.
    Unfunded,
    /// Nothing is known: what was known before stays.
    Unknown,
    /// An earlier version with a fee too close to theirs is in the pools, or they are full of better ones.
    Underpriced,
    /// Their nonce is used: they, another version or a stranger was mined.
    Idle,
}

impl Sent {
    /// The name in the database and the API.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused(_) => "refused",
            Self::Unfunded => "unfunded",
            Self::Unknown => "unknown",
            Self::Underpriced => "underpriced",
            Self::Idle => "idle",
        }
    }
}

/// The `reason` of an attempt that is a no-op. Those of other attempts are for people.
pub const NO_OP: &str = "no_op";

/// The `reason` of an attempt that was found on the chain, and not signed by this database's server.
pub const ADOPTED: &str = "adopted";

impl AttemptRow {
    /// Whether it is its request's no-op, and not what was asked.
    #[must_use]
    pub fn is_no_op(&self) -> bool {
        self.reason == NO_OP
    }
}

/// Whether a hash is that of a no-op among these.
#[must_use]
pub fn is_no_op(attempts: &[AttemptRow], hash: B256) -> bool {
    attempts.iter().any(|attempt| attempt.is_no_op() && attempt.hash == Some(hash))
}

/// A request for a signature that was just allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSignatureRequest {
    /// Its id.
    pub id: RequestId,
    /// Who asked.
    pub principal: Principal,
    /// What kind.
    pub kind: PayloadKind,
    /// The chain, where it has one.
    pub chain: Option<ChainId>,
    /// The caller's nonce: external transactions only.
    pub nonce: Option<u64>,
    /// The key.
    pub key: KeyId,
    /// Its address.
    pub address: Address,
    /// Under which the spend is held; `None` if nothing is held.
    pub owner: Option<String>,
    /// The decision.
    pub decision: DecisionSummary,
    /// Now.
    pub at: Timestamp,
}

/// A stored request for a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureRow {
    /// What was stored when it was allowed.
    pub new: NewSignatureRequest,
    /// Its one attempt.
    pub attempt: AttemptRow,
}

/// A limit that has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitExceeded {
    /// The limit in words.
    pub label: String,
    /// The grant whose window it is.
    pub grant: String,
    /// Held and spent within the span.
    pub used: Amount,
    /// What this request asks more.
    pub asked: Amount,
    /// What the window holds.
    pub max: Amount,
}

/// How a reservation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// Whether the value moved: a success keeps amounts and fee, a revert or no-op only the fee.
    pub value_moved: bool,
    /// What was paid for gas, in wei; `None` keeps what was reserved.
    pub fee_paid: Option<Amount>,
    /// Whether a fee above what was held for fees counts against what was held for the value: a no-op's
    /// cap is its own.
    pub fee_from_value: bool,
}

/// What a charge would find in its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitUse {
    /// Held and spent within the span.
    pub used: Amount,
    /// What would be held more.
    pub asked: Amount,
    /// Whether there is room for it.
    pub fits: bool,
}

/// A limit's state at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitNow {
    /// Which limit.
    pub id: LimitId,
    /// In words.
    pub label: String,
    /// The grant whose window it is.
    pub grant: String,
    /// Its span of time.
    pub period: Period,
    /// Held by what is not final.
    pub held: Amount,
    /// Spent within the span that ends at that moment.
    pub spent: Amount,
}

/// A key whose making begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Our id.
    pub id: KeyId,
    /// The configured token that it is to be in.
    pub hsm: HsmName,
    /// The HSM's id.
    pub cka_id: CkaId,
    /// What people call it.
    pub label: String,
    /// Its group.
    pub group: Option<GroupName>,
    /// Who gives its nonces.
    pub mode: NonceMode,
    /// Who asked.
    pub principal: Principal,
    /// Now.
    pub at: Timestamp,
}

impl NewKey {
    /// Where the pair is to be.
    #[must_use]
    pub fn place(&self) -> KeyPlace {
        KeyPlace { hsm: self.hsm.clone(), cka_id: self.cka_id.clone() }
    }
}

/// A leaf that waits for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingLeaf {
    /// Order of arrival.
    pub seq: i64,
    /// What it records.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Leaves and nodes to append to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// The size that was read.
    pub size_before: u64,
    /// The leaves, in order.
    pub leaves: Vec<WaitingLeaf>,
    /// The tree's new stored nodes, with their indexes.
    pub nodes: Vec<(u64, [u8; 32])>,
    /// The root at the new size.
    pub root: [u8; 32],
}

/// The log's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// How many leaves.
    pub size: u64,
    /// RFC 6962 root.
    pub root: [u8; 32],
}

/// A leaf of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLeaf {
    /// Its index.
    pub index: u64,
    /// What it records.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// Its bytes, as hashed.
    pub bytes: Vec<u8>,
}

/// A checkpoint of the log that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// How many leaves.
    pub size: u64,
    /// RFC 6962 root at that size.
    pub root: [u8; 32],
    /// The signed note (C2SP tlog-checkpoint).
    pub note: String,
}

/// An event to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Its id.
    pub id: String,
    /// CloudEvents type.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// CloudEvents data (JSON).
    pub data_json: String,
    /// When.
    pub at: Timestamp,
}
