//! From a grant as written to a grant as checked: what all actions share.

use super::condition::read_address;
use super::grant::{FeeRule, Grant, Holds, Mode, Rules, SignerRef, TextRule};
use super::read_window::{WindowRules, read_hours, read_windows};
use super::registry::chain_name;
use super::syntax::{RawFee, RawGrant, RawText};
use super::{Bundle, check_name};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::id::{GrantId, GroupName, KeyId};
use crate::core::intent::Fees;
use crate::core::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const DAY_MS: i64 = 86_400_000;

impl Bundle {
    /// Checks a grant against the issuers and the registry.
    pub(super) fn read_grant(&self, raw: &RawGrant) -> Result<Grant, String> {
        refuse_foreign_fields(raw)?;
        let id = GrantId::new(check_name("id", &raw.id)?);
        for (field, text) in [("owner", &raw.owner), ("reason", &raw.reason)] {
            if text.trim().is_empty() {
                return Err(format!("{field} is empty"));
            }
        }
        Ok(Grant {
            id,
            owner: raw.owner.clone(),
            reason: raw.reason.clone(),
            expires: raw.expires.clone(),
            expires_at: read_expiry(&raw.expires)?,
            principals: self.read_principals(&raw.principals)?,
            signers: read_signers(&raw.signers)?,
            hours: raw.hours.as_ref().map(read_hours).transpose()?,
            mode: read_mode(raw.mode.as_deref())?,
            rules: self.read_rules(raw)?,
        })
    }

    /// Reads `sub`s, each of which some issuer may vouch for as a client.
    pub(super) fn read_principals(&self, subs: &[String]) -> Result<BTreeSet<String>, String> {
        let mut principals = BTreeSet::new();
        for sub in subs {
            let issuers = self.issuers();
            if !issuers.iter().any(|iss| self.issuer_allows(iss, Role::Client, sub)) {
                return Err(format!("no issuer may vouch for `{sub}` as client"));
            }
            if sub.contains('*') || !principals.insert(sub.clone()) {
                return Err(format!("principals: `{sub}` has a `*` or is there twice"));
            }
        }
        if principals.is_empty() {
            return Err("principals is empty: an empty list never means \"all\"".to_owned());
        }
        Ok(principals)
    }

    fn read_rules(&self, raw: &RawGrant) -> Result<Rules, String> {
        if raw.action == "message" {
            if raw.chains.is_some() {
                return Err("a message belongs to no chain: leave `chains` out".to_owned());
            }
            let text = read_text(need("text", raw.text.as_ref())?)?;
            let rules = WindowRules { decimals: None, destinations: false, on_chain: false };
            let windows = read_windows(raw.windows.as_deref(), rules)?;
            return Ok(Rules::Message { text, windows });
        }
        let mut rules = BTreeMap::new();
        for name in need("chains", raw.chains.as_ref())? {
            let chain = chain_name(name)?;
            let rule = self
                .read_chain_rule(raw, &chain)
                .map_err(|problem| format!("on `{chain}`: {problem}"))?;
            if rules.insert(chain, Arc::new(rule)).is_some() {
                return Err(format!("chains: `{name}` is there twice"));
            }
        }
        if rules.is_empty() {
            return Err("chains is empty: an empty list never means \"all\"".to_owned());
        }
        Ok(Rules::OnChain(rules))
    }
}

/// A field that an action must have.
pub(super) fn need<'a, T: ?Sized>(field: &str, value: Option<&'a T>) -> Result<&'a T, String> {
    value.ok_or_else(|| format!("`{field}` is missing"))
}

fn read_mode(mode: Option<&str>) -> Result<Mode, String> {
    match mode {
        None | Some("enforce") => Ok(Mode::Enforce),
        Some("shadow") => Ok(Mode::Shadow),
        Some(other) => Err(format!("mode: `{other}` is neither enforce nor shadow")),
    }
}

/// What each action has beside what all have; `None` for an action that is unknown.
fn own_fields(action: &str) -> Option<&'static [&'static str]> {
    Some(match action {
        "native.transfer" => &["to", "per_tx", "through", "windows", "fee", "approval", "delay"],
        "erc20.transfer" => {
            &["asset", "to", "per_tx", "through", "windows", "fee", "approval", "delay"]
        }
        "erc20.approve" => &[
            "asset",
            "to",
            "per_tx",
            "unlimited",
            "permit_for",
            "through",
            "windows",
            "fee",
            "approval",
            "delay",
        ],
        "erc721.transfer" | "erc1155.transfer" | "nft.transfer" => {
            &["asset", "to", "ids", "per_tx", "through", "windows", "fee", "approval", "delay"]
        }
        "nft.approve" => &["asset", "to", "ids", "through", "windows", "fee", "approval", "delay"],
        "call" => &[
            "contract", "function", "args", "value", "event", "through", "windows", "fee",
            "approval", "delay",
        ],
        "admin" => &[
            "contract", "function", "args", "value", "through", "windows", "fee", "approval",
            "delay",
        ],
        "deploy" => {
            &["init_code_hashes", "value", "through", "windows", "fee", "approval", "delay"]
        }
        "delegate" => &["to", "windows"],
        "opaque" => &[
            "contract",
            "selector",
            "value",
            "code_hash",
            "through",
            "windows",
            "fee",
            "approval",
            "delay",
        ],
        "message" => &["text", "windows"],
        "typed_data" => {
            &["verifying_contract", "primary_type", "type_hash", "encode_type", "args", "windows"]
        }
        _ => return None,
    })
}

/// A field that the action does not have is an error, not noise.
fn refuse_foreign_fields(raw: &RawGrant) -> Result<(), String> {
    let action = raw.action.as_str();
    let own = own_fields(action).ok_or_else(|| format!("action `{action}` is unknown"))?;
    let given = [
        ("asset", raw.asset.is_some()),
        ("to", raw.to.is_some()),
        ("per_tx", raw.per_tx.is_some()),
        ("contract", raw.contract.is_some()),
        ("function", raw.function.is_some()),
        ("args", raw.args.is_some()),
        ("value", raw.value.is_some()),
        ("event", raw.event.is_some()),
        ("text", raw.text.is_some()),
        ("verifying_contract", raw.verifying_contract.is_some()),
        ("primary_type", raw.primary_type.is_some()),
        ("type_hash", raw.type_hash.is_some()),
        ("encode_type", raw.encode_type.is_some()),
        ("unlimited", raw.unlimited.is_some()),
        ("permit_for", raw.permit_for.is_some()),
        ("ids", raw.ids.is_some()),
        ("init_code_hashes", raw.init_code_hashes.is_some()),
        ("selector", raw.selector.is_some()),
        ("code_hash", raw.code_hash.is_some()),
        ("through", raw.through.is_some()),
        ("windows", raw.windows.is_some()),
        ("fee", raw.fee.is_some()),
        ("approval", raw.approval.is_some()),
        ("delay", raw.delay.is_some()),
    ];
    let Some((field, _)) = given.iter().find(|(field, given)| *given && !own.contains(field))
    else {
        return Ok(());
    };
    if matches!(*field, "approval" | "delay") {
        return Err(format!(
            "action `{action}` has no `{field}`: a signature is given at once or not at all, it cannot \
             wait"
        ));
    }
    Err(format!("action `{action}` has no `{field}`"))
}

/// The first moment after the day, UTC.
fn read_expiry(date: &str) -> Result<Timestamp, String> {
    let midnight = Timestamp::parse_rfc3339(&format!("{date}T00:00:00Z"));
    midnight
        .filter(|_| date.len() == "2027-03-31".len())
        .map(|at| at.plus_millis(DAY_MS))
        .ok_or_else(|| format!("expires: `{date}` is not a date like 2027-03-31"))
}

/// Reads groups, keys by id and keys by address.
pub(super) fn read_signers(names: &[String]) -> Result<BTreeSet<SignerRef>, String> {
    let mut signers = BTreeSet::new();
    for name in names {
        let signer = if name.starts_with("0x") || name.starts_with("0X") {
            SignerRef::Address(read_address(name)?)
        } else if let Ok(key) = name.parse::<KeyId>() {
            SignerRef::Key(key)
        } else {
            SignerRef::Group(GroupName::new(check_name("signers", name)?))
        };
        if !signers.insert(signer) {
            return Err(format!("signers: `{name}` is there twice"));
        }
    }
    if signers.is_empty() {
        return Err("signers is empty: an empty list never means \"all\"".to_owned());
    }
    Ok(signers)
}

fn read_text(raw: &RawText) -> Result<TextRule, String> {
    match (&raw.exact, &raw.prefix, raw.any) {
        (Some(texts), None, None) if !texts.is_empty() => {
            if let Some(text) = texts.iter().find(|text| text.len() == 32) {
                return Err(format!("text: `{text}` is as long as a digest, and never signed"));
            }
            Ok(TextRule::Exact(texts.iter().cloned().collect()))
        }
        (None, Some(prefix), None) if !prefix.is_empty() => Ok(TextRule::Prefix(prefix.clone())),
        (None, None, Some(true)) => Ok(TextRule::Any),
        _ => Err("text: say exactly one of exact (not empty), prefix, any = true".to_owned()),
    }
}

/// Reads `fee`.
pub(super) fn read_fee(raw: &RawFee, native_decimals: u8) -> Result<FeeRule, String> {
    let max_fee = read_gwei("fee.max_fee_gwei", &raw.max_fee_gwei)?;
    let max_priority_fee = read_gwei("fee.max_tip_gwei", &raw.max_tip_gwei)?;
    if max_priority_fee > max_fee {
        return Err("fee: max_tip_gwei is above max_fee_gwei".to_owned());
    }
    let rules =
        WindowRules { decimals: Some(native_decimals), destinations: false, on_chain: true };
    let windows =
        read_windows(raw.windows.as_deref(), rules).map_err(|problem| format!("fee: {problem}"))?;
    if windows.iter().any(|window| matches!(window.holds, Holds::Count(_))) {
        return Err("fee: a window of the fee has `max`, not `count`".to_owned());
    }
    let max = Fees { max_fee, max_priority_fee };
    Ok(FeeRule { max, max_gas: raw.max_gas, windows })
}

/// Reads gwei as wei per gas.
pub(super) fn read_gwei(field: &str, text: &str) -> Result<u128, String> {
    let wei = Amount::parse_scaled(text, 9).map_err(|error| format!("{field}: {error}"))?;
    u128::try_from(wei.units()).map_err(|_| format!("{field}: does not fit the unit"))
}
