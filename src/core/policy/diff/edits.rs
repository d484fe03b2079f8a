//! Bundles as values, and edits of them: fields, parts that come and go, other names. What does not load is no
//! edit.

pub(super) use super::choices::*;
use crate::core::policy::Bundle;
use crate::core::policy::evaluate::fixtures::{calldata, uint};
use alloy::primitives::{Address, keccak256};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A part of its kind. `tight` in a hundred of its fields are other than what lets most pass.
pub(super) fn made(part: &str, mut own: Value, tight: usize, dice: &mut Dice) -> Value {
    for (field, all) in choices(part, &own) {
        if !own[field].is_null() {
            continue;
        }
        let value = if dice.chance(tight) { dice.pick(&all) } else { &all[0] };
        if !value.is_null() {
            own[field] = value.clone();
        }
    }
    // Types and functions are of what they belong to.
    if part == "grant" && own["action"] == "typed_data" {
        let text = if own["primary_type"] == "Memo" { MEMO } else { NOTE };
        own["type_hash"] = json!(keccak256(text).to_string());
        own["encode_type"] = json!(text);
    }
    own.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    own
}

/// What every bundle begins with.
pub(super) fn base() -> Value {
    let at = |name: &str, chain: &str, address: Address, more: Value| {
        let mut it = json!({ "name": name, "chain": chain, "address": address.to_checksum(None) });
        let all = it.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        it
    };
    let (mut contracts, mut lists, mut assets) = (vec![], vec![], vec![]);
    for chain in ["local", "side"] {
        contracts.push(at("till", chain, TILL, json!({ "abi": "abi/till.json" })));
        contracts.push(at("vault", chain, VAULT, json!({})));
        contracts.push(at("safe", chain, SAFE, json!({ "wraps": "safe" })));
        contracts.push(at("account", chain, BOB, json!({ "wraps": "smart-account" })));
        contracts.push(at("permit2", chain, PERMIT2, json!({ "wraps": "permit2" })));
        for (name, all) in [("payees", list(&[ANN, BOB])), ("few", list(&[ANN]))] {
            lists.push(json!({ "name": name, "chain": chain, "addresses": all }));
        }
        assets.push(at("tusd", chain, TUSD, json!({ "decimals": 6 })));
        assets.push(at("tdai", chain, TDAI, json!({ "decimals": 6 })));
        assets.push(at("cards", chain, CARDS, json!({ "standard": "erc721" })));
        assets.push(at("badges", chain, BADGES, json!({ "standard": "erc1155" })));
    }
    json!({
        "bundle.toml": {
            "schema": 1,
            "version": "one",
            "issuer": [
                { "iss": "dev", "roles": ["client"], "subjects": ["svc:*", "ana"] },
                { "iss": "dev", "roles": ["approver", "policy_admin"],
                  "subjects": ["ana", "ben", "cyd", "dot"] },
            ],
            "quorum": [
                { "name": "treasury", "members": ["ana", "ben", "cyd"] },
                { "name": "security", "members": ["ana", "cyd", "dot"] },
            ],
            "limit": [], "deny": [],
        },
        "book.toml": { "contract": contracts, "list": lists },
        "assets.toml": { "asset": assets, "native": [{ "chain": "side", "decimals": 18 }] },
        "grants.toml": { "grant": [] },
    })
}

/// A value as it is written in a line.
fn inline(value: &Value) -> String {
    match value {
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(inline).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Object(all) => {
            let all: Vec<String> =
                all.iter().map(|(name, value)| format!("{name} = {}", inline(value))).collect();
            format!("{{ {} }}", all.join(", "))
        }
        other => other.to_string(),
    }
}

/// A file's text.
fn text(file: &Value) -> String {
    let (mut head, mut tail) = (String::new(), String::new());
    for (name, value) in file.as_object().unwrap() {
        match value {
            Value::Array(all) if all.iter().all(Value::is_object) => {
                for one in all {
                    tail += &format!("[[{name}]]\n");
                    for (field, value) in one.as_object().unwrap() {
                        tail += &format!("{field} = {}\n", inline(value));
                    }
                }
            }
            value => head += &format!("{name} = {}\n", inline(value)),
        }
    }
    head + &tail
}

/// Reads a bundle from its values.
pub(super) fn load(files: &Value) -> Result<Bundle, String> {
    let abi = |names: [&str; 2], more: &[&str]| {
        let [id, amount] = names;
        let own = [
            format!("function pay(uint256 {id}, uint256 {amount}) payable"),
            "function upgradeTo(address implementation) payable".to_owned(),
            "function many(uint256[] ids) payable".to_owned(),
        ];
        let all = own.iter().map(String::as_str).chain(more.iter().copied());
        serde_json::to_vec(&alloy::json_abi::JsonAbi::parse(all).unwrap()).unwrap()
    };
    let mut all: BTreeMap<String, Vec<u8>> = files
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, file)| (name.clone(), text(file).into_bytes()))
        .collect();
    let full = ["function grantRole(bytes32 role, address account)", "function spare(uint256 id)"];
    all.insert("abi/till.json".to_owned(), abi(["id", "amount"], &full));
    all.insert("abi/less.json".to_owned(), abi(["id", "amount"], &[]));
    all.insert("abi/names.json".to_owned(), abi(["amount", "id"], &full));
    // Only those that the book names.
    let book = files["book.toml"].to_string();
    all.retain(|name, _| !name.starts_with("abi/") || book.contains(name.as_str()));
    Bundle::load(&all).map_err(|error| error.to_string())
}

/// One edit: what it does, and the names that it concerns.
#[derive(Clone, Debug)]
pub(super) struct Edit {
    pub kind: String,
    pub names: BTreeSet<String>,
}

fn name_of(own: &Value) -> String {
    let named = ["id", "name", "iss", "chain"].iter().find_map(|field| own[*field].as_str());
    named.unwrap_or_default().to_owned()
}

/// The ids of all grants, limits and denies.
fn rules_of(files: &Value) -> BTreeSet<String> {
    let parts = [("grants.toml", "grant"), ("bundle.toml", "limit"), ("bundle.toml", "deny")];
    let all = parts.iter().flat_map(|(file, part)| files[*file][*part].as_array().unwrap());
    all.map(name_of).collect()
}

/// Edits a bundle in one place. It may not load.
pub(super) fn edit(files: &mut Value, dice: &mut Dice) -> Option<Edit> {
    let part = if dice.chance(60) { ("grants.toml", "grant") } else { *dice.pick(&PARTS) };
    let kind = dice.below(100);
    edit_of(part, kind, files, dice)
}

/// Edits a field of some part of this kind.
pub(super) fn edit_field(
    part: (&'static str, &'static str),
    files: &mut Value,
    dice: &mut Dice,
) -> Option<Edit> {
    edit_of(part, 99, files, dice)
}

fn edit_of(
    part: (&'static str, &'static str),
    kind: usize,
    files: &mut Value,
    dice: &mut Dice,
) -> Option<Edit> {
    if kind < 4 {
        return Some(of_bundle(files, dice));
    }
    if kind < 7 {
        return renamed(files, dice);
    }
    let shared = rules_of(files);
    let all = files[part.0][part.1].as_array_mut()?;
    let mut names = BTreeSet::new();
    let done = if kind < 17 && all.len() > 1 {
        let gone = all.remove(dice.below(all.len()));
        names.insert(name_of(&gone));
        "is gone".to_owned()
    } else if kind < 24 && part.1 != "contract" && part.1 != "asset" {
        let new = another(part.1, all, dice);
        names.insert(name_of(&new));
        all.push(new);
        "is new".to_owned()
    } else {
        let at = dice.below(all.len());
        let own = all.get_mut(at)?;
        names.insert(name_of(own));
        let fields = choices(part.1, own);
        let (field, values) = dice.pick(&fields);
        let other = dice.pick(values).clone();
        // Often in one respect only.
        let value = if dice.chance(60) { nearer(&own[*field], &other, dice) } else { other };
        if own[*field] == value {
            own.as_object_mut()?.retain(|_, value| !value.is_null());
            return None;
        }
        own[*field] = value;
        own.as_object_mut()?.retain(|_, value| !value.is_null());
        names.insert(name_of(own));
        (*field).to_owned()
    };
    if !["grant", "limit", "deny"].contains(&part.1) {
        // What it does is told with whatever names it.
        names.extend(shared);
    }
    Some(Edit { kind: format!("{}.{done}", part.1), names })
}

/// The first value with one part of the second.
fn nearer(value: &Value, other: &Value, dice: &mut Dice) -> Value {
    match (value, other) {
        (Value::Object(own), Value::Object(more)) => {
            let keys: BTreeSet<&String> = own.keys().chain(more.keys()).collect();
            let changed: Vec<&&String> =
                keys.iter().filter(|key| own.get(**key) != more.get(**key)).collect();
            let Some(key) = changed.get(dice.below(changed.len())) else {
                return other.clone();
            };
            let mut near = own.clone();
            match (own.get(**key), more.get(**key)) {
                (Some(own), Some(more)) => near.insert((***key).clone(), nearer(own, more, dice)),
                (None, Some(more)) => near.insert((***key).clone(), more.clone()),
                _ => near.remove(**key),
            };
            Value::Object(near)
        }
        (Value::Array(own), Value::Array(more)) if own.len() == 1 && more.len() == 1 => {
            json!([nearer(&own[0], &more[0], dice)])
        }
        _ => other.clone(),
    }
}

fn of_bundle(files: &mut Value, dice: &mut Dice) -> Edit {
    let fields = choices("bundle", &Value::Null);
    let (field, values) = dice.pick(&fields);
    let head = files["bundle.toml"].as_object_mut().unwrap();
    match dice.pick(values) {
        Value::Null => head.remove(*field),
        value => head.insert((*field).to_owned(), value.clone()),
    };
    Edit { kind: format!("bundle.{field}"), names: BTreeSet::from(["change rule".to_owned()]) }
}

/// Something gets another name, wherever it is named.
fn renamed(files: &mut Value, dice: &mut Dice) -> Option<Edit> {
    let all = [
        ("till", "kiosk"),
        ("tusd", "usdt"),
        ("payees", "all"),
        ("treasury", "board"),
        ("g0", "h0"),
        ("l0", "m0"),
    ];
    let (from, into) = dice.pick(&all);
    let text = files.to_string().replace(&format!("\"{from}\""), &format!("\"{into}\""));
    *files = serde_json::from_str(&text).ok()?;
    let names = [*from, *into].map(str::to_owned).into_iter().chain(rules_of(files)).collect();
    Some(Edit { kind: format!("rename.{from}"), names })
}

/// One more of a kind.
fn another(part: &str, all: &[Value], dice: &mut Dice) -> Value {
    let like = all.get(dice.below(all.len()));
    let own = match part {
        "grant" => {
            json!({ "id": format!("g{}", dice.below(9)), "action": like.unwrap()["action"] })
        }
        "limit" => json!({ "id": format!("l{}", dice.below(3)) }),
        "deny" => json!({ "id": format!("d{}", dice.below(3)) }),
        _ => json!({}),
    };
    made(part, own, 40, dice)
}

/// A bundle with grants of two kinds.
pub(super) fn any_bundle(kinds: [&str; 2], dice: &mut Dice) -> Value {
    for _ in 0..20 {
        let mut files = base();
        let count = dice.below(3).saturating_add(2);
        let grants: Vec<Value> = (0..count)
            .map(|at| {
                let own = json!({ "id": format!("g{at}"), "action": kinds[at % 2] });
                made("grant", own, if at < 2 { 12 } else { 25 }, dice)
            })
            .collect();
        files["grants.toml"]["grant"] = json!(grants);
        for (part, id) in [("limit", "l0"), ("deny", "d0")] {
            if dice.chance(25) {
                files["bundle.toml"][part] = json!([made(part, json!({ "id": id }), 50, dice)]);
            }
        }
        if dice.chance(20) {
            of_bundle(&mut files, dice);
        }
        if load(&files).is_ok() {
            return files;
        }
    }
    let mut files = base();
    let own = json!({ "id": "g0", "action": "native.transfer" });
    files["grants.toml"]["grant"] = json!([made("grant", own, 0, dice)]);
    files
}

/// A bundle with one grant, or one and a guardrail, that lets most pass but for what one field of it says.
pub(super) fn plain_bundle(action: &str, dice: &mut Dice) -> (Value, (&'static str, &'static str)) {
    for _ in 0..20 {
        let mut files = base();
        let mut own = json!({ "id": "g0", "action": action });
        let (place, id) = *dice.pick(&[
            (("grants.toml", "grant"), "g0"),
            (("grants.toml", "grant"), "g0"),
            (("bundle.toml", "limit"), "l0"),
            (("bundle.toml", "deny"), "d0"),
        ]);
        if place.1 == "grant" {
            let fields = choices("grant", &own);
            let (field, values) = dice.pick(&fields);
            own[*field] = dice.pick(values).clone();
        } else {
            files[place.0][place.1] = json!([made(place.1, json!({ "id": id }), 50, dice)]);
        }
        files["grants.toml"]["grant"] = json!([made("grant", own, 0, dice)]);
        if load(&files).is_ok() {
            return (files, place);
        }
    }
    (any_bundle(["native.transfer"; 2], dice), ("grants.toml", "grant"))
}

/// `pay` of the till.
pub(super) fn pay(id: u64, amount: u64) -> Vec<u8> {
    calldata("pay(uint256,uint256)", vec![uint(id), uint(amount)])
}
