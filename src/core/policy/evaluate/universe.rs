//! A small universe of grants and effects, in which they really overlap: for properties that must hold of
//! every bundle and request.

#![expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use super::fixtures::{GWEI, code, now, transaction};
use super::judge;
use crate::core::amount::Amount;
use crate::core::id::{GroupName, KeyId};
use crate::core::intent::{FeeAsk, Fees, Intent, TransactionIntent};
use crate::core::policy::effect::{ApprovalForm, CallEffect, OpaqueCall};
use crate::core::policy::{Bundle, Effect, PolicyRequest, Verdict};
use crate::core::principal::Principal;
use alloy::primitives::{Address, B256, U256, address};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use uuid::Uuid;

pub(super) const ANN: Address = address!("0x70997970C51812dc3A010C7d01b50e0d17dc79C8");
pub(super) const BOB: Address = address!("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");
pub(super) const OWN: Address = address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906");
pub(super) const SAFE: Address = address!("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65");
const TILL: Address = address!("0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc");
pub(super) const ETHER: u128 = 1_000_000_000_000_000_000;

const HEAD: &str = r#"
schema = 1
version = "universe"
[[issuer]]
iss = "dev"
roles = ["client"]
subjects = ["svc:*"]
[[issuer]]
iss = "dev"
roles = ["approver", "policy_admin"]
subjects = ["ana", "ben", "cyd"]
[[quorum]]
name = "treasury"
members = ["ana", "ben"]
[[quorum]]
name = "security"
members = ["cyd"]
"#;
const BOOK: &str = r#"
[[contract]]
name = "till"
chain = "local"
address = "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"
abi = "abi/till.json"
[[contract]]
name = "safe"
chain = "local"
address = "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65"
wraps = "safe"
[[list]]
name = "payees"
chain = "local"
addresses = ["0x70997970C51812dc3A010C7d01b50e0d17dc79C8"]
"#;
const ASSETS: &str = r#"
[[asset]]
name = "tusd"
chain = "local"
address = "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512"
decimals = 6
[[asset]]
name = "badges"
chain = "local"
address = "0x976EA74026E726554dB657fA54763abd0C3a0aa9"
standard = "erc1155"
"#;

/// What a grant is for, and an effect is of.
pub(super) const KINDS: u8 = 8;

/// A grant before it is written.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub kind: u8,
    pub anybody: bool,
    pub per_tx: &'static str,
    pub windows: Vec<&'static str>,
    pub fee: (u32, u32),
    pub fee_windows: bool,
    pub approval: Option<&'static str>,
    pub delay: Option<&'static str>,
    pub hours: bool,
    pub expired: bool,
    pub through: bool,
    pub shadow: bool,
}

impl Spec {
    /// A grant that bounds nothing.
    pub fn free(kind: u8) -> Self {
        Self {
            kind,
            anybody: true,
            per_tx: "1000000",
            windows: vec![],
            fee: (1_000, 1_000),
            fee_windows: false,
            approval: None,
            delay: None,
            hours: false,
            expired: false,
            through: true,
            shadow: false,
        }
    }

    fn has_amount(&self) -> bool {
        self.kind != 4
    }

    /// The grant as text.
    pub fn text(&self, id: &str) -> String {
        let to = if self.anybody { "{ any = true }" } else { "{ book = \"payees\" }" };
        let per_tx = self.per_tx;
        let action = match self.kind {
            0 => format!("action = \"native.transfer\"\nto = {to}\nper_tx = \"{per_tx}\""),
            1 => format!(
                "action = \"erc20.transfer\"\nasset = \"tusd\"\nto = {to}\nper_tx = \"{per_tx}\""
            ),
            2 => format!(
                "action = \"erc20.approve\"\nasset = \"tusd\"\nto = {to}\nper_tx = \"{per_tx}\""
            ),
            3 => format!(
                "action = \"nft.transfer\"\nasset = \"badges\"\nto = {to}\nids = {{ any = true }}\n\
                 per_tx = \"{per_tx}\""
            ),
            4 => format!(
                "action = \"nft.approve\"\nasset = \"badges\"\nto = {to}\nids = {{ any = true }}"
            ),
            5 => format!(
                "action = \"call\"\ncontract = \"till\"\nfunction = \"pay(uint256)\"\n\
                 value = {{ max = \"{per_tx}\" }}"
            ),
            6 => format!(
                "action = \"deploy\"\ninit_code_hashes = [\"0x{}\"]\nvalue = {{ max = \"{per_tx}\" }}",
                "07".repeat(32)
            ),
            _ => format!(
                "action = \"opaque\"\ncontract = \"till\"\nselector = \"0x01020304\"\n\
                 value = {{ max = \"{per_tx}\" }}"
            ),
        };
        let fits = |window: &&&str| {
            (self.has_amount() || window.contains("count"))
                && (self.kind != 3 || !window.contains("0.0"))
                && (self.kind != 6 || !window.contains("destination"))
        };
        let windows: Vec<&str> = self.windows.iter().filter(fits).copied().collect();
        let mut text = format!(
            "[[grant]]\nid = \"{id}\"\nowner = \"o\"\nreason = \"r\"\n\
             principals = [\"svc:payouts\"]\nsigners = [\"payments\"]\nchains = [\"local\"]\n\
             expires = \"{}\"\n{action}\n",
            if self.expired { "2020-01-01" } else { "2027-03-31" },
        );
        if !windows.is_empty() {
            text += &format!("windows = [{}]\n", windows.join(", "));
        }
        let fee_windows = if self.fee_windows {
            ", windows = [{ span = \"1h\", max = \"0.004\", scope = \"key\" }]"
        } else {
            ""
        };
        let (fee, tip) = self.fee;
        text += &format!(
            "fee = {{ max_fee_gwei = \"{fee}\", max_tip_gwei = \"{}\", max_gas = 100000{fee_windows} }}\n",
            tip.min(fee)
        );
        match self.approval {
            Some("") => text += "approval = { quorum = { treasury = 1 }, ttl = \"1h\" }\n",
            Some(above) if self.has_amount() => {
                text += &format!(
                    "approval = {{ above = \"{above}\", quorum = {{ treasury = 2, security = 1 }}, \
                     ttl = \"30m\" }}\n"
                );
            }
            _ => {}
        }
        match self.delay {
            Some("first") if self.kind != 6 => {
                text += "delay = { first_use_of_destination = \"24h\" }\n";
            }
            Some(_) => text += "delay = { always = \"2h\" }\n",
            None => {}
        }
        if self.hours {
            // The requests come on a Sunday at noon.
            text += "hours = { days = \"mon-fri\", utc = \"07:00-19:00\" }\n";
        }
        if self.through {
            text += "through = [\"safe\"]\n";
        }
        if self.shadow {
            text += "mode = \"shadow\"\n";
        }
        text
    }
}

pub(super) const WINDOWS: [&str; 6] = [
    r#"{ span = "1h", max = "3", scope = "key" }"#,
    r#"{ span = "24h", max = "9", scope = "group" }"#,
    r#"{ span = "day", rolling = false, max = "2", scope = "destination" }"#,
    r#"{ span = "week", rolling = false, count = 3, scope = "destination" }"#,
    r#"{ span = "24h", max = "0.004", scope = "chain" }"#,
    r#"{ span = "1h", count = 2, scope = "principal" }"#,
];

fn spec(kinds: [u8; 2]) -> impl Strategy<Value = Spec> {
    let often = |most: u32| prop::bool::weighted(f64::from(most) / 100.0);
    (
        (select(kinds.to_vec()), often(90), select(vec!["1", "3", "5", "1000"])),
        prop::collection::vec(select(WINDOWS.to_vec()), 0..3),
        (select(vec![40, 60, 100_u32]), select(vec![1, 5, 9_u32]), often(10)),
        (
            prop::option::weighted(0.25, select(vec!["", "1", "3"])),
            prop::option::weighted(0.25, select(vec!["first", "always"])),
        ),
        (often(4), often(4), often(90), often(5)),
    )
        .prop_map(
            |((kind, anybody, per_tx), windows, (fee, tip, fee_windows), needs, flags)| {
                let (hours, expired, through, shadow) = flags;
                let (approval, delay) = needs;
                let mut windows = windows;
                windows.sort_unstable();
                windows.dedup();
                Spec {
                    kind,
                    anybody,
                    per_tx,
                    windows,
                    fee: (fee, tip),
                    fee_windows,
                    approval,
                    delay,
                    hours,
                    expired,
                    through,
                    shadow,
                }
            },
        )
}

fn effect(kinds: [u8; 2]) -> impl Strategy<Value = Effect> {
    let from = prop_oneof![8 => Just(OWN), 1 => Just(SAFE)];
    (select(kinds.to_vec()), from, select(vec![ANN, ANN, BOB]), 0..4_u64, 0..20_u8).prop_map(
        |(kind, from, to, amount, rare)| {
            let wei = Amount::from(u128::from(amount) * ETHER / 2);
            let tokens = Amount::from(amount * 500_000);
            match kind {
                0 => Effect::NativeOut { from, to, amount: wei },
                1 => Effect::TokenOut { asset: "tusd".into(), from, to, amount: tokens },
                2 => Effect::Approve {
                    asset: "tusd".into(),
                    owner: from,
                    spender: to,
                    amount: if rare == 0 { Amount::new(U256::MAX) } else { tokens },
                    form: ApprovalForm::Approve,
                    permit: None,
                },
                3 => Effect::NftOut {
                    asset: "badges".into(),
                    from,
                    to,
                    id: U256::from(amount),
                    amount: Amount::ONE,
                },
                4 => Effect::OperatorApproval {
                    asset: "badges".into(),
                    owner: from,
                    operator: to,
                    id: None,
                    approved: true,
                },
                5 => Effect::Call(CallEffect {
                    from,
                    contract: "till".into(),
                    to: TILL,
                    function: "pay(uint256)".into(),
                    args: vec![],
                    value: wei,
                }),
                6 => Effect::Create { from, init_code_hash: B256::repeat_byte(7), value: wei },
                _ => Effect::Opaque {
                    why: "unknown function".into(),
                    call: Some(OpaqueCall {
                        from,
                        to: TILL,
                        selector: Some([1, 2, 3, 4]),
                        value: wei,
                        code_hash: None,
                    }),
                },
            }
        },
    )
}

/// Grants and a request with its effects.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub grants: Vec<Spec>,
    /// Beside the grants: guardrails, as text.
    pub rails: String,
    pub request: PolicyRequest,
    pub effects: Vec<Effect>,
}

impl World {
    pub fn bundle(&self) -> Bundle {
        bundle_of(&self.grants, &self.rails, |at| format!("g{at}"))
    }

    pub fn judge(&self) -> Verdict {
        judge(&self.bundle(), &self.request, &self.effects, now())
    }

    pub fn tx(&mut self) -> &mut TransactionIntent {
        match &mut self.request.intent {
            Intent::Transaction(tx) => tx,
            _ => panic!("not a transaction"),
        }
    }

    /// The same request, asking for no more than these fees.
    pub fn at_most(&self, cap: Fees) -> Self {
        let mut world = self.clone();
        if let FeeAsk::UpTo(_) = world.tx().fees {
            world.tx().fees = FeeAsk::UpTo(cap);
        }
        world
    }
}

pub(super) fn bundle_of(grants: &[Spec], rails: &str, id: impl Fn(usize) -> String) -> Bundle {
    let text: String = grants.iter().enumerate().map(|(at, spec)| spec.text(&id(at))).collect();
    load(&text, rails).unwrap_or_else(|error| panic!("{error}\n{text}{rails}"))
}

/// A bundle of the universe.
pub(super) fn load(grants: &str, rails: &str) -> Result<Bundle, crate::core::policy::BundleError> {
    let abi = alloy::json_abi::JsonAbi::parse(["function pay(uint256 id) payable"]).unwrap();
    Bundle::load(&BTreeMap::from([
        ("bundle.toml".to_owned(), format!("{HEAD}{rails}").into_bytes()),
        ("book.toml".to_owned(), BOOK.into()),
        ("assets.toml".to_owned(), ASSETS.into()),
        ("abi/till.json".to_owned(), serde_json::to_vec(&abi).unwrap()),
        ("grants.toml".to_owned(), grants.into()),
    ]))
}

pub(super) const RAILS: [&str; 6] = [
    "[[deny]]\nid = \"no-bob\"\nreason = \"r\"\nchains = [\"local\"]\n\
     to = { address = [\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\"] }\n",
    "[[deny]]\nid = \"no-approvals\"\nreason = \"r\"\nactions = [\"erc20.approve\"]\n",
    "[[limit]]\nid = \"all-native\"\nreason = \"r\"\nchain = \"local\"\nper_tx = \"2\"\n",
    "[[limit]]\nid = \"native-day\"\nreason = \"r\"\nchain = \"local\"\n\
     windows = [{ span = \"24h\", max = \"1.5\", scope = \"chain\" }]\n",
    "[[limit]]\nid = \"tusd-day\"\nreason = \"r\"\nchain = \"local\"\nasset = \"tusd\"\n\
     windows = [{ span = \"24h\", max = \"1\", scope = \"destination\" }]\n",
    "[[limit]]\nid = \"tusd-tx\"\nreason = \"r\"\nchain = \"local\"\nasset = \"tusd\"\nper_tx = \"0.5\"\n",
];

/// Worlds in which grants and effects are of the same two kinds.
pub(super) fn world() -> impl Strategy<Value = World> {
    (0..KINDS, 0..KINDS).prop_flat_map(|(one, other)| {
        let kinds = [one, other];
        let grants = prop::collection::vec(spec(kinds), 2..5);
        let effects = prop::collection::vec(effect(kinds), 1..4);
        let exact = prop::bool::weighted(0.25);
        let fees = (select(vec![35, 50, 300_u128]), select(vec![0, 1, 5_u128]), exact);
        let facts = (any::<bool>(), any::<bool>(), prop::option::of(select(vec![1, 3, 30_i64])));
        let rail = prop::option::weighted(0.2, select(RAILS.to_vec()));
        (grants, effects, fees, facts, rail, 21_000..60_000_u64).prop_map(
            move |(mut grants, mut effects, (fee, tip, exact), (ann, bob, waited), rail, gas)| {
                // Each kind has a grant, so that not all is refused for want of one.
                for (grant, kind) in grants.iter_mut().zip(kinds) {
                    grant.kind = kind;
                }
                let mut tx = transaction(ANN, 0, vec![]);
                tx.gas = gas;
                let fees = Fees { max_fee: fee * GWEI, max_priority_fee: tip.min(fee) * GWEI };
                tx.fees = if exact { FeeAsk::Exact(fees) } else { FeeAsk::UpTo(fees) };
                let amount = Amount::from(u128::from(gas) * fee * GWEI);
                effects.push(Effect::FeeMax { amount });
                let mut facts = code(ANN, &[]);
                facts.known_destinations.extend(ann.then_some([ANN, TILL]).into_iter().flatten());
                facts.known_destinations.extend(bob.then_some(BOB));
                facts.waiting_since = waited.map(|hours| now().plus_millis(-hours * 3_600_000));
                let request = PolicyRequest {
                    principal: Principal { iss: "dev".into(), sub: "svc:payouts".into() },
                    group: Some(GroupName::new("payments")),
                    key: KeyId::new(Uuid::from_u128(7)),
                    address: OWN,
                    intent: Intent::Transaction(Box::new(tx)),
                    facts,
                };
                World { grants, rails: rail.unwrap_or_default().to_owned(), request, effects }
            },
        )
    })
}

pub(super) const OUTCOMES: [&str; 4] = ["allow", "deny", "need_approval", "delay"];

/// How often something was met.
#[derive(Debug, Default)]
pub(super) struct Met(RefCell<BTreeMap<String, usize>>);

impl Met {
    pub(super) fn note(&self, what: impl ToString) {
        *self.0.borrow_mut().entry(what.to_string()).or_default() += 1;
    }

    pub(super) fn outcome(&self, verdict: &Verdict) {
        self.note(verdict.outcome.name());
    }

    /// What was met less often than this.
    fn lacks(&self, least: &[(usize, &[&str])]) -> Vec<String> {
        let met = self.0.borrow();
        let times = |what: &str| met.get(what).copied().unwrap_or(0);
        let all = least.iter().flat_map(|(least, all)| all.iter().map(move |what| (*least, what)));
        all.filter(|(least, what)| times(what) < *least).map(|(_, what)| what.to_string()).collect()
    }
}

/// Runs a property over so many random cases, and over as many again, up to ten times, while something of this was
/// met less often: a property of cases that never happen says nothing.
#[track_caller]
pub(super) fn forall<S: Strategy>(
    cases: u32,
    strategy: &S,
    least: &[(usize, &[&str])],
    property: impl Fn(S::Value, &Met) -> Result<(), TestCaseError>,
) {
    let met = Met::default();
    for _ in 0..10 {
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let run = TestRunner::new(config).run(strategy, |value| property(value, &met));
        run.unwrap_or_else(|error| panic!("{error}"));
        if met.lacks(least).is_empty() {
            return;
        }
    }
    panic!("met too rarely: {:?} of {met:?}", met.lacks(least));
}

#[test]
#[should_panic(expected = "met too rarely: [\"never\"]")]
fn a_property_whose_cases_never_happen_fails() {
    forall(1, &Just(()), &[(1, &["always", "never"])], |(), met| {
        met.note("always");
        Ok(())
    });
}
