//! From a grant as written to a grant as checked: what all actions share.

use super::condition::read_address;
use super::grant::{FeeRule, Grant, Holds, Mode, Rules, Scope, SignerRef, TextRule, Window};
use super::registry::chain_name;
use super::syntax::{RawFee, RawGrant, RawText, RawWindow};
use super::{Bundle, check_name};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::id::{GrantId, GroupName, KeyId};
use crate::core::intent::Fees;
use crate::core::policy::verdict::Period;
use crate::core::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

const DAY_MS: i64 = 86_400_000;
/// The longest window: a leap year.
const SPAN_MAX_MS: i64 = 366 * DAY_MS;

impl Bundle {
    /// Checks a grant against the issuers and the registry.
    pub(super) fn read_grant(&self, raw: &RawGrant) -> Result<Grant, String> {
        refuse_later_versions(raw)?;
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
            hours: None,
            mode: Mode::Enforce,
            rules: self.read_rules(raw)?,
        })
    }

    fn read_principals(&self, subs: &[String]) -> Result<BTreeSet<String>, String> {
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
            let windows = read_windows(raw.windows.as_deref(), None)?;
            return Ok(Rules::Message { text, windows });
        }
        let mut rules = BTreeMap::new();
        for name in need("chains", raw.chains.as_ref())? {
            let chain = chain_name(name)?;
            let rule = self
                .read_chain_rule(raw, &chain)
                .map_err(|problem| format!("on `{chain}`: {problem}"))?;
            if rules.insert(chain, rule).is_some() {
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

fn refuse_later_versions(raw: &RawGrant) -> Result<(), String> {
    let later = [
        ("approval", raw.approval.is_some()),
        ("delay", raw.delay.is_some()),
        ("hours", raw.hours.is_some()),
        ("through", raw.through.is_some()),
    ];
    if let Some((field, _)) = later.iter().find(|(_, given)| *given) {
        return Err(format!("`{field}` is not supported by this version"));
    }
    match raw.mode.as_deref() {
        None | Some("enforce") => Ok(()),
        Some("shadow") => Err("mode \"shadow\" is not supported by this version".to_owned()),
        Some(other) => Err(format!("mode `{other}` is unknown")),
    }
}

/// A field that the action does not have is an error, not noise.
fn refuse_foreign_fields(raw: &RawGrant) -> Result<(), String> {
    let own: &[&str] = match raw.action.as_str() {
        "native.transfer" => &["to", "per_tx", "windows", "fee"],
        "erc20.transfer" => &["asset", "to", "per_tx", "windows", "fee"],
        "call" => &["contract", "function", "args", "value", "event", "windows", "fee"],
        "message" => &["text", "windows"],
        "typed_data" => {
            &["verifying_contract", "primary_type", "type_hash", "encode_type", "args", "windows"]
        }
        "erc20.approve" | "erc721.transfer" | "deploy" | "delegate" | "sweep" => {
            return Err(format!("action `{}` is not supported by this version", raw.action));
        }
        other => return Err(format!("action `{other}` is unknown")),
    };
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
        ("windows", raw.windows.is_some()),
        ("fee", raw.fee.is_some()),
    ];
    match given.iter().find(|(field, given)| *given && !own.contains(field)) {
        Some((field, _)) => Err(format!("action `{}` has no `{field}`", raw.action)),
        None => Ok(()),
    }
}

/// The first moment after the day, UTC.
fn read_expiry(date: &str) -> Result<Timestamp, String> {
    let midnight = Timestamp::parse_rfc3339(&format!("{date}T00:00:00Z"));
    midnight
        .filter(|_| date.len() == "2027-03-31".len())
        .map(|at| at.plus_millis(DAY_MS))
        .ok_or_else(|| format!("expires: `{date}` is not a date like 2027-03-31"))
}

fn read_signers(names: &[String]) -> Result<BTreeSet<SignerRef>, String> {
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
    let windows = read_windows(raw.windows.as_deref(), Some(native_decimals))
        .map_err(|problem| format!("fee: {problem}"))?;
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

/// Reads windows. `decimals` is the unit of `max`; without one, only counts make sense.
pub(super) fn read_windows(
    raw: Option<&[RawWindow]>,
    decimals: Option<u8>,
) -> Result<Vec<Window>, String> {
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    if raw.is_empty() {
        return Err("windows is empty: leave it out if there is none".to_owned());
    }
    let mut windows: Vec<Window> = Vec::new();
    for one in raw {
        let window = read_window(one, decimals)?;
        let same = |other: &Window| {
            other.period == window.period
                && other.scope == window.scope
                && matches!(other.holds, Holds::Count(_)) == matches!(window.holds, Holds::Count(_))
        };
        if windows.iter().any(same) {
            return Err(format!("windows: two of {} by {}", window.span, window.scope.name()));
        }
        windows.push(window);
    }
    Ok(windows)
}

fn read_window(raw: &RawWindow, decimals: Option<u8>) -> Result<Window, String> {
    if raw.rolling == Some(false) {
        return Err("windows: rolling = false is not supported by this version".to_owned());
    }
    let scope = match raw.scope.as_str() {
        "group" => Scope::Group,
        "key" => Scope::Key,
        "principal" => Scope::Principal,
        "destination" | "chain" => {
            return Err(format!("windows: scope `{}` is not supported by this version", raw.scope));
        }
        other => return Err(format!("windows: scope `{other}` is unknown")),
    };
    let holds = match (&raw.max, raw.count, decimals) {
        (Some(max), None, Some(decimals)) => Holds::Amount(
            Amount::parse_scaled(max, decimals)
                .map_err(|error| format!("windows: max `{max}`: {error}"))?,
        ),
        (Some(_), None, None) => return Err("windows: this action has no amount".to_owned()),
        (None, Some(0), _) => return Err("windows: a count of 0 allows nothing".to_owned()),
        (None, Some(count), _) => Holds::Count(count),
        _ => return Err("windows: say either max or count".to_owned()),
    };
    let span_ms = read_span(&raw.span)
        .ok_or_else(|| format!("windows: span `{}` is not like 30m, 24h, 7d", raw.span))?;
    Ok(Window { period: Period::Rolling(span_ms), span: raw.span.clone(), holds, scope })
}

fn read_span(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let unit_ms: i64 = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => DAY_MS,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
        return None;
    }
    let span_ms = digits.parse::<i64>().ok()?.checked_mul(unit_ms)?;
    (span_ms <= SPAN_MAX_MS).then_some(span_ms)
}
