//! From a grant as written to a grant as checked: what each action has of its own, on one chain.

use super::Bundle;
use super::grant::{Action, ApprovalRule, ChainRule, DelayRule, Destinations, FeeRule};
use super::read_call::read_hash;
use super::read_grant::{need, read_fee};
use super::read_window::{WindowRules, read_span, read_windows};
use super::registry::{Asset, Standard, read_addresses};
use super::syntax::{RawApproval, RawDelay, RawGrant, RawIds, RawTo};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::id::ChainName;
use alloy::primitives::{Address, B256, U256};
use std::collections::BTreeSet;

/// The unit of amounts, for actions that have some.
type Decimals = Option<u8>;

impl Bundle {
    /// Resolves a grant's action on one of its chains.
    pub(super) fn read_chain_rule(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
    ) -> Result<ChainRule, String> {
        let native = self.registry.native_decimals(chain);
        let (action, decimals) = self.read_action(raw, chain, native)?;
        let destinations = !matches!(action, Action::TypedData(_) | Action::Deploy { .. });
        let rules = WindowRules { decimals, destinations, on_chain: true };
        let windows = read_windows(raw.windows.as_deref(), rules)?;
        Ok(ChainRule {
            through: self.read_through(raw.through.as_deref(), chain)?,
            windows,
            fee: read_fee_of(raw, &action, native)?,
            approval: self.read_approval(raw.approval.as_ref(), decimals, &raw.principals)?,
            delay: raw.delay.as_ref().map(|delay| read_delay(delay, destinations)).transpose()?,
            action,
        })
    }

    fn read_action(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
        native: u8,
    ) -> Result<(Action, Decimals), String> {
        let to = || self.read_to(need("to", raw.to.as_ref())?, chain);
        Ok(match raw.action.as_str() {
            "native.transfer" => {
                let to = to()?;
                let per_tx = scaled("per_tx", need("per_tx", raw.per_tx.as_deref())?, native)?;
                (Action::NativeTransfer { to, per_tx }, Some(native))
            }
            "erc20.transfer" => {
                let asset = self.read_asset(raw, chain, &[Standard::Erc20])?;
                let decimals = asset.decimals;
                let per_tx = scaled("per_tx", need("per_tx", raw.per_tx.as_deref())?, decimals)?;
                let (asset, address, to) = (asset.name.clone(), asset.address, to()?);
                (Action::TokenTransfer { asset, address, to, per_tx }, Some(decimals))
            }
            "erc20.approve" => {
                let asset = self.read_asset(raw, chain, &[Standard::Erc20])?;
                (self.read_token_approve(raw, asset, to()?)?, Some(asset.decimals))
            }
            "erc721.transfer" => self.read_nft(raw, chain, &[Standard::Erc721], to()?)?,
            "erc1155.transfer" => self.read_nft(raw, chain, &[Standard::Erc1155], to()?)?,
            "nft.transfer" => {
                self.read_nft(raw, chain, &[Standard::Erc721, Standard::Erc1155], to()?)?
            }
            "nft.approve" => (self.read_nft_approve(raw, chain, to()?)?, None),
            "call" => (Action::Call(Box::new(self.read_call(raw, chain, false)?)), Some(native)),
            "admin" => (Action::Admin(Box::new(self.read_call(raw, chain, true)?)), Some(native)),
            "deploy" => {
                let hashes = need("init_code_hashes", raw.init_code_hashes.as_deref())?;
                let init_code_hashes = read_hashes("init_code_hashes", hashes)?;
                let value_max = self.read_value_max(raw, chain)?;
                (Action::Deploy { init_code_hashes, value_max }, Some(native))
            }
            "delegate" => (Action::Delegate { to: to()? }, None),
            "opaque" => (self.read_opaque(raw, chain)?, Some(native)),
            "typed_data" => (Action::TypedData(Box::new(self.read_typed(raw, chain)?)), None),
            other => return Err(format!("action `{other}` is unknown")),
        })
    }

    fn read_asset(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
        standards: &[Standard],
    ) -> Result<&Asset, String> {
        let name = need("asset", raw.asset.as_deref())?;
        let asset = self
            .registry
            .asset(chain, name)
            .ok_or_else(|| format!("assets.toml has no asset `{name}` there"))?;
        if !standards.contains(&asset.standard) {
            let (standard, action) = (asset.standard.name(), &raw.action);
            return Err(format!("`{name}` is an {standard} asset: it has no action `{action}`"));
        }
        Ok(asset)
    }

    fn read_token_approve(
        &self,
        raw: &RawGrant,
        asset: &Asset,
        to: Destinations,
    ) -> Result<Action, String> {
        let permit_ms = raw.permit_for.as_deref().map(read_span).transpose();
        let permit_ms = permit_ms.map_err(|problem| format!("permit_for: {problem}"))?;
        if permit_ms.is_none() && raw.fee.is_none() {
            return Err(
                "`fee` is missing; only a grant with `permit_for` can do without: then it \
                        allows signed permits and no transaction"
                    .to_owned(),
            );
        }
        let per_tx = scaled("per_tx", need("per_tx", raw.per_tx.as_deref())?, asset.decimals)?;
        let (asset, address) = (asset.name.clone(), asset.address);
        let unlimited = raw.unlimited.unwrap_or(false);
        Ok(Action::TokenApprove { asset, address, to, per_tx, unlimited, permit_ms })
    }

    fn read_nft(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
        standards: &[Standard],
        to: Destinations,
    ) -> Result<(Action, Decimals), String> {
        let asset = self.read_asset(raw, chain, standards)?;
        let ids = read_ids(need("ids", raw.ids.as_ref())?)?;
        let per_tx = scaled("per_tx", need("per_tx", raw.per_tx.as_deref())?, 0)?;
        let (asset, address) = (asset.name.clone(), asset.address);
        Ok((Action::NftTransfer { asset, address, to, ids, per_tx }, Some(0)))
    }

    fn read_nft_approve(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
        to: Destinations,
    ) -> Result<Action, String> {
        let all = [Standard::Erc20, Standard::Erc721, Standard::Erc1155];
        let asset = self.read_asset(raw, chain, &all)?;
        let ids = read_ids(need("ids", raw.ids.as_ref())?)?;
        if ids.is_some() && asset.standard != Standard::Erc721 {
            return Err(
                "ids: only of ERC-721 a single token is approved; say { any = true }".to_owned()
            );
        }
        let (asset, address) = (asset.name.clone(), asset.address);
        Ok(Action::NftApprove { asset, address, to, ids })
    }

    fn read_to(&self, raw: &RawTo, chain: &ChainName) -> Result<Destinations, String> {
        match (&raw.book, &raw.address, raw.any) {
            (Some(name), None, None) => {
                let list = self.registry.list(chain, name);
                let addresses =
                    list.cloned().ok_or_else(|| format!("the book has no list `{name}` there"))?;
                Ok(Destinations::These { label: format!("book list {name}"), addresses })
            }
            (None, Some(texts), None) => {
                let addresses = read_addresses("to.address", texts)?;
                Ok(Destinations::These { label: texts.join(", "), addresses })
            }
            (None, None, Some(true)) => Ok(Destinations::Any),
            _ => Err("to: say exactly one of book, address, any = true".to_owned()),
        }
    }

    /// Contracts of the book through which the account acts: each must be bound to a kind of wrapper, else
    /// nothing could ever be seen inside its calls.
    fn read_through(
        &self,
        names: Option<&[String]>,
        chain: &ChainName,
    ) -> Result<BTreeSet<Address>, String> {
        let mut through = BTreeSet::new();
        for name in names.unwrap_or_default() {
            let contract = self.book_contract(chain, name)?;
            if contract.wraps.is_none() {
                return Err(format!("through: contract `{name}` has no `wraps` in the book"));
            }
            if !through.insert(contract.address) {
                return Err(format!("through: `{name}` is there twice"));
            }
        }
        if names.is_some() && through.is_empty() {
            return Err("through is empty: leave it out if there is none".to_owned());
        }
        Ok(through)
    }

    fn read_approval(
        &self,
        raw: Option<&RawApproval>,
        decimals: Decimals,
        principals: &[String],
    ) -> Result<Option<ApprovalRule>, String> {
        let Some(raw) = raw else {
            return Ok(None);
        };
        let above = match (&raw.above, decimals) {
            (None, _) => None,
            (Some(text), Some(decimals)) => Some(scaled("approval.above", text, decimals)?),
            (Some(_), None) => return Err("approval: this action has no amount".to_owned()),
        };
        self.check_quorum(&raw.quorum, Role::Approver, principals)
            .map_err(|problem| format!("approval: {problem}"))?;
        let ttl_ms = read_span(&raw.ttl).map_err(|problem| format!("approval: ttl {problem}"))?;
        Ok(Some(ApprovalRule { above, quorum: raw.quorum.clone(), ttl_ms }))
    }
}

fn read_fee_of(raw: &RawGrant, action: &Action, native: u8) -> Result<Option<FeeRule>, String> {
    match (action, &raw.fee) {
        (Action::TypedData(_) | Action::Delegate { .. }, _)
        | (Action::TokenApprove { .. }, None) => Ok(None),
        (_, fee) => read_fee(need("fee", fee.as_ref())?, native).map(Some),
    }
}

fn read_delay(raw: &RawDelay, destinations: bool) -> Result<DelayRule, String> {
    let read = |field: &str, text: &Option<String>| {
        let span = text.as_deref().map(read_span).transpose();
        span.map_err(|problem| format!("delay: {field} {problem}"))
    };
    let first_use_ms = read("first_use_of_destination", &raw.first_use_of_destination)?;
    if first_use_ms.is_some() && !destinations {
        return Err("delay: this goes to no destination".to_owned());
    }
    let always_ms = read("always", &raw.always)?;
    if first_use_ms.is_none() && always_ms.is_none() {
        return Err("delay: say first_use_of_destination, always, or both".to_owned());
    }
    Ok(DelayRule { first_use_ms, always_ms })
}

/// Token ids; `None` for all of them.
fn read_ids(raw: &RawIds) -> Result<Option<BTreeSet<U256>>, String> {
    let texts = match raw {
        RawIds::All(all) if all.any => return Ok(None),
        RawIds::All(_) => return Err("ids: list them, or say { any = true }".to_owned()),
        RawIds::These(texts) => texts,
    };
    let mut ids = BTreeSet::new();
    for text in texts {
        let id = Amount::parse(text).map_err(|error| format!("ids: `{text}`: {error}"))?;
        if !ids.insert(id.units()) {
            return Err(format!("ids: `{text}` is there twice"));
        }
    }
    if ids.is_empty() {
        return Err("ids is empty: an empty list never means \"all\"".to_owned());
    }
    Ok(Some(ids))
}

fn read_hashes(field: &str, texts: &[String]) -> Result<BTreeSet<B256>, String> {
    let mut hashes = BTreeSet::new();
    for text in texts {
        if !hashes.insert(read_hash(field, text)?) {
            return Err(format!("{field}: `{text}` is there twice"));
        }
    }
    if hashes.is_empty() {
        return Err(format!("{field} is empty: an empty list never means \"all\""));
    }
    Ok(hashes)
}

/// Reads an amount in whole units.
pub(super) fn scaled(field: &str, text: &str, decimals: u8) -> Result<Amount, String> {
    Amount::parse_scaled(text, decimals)
        .map_err(|error| format!("{field}: `{text}` with {decimals} decimals: {error}"))
}
