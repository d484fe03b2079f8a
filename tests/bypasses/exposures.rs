//! Allowances as spend: what somebody may take is held until nobody may.

use crate::stage::*;

const SUB: &str = "svc:allows";
const M: u128 = 1_000_000;

#[test]
fn bypass_08_an_allowance_holds_its_amount_like_a_payment() {
    row("b08-exposures", async |it: Actor| {
        let it = it.stage.actor("b08-allowances", SUB).await;
        let (payee, other) =
            (address(PAYEE), address("0x70997970c51812dc3a010c7d01b50e0d17dc79c8"));
        let give =
            |signature: &str, to: &str, units: u128| function(USD, signature, &[to, &uint(units)]);
        let approve = |to: &str, units: u128| give("approve(address,uint256)", to, units);
        for (what, call) in [
            ("above a payment", approve(&payee, 1000 * M + 1)),
            ("to a stranger", approve(&address(STRANGER), 1)),
            (
                "without an end",
                function(USD, "approve(address,uint256)", &[&payee, &"f".repeat(64)]),
            ),
            (
                "2^255, which is as good",
                function(
                    USD,
                    "approve(address,uint256)",
                    &[&payee, &format!("8{}", "0".repeat(63))],
                ),
            ),
            (
                "half of that twice is not asked",
                function(USD, "increaseAllowance(address,uint256)", &[&payee, &"f".repeat(64)]),
            ),
        ] {
            it.refuses(what, &call).await;
        }
        it.allows_signature("a thousand", &it.external_body(0, &approve(&payee, 1000 * M))).await;
        it.allows_signature(
            "a thousand to another",
            &it.external_body(1, &approve(&other, 1000 * M)),
        )
        .await;
        it.has_no_room("a third thousand", &it.external_body(2, &approve(&payee, 1000 * M))).await;
        let more = give("increaseAllowance(address,uint256)", &payee, 600 * M);
        it.has_no_room("what is added counts too", &it.external_body(2, &more)).await;
        // Never sent, and held all the same.
        it.anvil().mine(4).await;
        it.has_no_room("later", &it.external_body(2, &approve(&payee, 1000 * M))).await;
        it.allows_signature("what is left", &it.external_body(2, &approve(&payee, 400 * M))).await;
        it.allows_signature("taking back", &it.external_body(3, &approve(&payee, 0))).await;
        it.has_no_room(
            "which frees nothing before it is final",
            &it.external_body(4, &approve(&payee, 600 * M)),
        )
        .await;
    });
}
