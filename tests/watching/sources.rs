//! The kinds of sources, from a real chain to the request.

use super::support::services::address_word;
use super::*;

/// Called with anything it stops; with 32 bytes of it, it reverts.
const REVERTER: &str = "0x00000000000000000000000000000000000e0002";
const OURS: &str = "0x00000000000000000000000000000000000e00aa";
const ALSO_OURS: &str = "0x00000000000000000000000000000000000e00bb";
const OTHER_EMITTER: &str = "0x00000000000000000000000000000000000e0003";

/// A source of this kind, and a trigger that calls with an address and an amount from it.
fn kind(name: &str, watches: &str, who: &str, amount: &str) -> String {
    format!(
        r#"
        [[source]]
        name = "{name}"
        chain = "local"
        {watches}
        from_block = 0
        finality = {{ depth = 2 }}
        [[trigger]]
        name = "{name}"
        source = "{name}"
        signer = "payments"
        to = "{EMITTER}"
        function = "note(address who, uint256 amount)"
        args = {{ who = "{who}", amount = "{amount}" }}
        business_id = ["{{chain}}", "{{transaction_hash}}", "{{contract}}"]
        "#
    )
}

impl Stage {
    /// The calldata's address and amount of every request of a trigger, and the address of its business id.
    async fn notes(&self, trigger: &str, count: usize) -> Vec<(String, u128, String)> {
        let of = |request: &Recorded| request.body["metadata"]["trigger"] == trigger;
        let requests = poll_until(LIMIT, &format!("{count} of {trigger}"), async || {
            let all = self.server.requests();
            let found: Vec<Recorded> = all.into_iter().filter(|request| of(request)).collect();
            (found.len() >= count).then_some(found)
        })
        .await;
        let note = |request: &Recorded| {
            let data = request.body["data"].as_str().unwrap().to_owned();
            let who = format!("0x{}", data.get(34..74).unwrap());
            let amount = u128::from_str_radix(data.get(74..138).unwrap(), 16).unwrap();
            let id = request.body["metadata"]["business_id"].as_str().unwrap().to_owned();
            (who, amount, id.rsplit(':').next().unwrap().to_owned())
        };
        requests.iter().map(note).collect()
    }

    fn of_trigger(&self, trigger: &str) -> Vec<Recorded> {
        let all = self.server.requests();
        all.into_iter().filter(|of| of.body["metadata"]["trigger"] == trigger).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_source_makes_requests_of_what_is_its_own_and_of_nothing_else() {
    let native =
        kind("paid", &format!("native_to = [\"{OURS}\", \"{ALSO_OURS}\"]"), "from", "value");
    let function = "function = \"pay(address payee, uint256 wei)\"";
    let watches = format!("calls_to = \"{REVERTER}\"\n{function}");
    let calls = kind("called", &watches, "payee", "wei");
    let any = kind("any", &format!("event = \"{EVENT}\""), "payer", "amount");
    let more = [native, calls, any].concat();
    let stage = Stage::with(Setting { more, ..Setting::default() }).await;
    let code = stage.anvil.rpc("eth_getCode", json!([EMITTER, "latest"])).await;
    stage.anvil.rpc("anvil_setCode", json!([OTHER_EMITTER, code])).await;
    // CALLVALUE ISZERO PUSH1 8 JUMPI PUSH0 PUSH0 REVERT JUMPDEST STOP: it takes no value.
    stage.anvil.rpc("anvil_setCode", json!([REVERTER, "0x34156008575f5ffd5b00"])).await;
    let (one, two) = (stage.anvil.accounts()[1].clone(), stage.anvil.accounts()[2].clone());
    let arguments = [address_word(&two), word(9)];
    let call = stage.anvil.calldata("pay(address,uint256)", &arguments).await;
    // Native: two that count; none without value, none to others.
    stage.anvil.send(&one, OURS, "0x", 5).await;
    stage.anvil.send(&two, ALSO_OURS, "0x1234", 6).await;
    stage.anvil.send(&one, OURS, "0x", 0).await;
    stage.anvil.send(&one, &two, "0x", 7).await;
    stage.anvil.mine(1).await;
    // Calls: one that counts; none of another function, none that failed, none with bytes at its end.
    stage.anvil.send(&one, REVERTER, &call, 0).await;
    stage.anvil.send(&one, REVERTER, "0x12345678", 0).await;
    let failing =
        json!({ "from": one, "to": REVERTER, "data": call, "value": "0x1", "gas": "0x30000" });
    let failed = stage.anvil.send_transaction(failing).await;
    stage.anvil.send(&two, REVERTER, &format!("{call}00"), 0).await;
    // Events: of both contracts.
    stage.anvil.send(&one, OTHER_EMITTER, &format!("0x{}{}", word(4), word(44)), 0).await;
    stage.ask(3).await;
    stage.anvil.mine(3).await;
    let receipt = stage.anvil.wait_for_receipt(&failed, LIMIT).await;
    assert_eq!(receipt["status"], "0x0", "it did fail");

    let watcher = stage.watcher();
    let paid = stage.notes("paid", 2).await;
    assert_eq!(paid, [(one.clone(), 5, OURS.to_owned()), (two.clone(), 6, ALSO_OURS.to_owned())]);
    assert_eq!(stage.notes("called", 1).await, [(two.clone(), 9, REVERTER.to_owned())]);
    let any = stage.notes("any", 2).await;
    assert_eq!(any[0], (one.clone(), 44, OTHER_EMITTER.to_owned()));
    assert_eq!(any[1], (one.clone(), 30, EMITTER.to_owned()));
    stage.outbox("done", 1).await;
    assert_eq!(stage.server.requests().len(), 6, "and no more");
    // What has no log names none to the server; the call with bytes at its end is parked with them.
    let first = stage.of_trigger("paid")[0].clone();
    assert!(
        first.body.get("source").is_none()
            && first.body["metadata"]["event_id"].as_str().unwrap().ends_with(":tx")
    );
    assert!(stage.of_trigger("any")[0].body["source"]["log_index"].is_number());
    let parked = stage.attention("log");
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0]["reason"].as_str().unwrap().contains("undecodable"), "{parked:?}");
    // A reorg takes a transfer back before it is final.
    stage.anvil.send(&one, OURS, "0x", 8).await;
    stage.anvil.mine(1).await;
    poll_until(LIMIT, "a held transfer", async || {
        (stage.count_of("trigger:paid", "held") == 1).then_some(())
    })
    .await;
    stage.reorg(1).await;
    poll_until(LIMIT, "a cancelled transfer", async || {
        (stage.count_of("trigger:paid", "cancelled") == 1).then_some(())
    })
    .await;
    stage.anvil.send(&two, OURS, "0x", 10).await;
    stage.anvil.mine(3).await;
    assert_eq!(stage.notes("paid", 3).await[2], (two, 10, OURS.to_owned()));
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_begins_with_the_beginning_asks_for_what_was_found_before_it() {
    let mut stage = Stage::new().await;
    let watcher = stage.watcher();
    for order in [1, 2] {
        stage.ask(order).await;
        stage.anvil.mine(1).await;
    }
    stage.anvil.mine(2).await;
    stage.outbox("done", 2).await;
    stage.stop(watcher).await;
    let later = |name: &str, since: &str| {
        format!(
            r#"
            [[trigger]]
            name = "{name}"
            source = "asked"
            {since}
            signer = "payments"
            function = "refund(uint256 orderId)"
            args = {{ orderId = "orderId" }}
            business_id = ["{{chain}}", "{{contract}}", "orderId"]
            "#
        )
    };
    let more = later("all", "since = \"beginning\"") + &later("new", "");
    stage.configure(Setting { more, ..Setting::default() });
    let watcher = stage.watcher();
    poll_until(LIMIT, "the old ones", async || (stage.of_trigger("all").len() == 2).then_some(()))
        .await;
    stage.ask(3).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 3).await;
    poll_until(LIMIT, "the new one of both", async || {
        (stage.of_trigger("all").len() == 3 && stage.of_trigger("new").len() == 1).then_some(())
    })
    .await;
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_trigger_that_has_another_source_now_is_told() {
    let mut stage = Stage::new().await;
    stage.server.always(Some((503, "", json!({ "code": "overloaded" }))));
    let watcher = stage.watcher();
    for order in [1, 2] {
        stage.ask(order).await;
        stage.anvil.mine(1).await;
    }
    stage.anvil.mine(2).await;
    stage.outbox("ready", 2).await;
    assert_eq!(stage.status()["orphans"], json!([]));
    stage.stop(watcher).await;
    let config = stage.config();
    let (before, after) = config.split_once("[[trigger]]").unwrap();
    let after = after.replacen("source = \"asked\"", "source = \"others\"", 1);
    let more = format!(
        "[[source]]\nname = \"others\"\nchain = \"local\"\naddress = \"{OTHER_EMITTER}\"\n\
         event = \"{EVENT}\"\n[[trigger]]{after}"
    );
    std::fs::write(stage.path("watcher.toml"), format!("{before}{more}")).unwrap();
    let mut watcher = stage.watcher();
    watcher.wait_for_line("deliveries wait for a consumer that is not configured", LIMIT).await;
    let orphans = stage.status()["orphans"].clone();
    assert_eq!(orphans, json!([{ "consumer": "trigger:charge", "source": "asked", "count": 2 }]));
    stage.stop(watcher).await;
    stage.configure(Setting::default());
    assert_eq!(stage.status()["orphans"], json!([]), "with its source it takes them");
}
