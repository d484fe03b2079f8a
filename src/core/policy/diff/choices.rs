//! What may stand in each field of a bundle, for tests that change one into the other.

use alloy::primitives::{Address, address, keccak256};
use serde_json::{Value, json};

pub(super) const ANN: Address = address!("0x70997970C51812dc3A010C7d01b50e0d17dc79C8");
pub(super) const BOB: Address = address!("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");
pub(super) const OWN: Address = address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906");
pub(super) const SAFE: Address = address!("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65");
pub(super) const TILL: Address = address!("0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc");
pub(super) const VAULT: Address = address!("0x5FbDB2315678afecb367f032d93F642f64180aa3");
pub(super) const TUSD: Address = address!("0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512");
pub(super) const TDAI: Address = address!("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0");
pub(super) const CARDS: Address = address!("0x976EA74026E726554dB657fA54763abd0C3a0aa9");
pub(super) const BADGES: Address = Address::repeat_byte(0x77);
pub(super) const PERMIT2: Address = address!("0x000000000022D473030F116dDEE9F6B43aC78BA3");
pub(super) const KEY: &str = "00000000-0000-0000-0000-000000000007";
pub(super) const NOTE: &str = "Note(uint256 id,string text)";
pub(super) const MEMO: &str = "Memo(uint256 id)";
const EVENT: &str = "Asked(uint256 indexed id, uint256 amount)";
const OTHER_EVENT: &str = "Asked(uint256 indexed amount, uint256 id)";

/// Throws (splitmix64).
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)).checked_rem(u64::try_from(end).unwrap()).unwrap_or(0))
            .unwrap()
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// The parts of a bundle that there are several of: file, name.
pub(super) const PARTS: [(&str, &str); 9] = [
    ("grants.toml", "grant"),
    ("bundle.toml", "issuer"),
    ("bundle.toml", "quorum"),
    ("bundle.toml", "limit"),
    ("bundle.toml", "deny"),
    ("book.toml", "contract"),
    ("book.toml", "list"),
    ("assets.toml", "asset"),
    ("assets.toml", "native"),
];

pub(super) const ACTIONS: [&str; 13] = [
    "native.transfer",
    "erc20.transfer",
    "erc20.approve",
    "nft.transfer",
    "nft.approve",
    "call",
    "admin",
    "deploy",
    "delegate",
    "opaque",
    "message",
    "typed_data",
    "erc721.transfer",
];

/// What may stand in a field; the first is what lets most pass, null is nothing.
type Choices = Vec<(&'static str, Vec<Value>)>;

pub(super) fn list(all: &[Address]) -> Value {
    all.iter().map(|it| json!(it.to_checksum(None))).collect()
}

fn windows(units: &[&str; 3], to: bool) -> Vec<Value> {
    let count = json!({ "span": "1h", "count": 3, "scope": "principal" });
    let mut all = vec![
        Value::Null,
        json!([count]),
        json!([{ "span": "1h", "count": 2, "scope": "principal" }]),
        json!([{ "span": "7d", "count": 2, "scope": "key" }]),
    ];
    if units[0] != "0" {
        let one = |span: &str, max: &str, scope: &str| match span {
            "day" | "week" | "month" => {
                json!({ "span": span, "rolling": false, "max": max, "scope": scope })
            }
            span => json!({ "span": span, "max": max, "scope": scope }),
        };
        for (span, scope) in
            [("24h", "group"), ("24h", "key"), ("1h", "group"), ("day", "group"), ("week", "chain")]
        {
            all.extend(units.iter().map(|max| json!([one(span, max, scope)])));
        }
        all.push(json!([one("month", units[1], "principal"), count]));
        if to {
            all.extend(units.iter().map(|max| json!([one("24h", max, "destination")])));
        }
    }
    all
}

/// What a grant may say.
fn grant(action: &str) -> Choices {
    let native = ["9", "3", "1"];
    let mut all: Choices = vec![
        ("owner", vec![json!("ann"), json!("bob")]),
        ("reason", vec![json!("why"), json!("because")]),
        ("expires", vec![json!("2027-03-31"), json!("2028-03-31"), json!("2020-01-01")]),
        (
            "principals",
            vec![
                json!(["svc:payouts"]),
                json!(["svc:payouts", "svc:other"]),
                json!(["svc:other"]),
                json!(["ana", "svc:payouts"]),
            ],
        ),
        (
            "signers",
            vec![
                json!(["payments"]),
                json!(["payments", "treasury"]),
                json!(["treasury"]),
                json!([KEY]),
                list(&[OWN]),
            ],
        ),
        ("mode", vec![Value::Null, json!("enforce"), json!("shadow")]),
        (
            "hours",
            vec![
                Value::Null,
                json!({ "days": "mon-sun", "utc": "00:00-24:00" }),
                json!({ "days": "sun", "utc": "07:00-19:00" }),
                json!({ "days": "sun", "utc": "11:00-13:00" }),
                json!({ "days": "mon-fri", "utc": "07:00-19:00" }),
            ],
        ),
    ];
    let chains = vec![json!(["local"]), json!(["local", "side"]), json!(["side"])];
    let fee_windows = [
        Value::Null,
        json!([{ "span": "1h", "max": "0.004", "scope": "key" }]),
        json!([
            { "span": "1h", "max": "0.005", "scope": "key" },
            { "span": "24h", "max": "0.009", "scope": "chain" }
        ]),
    ];
    let mut fees = Vec::new();
    for (fee, tip, gas) in [
        (100, 5, 100_000),
        (60, 5, 100_000),
        (100, 2, 100_000),
        (100, 5, 50_000),
        (150, 9, 200_000),
    ] {
        for windows in &fee_windows {
            let mut it = json!({ "max_fee_gwei": fee.to_string(), "max_tip_gwei": tip.to_string(),
                                 "max_gas": gas });
            if !windows.is_null() {
                it["windows"] = windows.clone();
            }
            fees.push(it);
        }
    }
    let approval = |above: &[&str]| {
        let mut all = vec![Value::Null];
        for (quorum, ttl) in [
            (json!({ "treasury": 1 }), "1h"),
            (json!({ "treasury": 2 }), "1h"),
            (json!({ "treasury": 1 }), "2h"),
            (json!({ "security": 1 }), "1h"),
            (json!({ "treasury": 1, "security": 1 }), "30m"),
        ] {
            all.push(json!({ "quorum": quorum, "ttl": ttl }));
            all.extend(
                above.iter().map(|above| json!({ "above": above, "quorum": quorum, "ttl": ttl })),
            );
        }
        all
    };
    let delay = |to: bool| {
        let mut all = vec![
            Value::Null,
            json!({ "always": "2h" }),
            json!({ "always": "4h" }),
            json!({ "always": "30m" }),
        ];
        if to {
            all.push(json!({ "first_use_of_destination": "24h" }));
            all.push(json!({ "first_use_of_destination": "2h" }));
            all.push(json!({ "first_use_of_destination": "24h", "always": "2h" }));
        }
        all
    };
    let through =
        vec![Value::Null, json!(["safe"]), json!(["safe", "account"]), json!(["account"])];
    let to = vec![
        json!({ "any": true }),
        json!({ "book": "payees" }),
        json!({ "book": "few" }),
        json!({ "address": list(&[ANN, TILL]) }),
        json!({ "address": list(&[BOB]) }),
    ];
    let value = vec![json!({ "max": "9" }), json!({ "max": "1" }), Value::Null];
    let amounts = vec![json!("9"), json!("3"), json!("1")];
    let ids = vec![json!({ "any": true }), json!(["1"]), json!(["1", "2"]), json!(["2"])];
    let has = |names: &[&str]| names.contains(&action);
    if !has(&["message"]) {
        all.push(("chains", chains));
    }
    if !has(&["message", "typed_data", "delegate"]) {
        let above: &[&str] = if has(&["nft.approve"]) { &[] } else { &["0", "1", "3"] };
        if has(&["erc20.approve"]) {
            fees.push(Value::Null);
        }
        all.push(("fee", fees));
        all.push(("approval", approval(above)));
        all.push(("delay", delay(!has(&["deploy"]))));
        all.push(("through", through));
    }
    let has_to = !has(&["message", "typed_data", "deploy"]);
    let units =
        if has(&["nft.approve", "delegate", "message", "typed_data"]) { ["0"; 3] } else { native };
    let mut held = windows(&units, has_to);
    if has(&["message"]) {
        held.retain(|it| !it.to_string().contains("chain"));
    }
    all.push(("windows", held));
    if has_to && !has(&["call", "admin", "opaque"]) {
        all.push(("to", to));
    }
    if has(&[
        "native.transfer",
        "erc20.transfer",
        "erc20.approve",
        "nft.transfer",
        "erc721.transfer",
    ]) {
        all.push(("per_tx", amounts));
    }
    let condition = |name: &str, tests: &[Value]| -> Vec<Value> {
        let one = |test: &Value| json!({ name: test });
        std::iter::once(Value::Null).chain(tests.iter().map(one)).collect()
    };
    let numbers = [
        json!({ "max": "5" }),
        json!({ "max": "7" }),
        json!({ "min": "1", "max": "5" }),
        json!({ "min": "2" }),
        json!({ "eq": "4" }),
        json!({ "in": ["4", "6"] }),
        json!({ "in": ["4"] }),
        json!({ "any": true }),
    ];
    match action {
        "erc20.transfer" | "erc20.approve" => {
            all.push(("asset", vec![json!("tusd"), json!("tdai")]));
        }
        "nft.transfer" | "erc721.transfer" | "nft.approve" => {
            all.push(("asset", vec![json!("cards"), json!("badges")]));
            all.push(("ids", ids));
        }
        "call" => {
            let args = ["id", "amount"].map(|name| condition(name, &numbers)).concat();
            let many = condition(
                "ids",
                &[
                    json!({ "all": { "max": "5" } }),
                    json!({ "all": { "max": "7" } }),
                    json!({ "all": { "eq": "4" } }),
                    json!({ "any": true }),
                ],
            );
            let event = |contract: &str, signature: &str, args: Value| json!({ "contract": contract, "signature": signature, "args": args });
            let straight = json!({ "id": "id", "amount": "amount" });
            all.push(("contract", vec![json!("till"), json!("vault")]));
            all.push((
                "function",
                vec![json!("pay(uint256,uint256)"), json!("many(uint256[])"), json!("0x01020304")],
            ));
            all.push(("args", [args, many].concat()));
            all.push(("value", value));
            all.push((
                "event",
                vec![
                    Value::Null,
                    event("till", EVENT, straight.clone()),
                    event("vault", EVENT, straight),
                    event("till", EVENT, json!({ "id": "amount", "amount": "id" })),
                    event("till", OTHER_EVENT, json!({ "id": "id", "amount": "amount" })),
                ],
            ));
        }
        "admin" => {
            all.push(("contract", vec![json!("till")]));
            all.push((
                "function",
                vec![json!("upgradeTo(address)"), json!("grantRole(bytes32,address)")],
            ));
            let own = [json!({ "eq": ANN.to_checksum(None) }), json!({ "in": list(&[ANN, BOB]) })];
            all.push(("args", condition("implementation", &own)));
            all.push(("value", value));
        }
        "deploy" => {
            let hash = |code: &[u8]| json!(keccak256(code).to_string());
            let (one, two) = (hash(&[1]), hash(&[2]));
            all.push(("init_code_hashes", vec![json!([one, two]), json!([one]), json!([two])]));
            all.push(("value", value));
        }
        "opaque" => {
            all.push(("contract", vec![json!("vault"), json!("till")]));
            all.push(("selector", vec![json!("0x01020304"), json!("0x01020305"), json!("none")]));
            let hash = |code: &[u8]| json!(keccak256(code).to_string());
            all.push(("code_hash", vec![Value::Null, hash(&[0x60]), hash(&[0x61])]));
            all.push(("value", value));
        }
        "message" => all.push((
            "text",
            vec![
                json!({ "any": true }),
                json!({ "prefix": "hello" }),
                json!({ "prefix": "hello w" }),
                json!({ "exact": ["hello world", "bye"] }),
                json!({ "exact": ["hello world"] }),
            ],
        )),
        "typed_data" => {
            let hash = |text: &str| json!(keccak256(text).to_string());
            all.push(("verifying_contract", vec![json!("till"), json!("vault")]));
            all.push(("primary_type", vec![json!("Note"), json!("Memo")]));
            all.push(("type_hash", vec![hash(NOTE), hash(MEMO)]));
            all.push(("encode_type", vec![json!(NOTE), json!(MEMO), Value::Null]));
            all.push(("args", condition("id", &numbers)));
        }
        _ => {}
    }
    if action == "erc20.approve" {
        all.push(("unlimited", vec![json!(true), Value::Null, json!(false)]));
        all.push(("permit_for", vec![json!("30d"), json!("1h"), Value::Null]));
    }
    all
}

/// What each field of a part may say. `own` says which part it is.
pub(super) fn choices(part: &str, own: &Value) -> Choices {
    let subs = vec![
        Value::Null,
        json!(["svc:payouts"]),
        json!(["svc:payouts", "svc:other"]),
        json!(["svc:other"]),
    ];
    let signers = vec![
        Value::Null,
        json!(["payments"]),
        json!(["treasury", "payments"]),
        json!(["treasury"]),
        json!([KEY]),
    ];
    let chain = vec![json!("local"), json!("side")];
    let addresses = |all: &[Address]| all.iter().map(|it| json!(it.to_checksum(None))).collect();
    match part {
        "grant" => grant(own["action"].as_str().unwrap()),
        "issuer" => vec![
            ("iss", vec![json!("dev"), json!("other"), json!("third")]),
            (
                "roles",
                vec![
                    json!(["client"]),
                    json!(["approver", "policy_admin"]),
                    json!(["client", "approver", "policy_admin"]),
                    json!(["auditor"]),
                ],
            ),
            (
                "subjects",
                vec![
                    json!(["svc:*"]),
                    json!(["svc:payouts", "svc:other"]),
                    json!(["svc:payouts"]),
                    json!(["*"]),
                    json!(["ana", "ben", "cyd", "dot"]),
                ],
            ),
        ],
        "quorum" => vec![
            ("name", vec![json!("treasury"), json!("security"), json!("board")]),
            (
                "members",
                vec![
                    json!(["ana", "ben"]),
                    json!(["ana", "ben", "cyd"]),
                    json!(["ana", "cyd", "dot"]),
                    json!(["cyd", "dot"]),
                ],
            ),
        ],
        "limit" => vec![
            ("reason", vec![json!("why"), json!("because")]),
            ("chain", chain),
            ("asset", vec![Value::Null, json!("tusd"), json!("tdai")]),
            ("per_tx", vec![Value::Null, json!("5"), json!("2"), json!("1")]),
            ("windows", windows(&["5", "2", "1"], true)),
        ],
        "deny" => vec![
            ("reason", vec![json!("why"), json!("because")]),
            ("principals", subs),
            ("signers", signers),
            (
                "chains",
                vec![Value::Null, json!(["local"]), json!(["local", "side"]), json!(["side"])],
            ),
            (
                "actions",
                vec![
                    Value::Null,
                    json!(["native.transfer", "erc20.transfer"]),
                    json!(["erc20.approve", "call"]),
                    json!(["opaque", "typed_data", "native.transfer"]),
                ],
            ),
            (
                "to",
                vec![
                    Value::Null,
                    json!({ "address": list(&[BOB]) }),
                    json!({ "address": list(&[BOB, TILL]) }),
                    json!({ "book": "few" }),
                    json!({ "any": true }),
                ],
            ),
        ],
        "contract" => vec![
            ("name", vec![own["name"].clone(), json!("till"), json!("vault"), json!("safe")]),
            ("chain", chain),
            ("address", addresses(&[TILL, VAULT, SAFE, CARDS, BOB, PERMIT2])),
            (
                "abi",
                vec![
                    Value::Null,
                    json!("abi/till.json"),
                    json!("abi/less.json"),
                    json!("abi/names.json"),
                ],
            ),
            (
                "wraps",
                [
                    "safe",
                    "smart-account",
                    "permit2",
                    "multicall",
                    "multicall3",
                    "multisend",
                    "seaport",
                ]
                .map(|kind| json!(kind))
                .into_iter()
                .chain([Value::Null])
                .collect(),
            ),
        ],
        "list" => vec![
            ("name", vec![json!("payees"), json!("few"), json!("more")]),
            ("chain", chain),
            (
                "addresses",
                vec![list(&[ANN, BOB, TILL]), list(&[ANN]), list(&[ANN, BOB]), list(&[BOB])],
            ),
        ],
        "asset" => vec![
            ("name", vec![own["name"].clone(), json!("tusd"), json!("tdai"), json!("cards")]),
            ("chain", chain),
            ("address", addresses(&[TUSD, TDAI, CARDS, VAULT])),
            ("decimals", vec![own["decimals"].clone(), json!(6), json!(7), json!(5)]),
            (
                "standard",
                vec![own["standard"].clone(), json!("erc20"), json!("erc721"), json!("erc1155")],
            ),
        ],
        "native" => vec![("chain", chain), ("decimals", vec![json!(18), json!(17), json!(19)])],
        "bundle" => vec![
            ("version", vec![json!("one"), json!("two")]),
            ("parent", vec![Value::Null, json!("00".repeat(32))]),
            (
                "change",
                vec![
                    Value::Null,
                    json!({ "quorum": { "security": 1 } }),
                    json!({ "quorum": { "security": 1 }, "delay": "24h" }),
                    json!({ "quorum": { "security": 2 }, "delay": "24h" }),
                    json!({ "quorum": { "treasury": 1 }, "delay": "1h" }),
                ],
            ),
        ],
        other => panic!("{other}"),
    }
}
