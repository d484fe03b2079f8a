//! A window by the calendar doubles at midnight: the rolling one beside it does not.

use crate::stage::*;

const ETHER: u128 = 1_000_000_000_000_000_000;

#[test]
fn bypass_19_a_day_by_the_calendar_lifts_no_rolling_window() {
    row("b19-calendar", async |it: Actor| {
        let it = it.stage.actor("b19-daily", "svc:daily").await;
        let pay = |nonce: u64, wei: u128| it.external_body(nonce, &call(PAYEE, wei, "0x"));
        it.allows_signature("half an ether", &pay(0, ETHER / 2)).await;
        it.has_no_room("another, with its fee", &pay(1, ETHER / 2)).await;
        it.allows_signature("less", &pay(1, ETHER / 4)).await;
        it.has_no_room("more than is left", &pay(2, ETHER / 4)).await;
    });
    for (what, from, to) in [
        (
            "a calendar's day that rolls",
            "rolling = true, max = \"2.5\"",
            "rolling = false, max = \"2.5\"",
        ),
        (
            "a span that no calendar has",
            "span = \"24h\", rolling = true, max = \"2.5\"",
            "span = \"year\", rolling = false, max = \"2.5\"",
        ),
        (
            "a rolling day",
            "span = \"24h\", rolling = true, max = \"2.5\"",
            "span = \"day\", rolling = true, max = \"2.5\"",
        ),
    ] {
        assert!(check_bundle("grants.toml", from, to).is_err(), "{what}");
    }
}
