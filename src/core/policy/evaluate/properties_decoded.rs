//! What must hold of every bundle and request, through the decoder.

use super::evaluate;
use super::fixtures::*;
use crate::core::amount::Amount;
use crate::core::intent::{FeeAsk, Fees, TxType};
use crate::core::policy::{Outcome, PolicyRequest, Verdict};
use alloy::primitives::U256;
use proptest::prelude::*;
use proptest::sample::select;

/// A grant that may fit the requests below, or just not.
fn any_grant(id: &'static str) -> impl Strategy<Value = String> {
    let per_tx = select(vec!["0.000000000000001", "1", "3"]);
    let windows = select(vec![
        "",
        r#"[{ span = "1h", max = "0.004", scope = "key" }]"#,
        r#"[{ span = "1h", max = "5", scope = "group" },
            { span = "1h", count = 2, scope = "key" }]"#,
    ]);
    let fee = select(vec![("100", "5"), ("40", "9"), ("60", "1")]);
    let kind = 0..4_u8;
    (per_tx, windows, fee, kind).prop_map(move |(per_tx, windows, (fee, tip), kind)| {
        let grant = match kind {
            0 => native_grant(id, per_tx, windows),
            1 => {
                native_grant(id, per_tx, windows).replace("{ book = \"payees\" }", "{ any = true }")
            }
            2 => token_grant(id, "100"),
            _ => charge_grant().replace("\"charge\"", &format!("\"{id}\"")),
        };
        grant
            .replace("max_fee_gwei = \"100\"", &format!("max_fee_gwei = \"{fee}\""))
            .replace("max_tip_gwei = \"5\"", &format!("max_tip_gwei = \"{tip}\""))
    })
}

fn any_grants() -> impl Strategy<Value = Vec<String>> {
    (any_grant("a"), any_grant("b"), any_grant("c")).prop_map(|(a, b, c)| vec![a, b, c])
}

fn any_request() -> impl Strategy<Value = PolicyRequest> {
    let base = prop_oneof![
        (select(vec![PAYEE, STRANGER]), 0..4_000_000_000_000_000_000_u128)
            .prop_map(|(to, value)| asks(to, value, vec![])),
        (select(vec![PAYEE, STRANGER]), 0..200_000_000_u64, 0..2_u128)
            .prop_map(|(to, amount, value)| asks(TUSD, value, transfer(to, amount))),
        Just(charge()),
    ];
    let fees = (select(vec![1, 50, 70, 300_u128]), select(vec![0, 3, 50_u128]), any::<bool>());
    let kind = select(vec![TxType::Eip1559, TxType::Legacy]);
    (base, fees, kind, 21_000..120_000_u64).prop_map(
        |(mut request, (fee, tip, exact), kind, gas)| {
            let tx = tx_of(&mut request);
            let tip = if kind == TxType::Legacy { fee } else { tip.min(fee) };
            let gwei = |n: u128| n.saturating_mul(GWEI);
            let fees = Fees { max_fee: gwei(fee), max_priority_fee: gwei(tip) };
            tx.fees = if exact { FeeAsk::Exact(fees) } else { FeeAsk::UpTo(fees) };
            tx.tx_type = kind;
            tx.gas = gas;
            request
        },
    )
}

/// Whether `after` allows nothing that `before` did not.
fn not_looser(before: &Verdict, after: &Verdict) -> bool {
    let fee = |verdict: &Verdict| verdict.fee_cap.map_or(0, |cap| cap.max_fee);
    after.outcome == Outcome::Deny
        || (before.outcome == Outcome::Allow && fee(after) <= fee(before))
}

proptest! {
    #[test]
    fn removing_a_fact_never_loosens(grants in any_grants(), request in any_request()) {
        let bundle = bundle(&grants);
        let before = evaluate(&bundle, &request, now());
        type Removal = fn(&mut PolicyRequest);
        let removals: [Removal; 5] = [
            |r| r.facts.codes.clear(),
            |r| r.facts.event = None,
            |r| r.group = None,
            |r| tx_of(r).source = None,
            |r| tx_of(r).to = None,
        ];
        for remove in removals {
            let mut request = request.clone();
            remove(&mut request);
            prop_assert!(not_looser(&before, &evaluate(&bundle, &request, now())));
        }
    }

    #[test]
    fn nothing_panics_and_allowed_charges_fit(
        grants in any_grants(),
        data in proptest::collection::vec(any::<u8>(), 0..200),
        value in any::<[u8; 32]>(), gas in any::<u64>(), fee in any::<u128>(),
        to in select(vec![PAYEE, PROCESSOR, TUSD]), code_byte in any::<bool>(),
    ) {
        let mut request = asks(to, 0, data);
        let tx = tx_of(&mut request);
        tx.value = Amount::new(U256::from_be_bytes(value));
        tx.gas = gas;
        tx.fees = FeeAsk::Exact(Fees { max_fee: fee, max_priority_fee: fee });
        request.facts = code(to, if code_byte { &[1] } else { &[] });
        let verdict = evaluate(&bundle(&grants), &request, now());
        for charge in verdict.charges {
            prop_assert!(charge.asked().unwrap() <= charge.max);
        }
    }
}
