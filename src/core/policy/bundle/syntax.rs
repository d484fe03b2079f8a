//! The files as they are written: shapes only. Unknown fields are errors everywhere; what a field
//! means is checked where the bundle is put together.

use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

/// `bundle.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BundleFile {
    pub schema: u64,
    pub version: String,
    pub parent: Option<String>,
    pub issuer: Vec<RawIssuer>,
    #[serde(default)]
    pub quorum: Vec<Spanned<RawQuorum>>,
    #[serde(default)]
    pub limit: Vec<Spanned<RawLimit>>,
    #[serde(default)]
    pub deny: Vec<Spanned<RawDeny>>,
    pub change: Option<Spanned<RawChange>>,
}

/// One `[[quorum]]`: a group of people.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQuorum {
    pub name: String,
    pub members: Vec<String>,
}

/// One `[[limit]]`: a guardrail.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimit {
    pub id: String,
    pub reason: String,
    pub chain: String,
    /// The asset; the chain's own currency if none.
    pub asset: Option<String>,
    pub per_tx: Option<String>,
    pub windows: Option<Vec<RawWindow>>,
}

/// One `[[deny]]`: a guardrail.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDeny {
    pub id: String,
    pub reason: String,
    pub principals: Option<Vec<String>>,
    pub signers: Option<Vec<String>>,
    pub chains: Option<Vec<String>>,
    pub actions: Option<Vec<String>>,
    pub to: Option<RawTo>,
}

/// `[change]`: how the bundle itself may be changed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawChange {
    pub quorum: BTreeMap<String, u32>,
    pub delay: Option<String>,
}

/// One `[[issuer]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIssuer {
    pub iss: String,
    pub roles: Vec<String>,
    pub subjects: Vec<String>,
}

/// `book.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BookFile {
    #[serde(default)]
    pub contract: Vec<Spanned<RawContract>>,
    #[serde(default)]
    pub list: Vec<Spanned<RawList>>,
}

/// One `[[contract]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawContract {
    pub name: String,
    pub chain: String,
    pub address: String,
    pub abi: Option<String>,
    pub wraps: Option<String>,
}

/// One `[[list]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawList {
    pub name: String,
    pub chain: String,
    pub addresses: Vec<String>,
}

/// `assets.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AssetsFile {
    #[serde(default)]
    pub asset: Vec<Spanned<RawAsset>>,
    #[serde(default)]
    pub native: Vec<Spanned<RawNative>>,
}

/// One `[[asset]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAsset {
    pub name: String,
    pub chain: String,
    pub address: String,
    pub decimals: Option<u8>,
    pub standard: Option<String>,
}

/// One `[[native]]`: the decimals of a chain's own currency, where they are not 18.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNative {
    pub chain: String,
    pub decimals: u8,
}

/// `grants.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantsFile {
    pub grant: Vec<Spanned<RawGrant>>,
}

/// One `[[grant]]`: the fields of all actions; which of them an action has is checked later.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGrant {
    pub id: String,
    pub owner: String,
    pub reason: String,
    pub expires: String,
    pub principals: Vec<String>,
    pub signers: Vec<String>,
    pub chains: Option<Vec<String>>,
    pub action: String,
    pub asset: Option<String>,
    pub to: Option<RawTo>,
    pub per_tx: Option<String>,
    pub contract: Option<String>,
    pub function: Option<String>,
    pub args: Option<BTreeMap<String, RawCondition>>,
    pub value: Option<RawValue>,
    pub event: Option<RawEvent>,
    pub text: Option<RawText>,
    pub verifying_contract: Option<String>,
    pub primary_type: Option<String>,
    pub type_hash: Option<String>,
    pub encode_type: Option<String>,
    pub unlimited: Option<bool>,
    pub permit_for: Option<String>,
    pub ids: Option<RawIds>,
    pub init_code_hashes: Option<Vec<String>>,
    pub selector: Option<String>,
    pub code_hash: Option<String>,
    pub through: Option<Vec<String>>,
    pub windows: Option<Vec<RawWindow>>,
    pub fee: Option<RawFee>,
    pub mode: Option<String>,
    pub approval: Option<RawApproval>,
    pub delay: Option<RawDelay>,
    pub hours: Option<RawHours>,
}

/// `ids = …`
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a list of token ids as strings, or { any = true }")]
pub(super) enum RawIds {
    These(Vec<String>),
    All(RawAll),
}

/// `{ any = true }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAll {
    pub any: bool,
}

/// `approval = …`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApproval {
    pub above: Option<String>,
    pub quorum: BTreeMap<String, u32>,
    pub ttl: String,
}

/// `delay = …`: at least one of the two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDelay {
    pub first_use_of_destination: Option<String>,
    pub always: Option<String>,
}

/// `hours = …`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHours {
    pub days: String,
    pub utc: String,
}

/// `to = …`: exactly one of the three.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTo {
    pub book: Option<String>,
    pub address: Option<Vec<String>>,
    pub any: Option<bool>,
}

/// `value = { max = "…" }`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawValue {
    pub max: String,
}

/// A value in a condition or a case: numbers are strings, so that none is ever rounded.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a boolean (numbers are written as strings)")]
pub(super) enum RawScalar {
    Text(String),
    Flag(bool),
}

/// A condition on one argument.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCondition {
    pub eq: Option<RawScalar>,
    #[serde(rename = "in")]
    pub one_of: Option<Vec<RawScalar>>,
    pub min: Option<String>,
    pub max: Option<String>,
    pub any: Option<bool>,
    pub all: Option<Box<RawCondition>>,
}

/// `event = …` of a call grant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEvent {
    pub contract: String,
    pub signature: String,
    pub args: BTreeMap<String, String>,
}

/// `text = …` of a message grant: exactly one of the three.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawText {
    pub exact: Option<Vec<String>>,
    pub prefix: Option<String>,
    pub any: Option<bool>,
}

/// One window.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWindow {
    pub span: String,
    pub rolling: Option<bool>,
    pub max: Option<String>,
    pub count: Option<u64>,
    pub scope: String,
}

/// `fee = …`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFee {
    pub max_fee_gwei: String,
    pub max_tip_gwei: String,
    pub max_gas: u64,
    pub windows: Option<Vec<RawWindow>>,
}

/// `cases.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CasesFile {
    pub case: Vec<Spanned<RawCase>>,
}

/// One `[[case]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCase {
    pub name: String,
    pub principal: String,
    pub issuer: Option<String>,
    pub signer: String,
    pub now: String,
    pub chain: Option<String>,
    pub chain_id: Option<u64>,
    pub to: Option<String>,
    pub value: Option<String>,
    pub data: Option<String>,
    pub function: Option<String>,
    pub args: Option<Vec<RawScalar>>,
    pub gas: Option<u64>,
    pub max_fee_gwei: Option<String>,
    pub max_tip_gwei: Option<String>,
    pub message: Option<String>,
    pub typed_data: Option<String>,
    pub code_at_to: Option<String>,
    pub codes: Option<BTreeMap<String, String>>,
    pub account: Option<String>,
    pub known_destinations: Option<Vec<String>>,
    pub waiting: Option<String>,
    pub used: Option<BTreeMap<String, String>>,
    pub event: Option<RawCaseEvent>,
    pub expect: String,
    pub grant: Option<String>,
    pub quorum: Option<BTreeMap<String, u32>>,
    pub reason_field: Option<String>,
}

/// The event that a case pretends the server has read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCaseEvent {
    pub contract: String,
    pub signature: String,
    pub args: BTreeMap<String, RawScalar>,
    pub canonical: bool,
    pub finalized: bool,
}
