//! While the server waits, what it has goes on and nothing new begins, at whatever step it was stopped.

use crate::backup::Backup;
use crate::command::{apply, claviger, reconcile};
use crate::stage::{FAILPOINT, Options, RESEND_SOON, Stage, attempts, id, is};
use crate::support::server::{ETHER, LIMIT, Server, payout, payout_grants};
use crate::support::services::poll_until;
use claviger::app::suspension::suspend;
use claviger::core::amount::Amount;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock;
use claviger::ports::store::look;
use claviger::system::SystemClock;
use serde_json::Value;
use std::collections::BTreeSet;

const OFTEN: (&str, &str) = ("CLAVIGER__AUDIT__CHECKPOINT_EVERY", "50ms");

/// Stops the server at a fail point with one payment in hand, and has the next one wait.
async fn stopped(stage: &Stage, point: &str) -> Server {
    let server = stage.setup.start(&[(FAILPOINT, point)]).await;
    let _ = stage.try_pay(&server, "pay").await;
    server.crashed().await;
    wait(stage).await;
    stage.setup.start(&[]).await
}

async fn wait(stage: &Stage) {
    let store = stage.setup.store().await;
    assert!(suspend(&*store, "a test says so", Timestamp::from_millis(1)).await.unwrap());
}

async fn goes_on(stage: &Stage, server: Server) {
    server.stop().await;
    assert_eq!(apply(&stage.setup, &[]).code, Some(0));
    let server = stage.setup.start(&[]).await;
    let paid = stage.pay(&server, "pay").await;
    stage.mine_until_mined(&server, &id(&paid)).await;
    stage.finish(&server, &id(&paid)).await;
    assert_eq!(stage.paid().await, 1);
    stage.check().await;
}

/// Nothing of the one request is with the nodes, once the server has said these words again and again.
async fn nothing_is_sent(stage: &Stage, server: &Server, words: &str) -> Value {
    poll_until(LIMIT, words, async || {
        (server.program.stderr().matches(words).count() > 2).then_some(())
    })
    .await;
    let all = server.list().await;
    assert!(stage.proxy.sent().is_empty());
    all[0].clone()
}

async fn new_stage() -> Stage {
    let stage = Stage::new().await;
    let (server, _) = stage.open(&[]).await;
    server.stop().await;
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_request_is_given_no_nonce() {
    let stage = new_stage().await;
    let server = stopped(&stage, "accept.after_commit").await;
    let asked = nothing_is_sent(&stage, &server, "the lane is halted").await;
    assert!(is(&asked, &["queued"]) && asked["nonce"].is_null(), "{asked:#?}");
    goes_on(&stage, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_is_not_signed() {
    let stage = new_stage().await;
    let server = stopped(&stage, "lane.after_decided").await;
    let asked = nothing_is_sent(&stage, &server, "not signed: the server waits").await;
    assert!(is(&asked, &["submitted"]) && attempts(&asked).is_empty(), "{asked:#?}");
    goes_on(&stage, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_out_is_sent_again_and_not_replaced() {
    let stage = new_stage().await;
    let server = stage.setup.start(&[]).await;
    let asked = stage.pay(&server, "pay").await;
    server.stop().await;
    wait(&stage).await;
    // A replacement is due after a second.
    let server = stage.setup.start(&[RESEND_SOON]).await;
    let before = stage.proxy.sent().len();
    poll_until(LIMIT, "sent again", async || {
        (stage.proxy.sent().len() >= before + 3).then_some(())
    })
    .await;
    let sent: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!(sent.len(), 1, "the same bytes");
    assert_eq!(attempts(&server.read(&id(&asked)).await).len(), 1);
    // It is followed to its end.
    stage.mine_until_mined(&server, &id(&asked)).await;
    stage.finish(&server, &id(&asked)).await;
    let config = stage.setup.config().display().to_string();
    let told = claviger(&["reconcile", "--config", &config], &[]);
    for part in ["suspended since 1970-01-01T00:00:00.001Z: a test says so", "all mined nonces are"]
    {
        assert!(told.out.contains(part), "{told:#?}");
    }
    goes_on(&stage, server).await;
}

/// The database has given three nonces fewer than its signer remembers, and its log looks right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonces_that_only_the_signer_remembers_are_waited_for() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let first = stage.pay(&server, "first").await;
    stage.mine_until_mined(&server, &id(&first)).await;
    stage.finish(&server, &id(&first)).await;
    server.stop().await;
    let memory = stage.setup.dir().join("audit.record.database");
    let text = std::fs::read_to_string(&memory).unwrap();
    assert_eq!(text, format!("claviger database memory 1\nlane 31337 {address} 1\n"));
    std::fs::write(&memory, text.replace(" 1\n", " 4\n").replace("memory 4", "memory 1")).unwrap();
    let server = stage.setup.start(&[]).await;
    let waits = server.ask(crate::stage::SUB, "pay", &crate::support::server::payout(1)).await;
    assert_eq!((waits.status, waits.code()), (503, "reconcile-required"), "{:#}", waits.body);
    assert!(waits.body["detail"].as_str().unwrap().contains("4 were given before"));
    server.stop().await;
    let early = apply(&stage.setup, &[]);
    assert_eq!(early.code, Some(1), "{early:#?}");
    assert!(early.explained().contains("nonces up to 3 were given"), "{early:#?}");
    assert_eq!(apply(&stage.setup, &["--even-if-pending"]).code, Some(0));
    assert_eq!(std::fs::read_to_string(&memory).unwrap(), text, "it goes by the database again");
    let server = stage.setup.start(&[]).await;
    let next = stage.pay(&server, "pay").await;
    assert_eq!(next["nonce"], "1");
    stage.mine_until_mined(&server, &id(&next)).await;
    stage.finish(&server, &id(&next)).await;
    stage.check().await;
}

/// A key that was made and used in the lost time is in the signer's memory only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_only_the_signer_remembers_is_waited_for() {
    let stage = Stage::new().await;
    let (server, _) = stage.open(&[]).await;
    let first = stage.pay(&server, "first").await;
    stage.mine_until_mined(&server, &id(&first)).await;
    stage.finish(&server, &id(&first)).await;
    server.stop().await;
    let memory = stage.setup.dir().join("audit.record.database");
    let text = std::fs::read_to_string(&memory).unwrap();
    let gone = "0x00000000000000000000000000000000000000aa";
    let unused = "0x00000000000000000000000000000000000000bb";
    let more = format!("{text}lane 31337 {gone} 3\nlane 31337 {unused} 0\n");
    std::fs::write(&memory, &more).unwrap();
    let server = stage.setup.start(&[]).await;
    let waits = server.ask(crate::stage::SUB, "pay", &crate::support::server::payout(1)).await;
    assert_eq!((waits.status, waits.code()), (503, "reconcile-required"), "{:#}", waits.body);
    server.stop().await;
    assert_eq!(std::fs::read_to_string(&memory).unwrap(), more, "it is not overwritten");

    let early = apply(&stage.setup, &[]);
    assert_eq!(early.code, Some(1), "{early:#?}");
    let forgotten = early.json()["forgotten"].clone();
    assert_eq!((forgotten[0]["address"].as_str(), forgotten[1].as_object()), (Some(gone), None));
    let config = stage.setup.config().display().to_string();
    let plain = claviger(&["reconcile", "--config", &config], &[]);
    assert!(plain.out.contains("says that 3 nonces were given"), "{plain:#?}");
    assert_eq!(std::fs::read_to_string(&memory).unwrap(), more, "it is not overwritten");
    assert_eq!(apply(&stage.setup, &["--even-if-pending"]).code, Some(0));
    assert_eq!(std::fs::read_to_string(&memory).unwrap(), text, "it goes by the database again");
    let server = stage.setup.start(&[]).await;
    let next = stage.pay(&server, "pay").await;
    stage.mine_until_mined(&server, &id(&next)).await;
    stage.finish(&server, &id(&next)).await;
    stage.check().await;
}

fn delayed(window_ether: &str) -> String {
    format!("{}delay = {{ always = \"1h\" }}\n", payout_grants(window_ether))
}

/// Kills the server once its log is signed, and puts the database back.
async fn lose(stage: &Stage, mut server: Server, backup: &Backup) {
    let last = server.checkpoint().await.0;
    let record = stage.setup.dir().join("audit.record");
    poll_until(LIMIT, "the log is signed", async || {
        let note = std::fs::read_to_string(&record).unwrap();
        (note.lines().nth(1).unwrap().parse::<u64>().unwrap() >= last).then_some(())
    })
    .await;
    server.program.kill9();
    drop(server);
    backup.put_back(&stage.setup).await;
}

/// What is held and spent of the one window, in wei.
async fn window(stage: &Stage) -> (u128, u128) {
    let store = stage.setup.store().await;
    let limits = look(&*store, "limits", |unit| {
        Box::pin(async move { unit.limits_now(SystemClock.now()).await })
    });
    let wei = |amount: Amount| u128::try_from(amount.units()).unwrap();
    match limits.await.unwrap().as_slice() {
        [] => (0, 0),
        [one] => (wei(one.held), wei(one.spent)),
        more => panic!("one window: {more:#?}"),
    }
}

/// A request waited when the backup was made and was paid after it: its spend counts, also where there is no
/// room for it by now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_and_is_paid_already_counts_in_its_window() {
    let grants = Some(delayed("1.5"));
    let stage = Stage::with(Options { grants, ..Options::default() }).await;
    let bundle = stage.setup.dir().join("policies/grants.toml");
    let often = OFTEN;
    let (server, _) = stage.open(&[often]).await;
    let waits = stage.ask(&server, "pay", &payout(ETHER)).await;
    assert!(is(&waits, &["delayed"]), "{waits:#?}");
    server.stop().await;
    let backup = Backup::take(&stage.setup).await;

    // The next bundle lets it go on at once.
    std::fs::write(&bundle, payout_grants("1.5")).unwrap();
    let server = stage.setup.start(&[often]).await;
    stage.mine_until_mined(&server, &id(&waits)).await;
    stage.finish(&server, &id(&waits)).await;
    lose(&stage, server, &backup).await;
    assert_eq!(window(&stage).await, (0, 0));

    // The one after that has a smaller window than what was paid.
    std::fs::write(&bundle, delayed("0.5")).unwrap();
    let server = stage.setup.start(&[often]).await;
    assert!(is(&server.read(&id(&waits)).await, &["delayed"]));
    server.stop().await;
    assert_eq!(reconcile(&stage.setup, &[]).kinds(), ["queued"]);
    let applied = apply(&stage.setup, &[]);
    assert_eq!(applied.code, Some(0), "{applied:#?}");
    let (held, spent) = window(&stage).await;
    assert!(held > ETHER && spent == 0, "with the most that its fees could be: {held} {spent}");
    let server = stage.setup.start(&[often]).await;
    let paid = server.wait_for(&id(&waits), &["finalized"]).await;
    assert!(paid["adopted"] == true && stage.paid().await == 1, "{paid:#?}");
    server.stop().await;
    let (left, spent) = window(&stage).await;
    assert!(left == 0 && spent > ETHER && spent < held, "it is settled: {left} {spent}");
    stage.check().await;
}

/// Of two requests for the same, one waits for people or time and the other one was queued and paid: the one that
/// nobody has let go on is not taken for paid, and the paid one is not paid again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_is_what_was_sent_and_its_older_twin_waits_on() {
    const OTHER: &str = "svc:watcher";
    let one = ("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "1");
    let at_once =
        payout_grants("10").replace("svc:payouts", OTHER).replace("\"payouts\"", "\"at-once\"");
    let grants = Some(delayed("10") + &at_once);
    let stage = Stage::with(Options { grants, ..Options::default() }).await;
    let (server, _) = stage.open(&[OFTEN, one]).await;
    let older = stage.ask(&server, "older", &payout(ETHER)).await;
    assert!(is(&older, &["delayed"]), "{older:#?}");
    let mut sent = Vec::new();
    for key in ["ahead", "twin"] {
        let asked = server.ask(OTHER, key, &payout(ETHER)).await;
        stage.was_answered(&asked.id());
        sent.push(asked.id());
    }
    server.wait_for(&sent[0], &["submitted"]).await;
    assert!(is(&server.read(&sent[1]).await, &["queued"]));
    server.stop().await;
    let backup = Backup::take(&stage.setup).await;
    let server = stage.setup.start(&[OFTEN, one]).await;
    for id in &sent {
        stage.mine_until_mined(&server, id).await;
        stage.finish(&server, id).await;
    }
    lose(&stage, server, &backup).await;

    let told = reconcile(&stage.setup, &[]);
    assert_eq!(told.kinds(), ["queued"], "{told:#?}");
    let findings = told.json()["accounts"][0]["findings"].clone();
    assert_eq!(findings[0]["request"], *sent[1], "{told:#?}");
    assert_eq!(apply(&stage.setup, &[]).code, Some(0));
    let server = stage.setup.start(&[OFTEN, one]).await;
    let twin = server.wait_for(&sent[1], &["finalized"]).await;
    assert_eq!(twin["adopted"], true);
    assert!(is(&server.read(&id(&older)).await, &["delayed"]));
    server.stop().await;
    assert_eq!(stage.paid().await, 2);
    stage.check().await;
}

/// Two requests for the same waited, and one of them was paid: which one is for people to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_that_nobody_had_let_go_on_an_operator_names_the_one_that_was_sent() {
    let grants = Some(delayed("10"));
    let stage = Stage::with(Options { grants, ..Options::default() }).await;
    let bundle = stage.setup.dir().join("policies/grants.toml");
    let (server, _) = stage.open(&[OFTEN]).await;
    let mut asked = Vec::new();
    for key in ["cancelled", "paid"] {
        let waits = stage.ask(&server, key, &payout(ETHER)).await;
        assert!(is(&waits, &["delayed"]), "{waits:#?}");
        asked.push(id(&waits));
    }
    server.stop().await;
    let backup = Backup::take(&stage.setup).await;
    let server = stage.setup.start(&[OFTEN]).await;
    server.intervene(&asked[0], "cancel").await.ok();
    server.stop().await;
    std::fs::write(&bundle, payout_grants("10")).unwrap();
    let server = stage.setup.start(&[OFTEN]).await;
    let paid = stage.mine_until_mined(&server, &asked[1]).await;
    let hash = crate::stage::of_attempt(&paid, 0, "hash");
    stage.finish(&server, &asked[1]).await;
    lose(&stage, server, &backup).await;
    std::fs::write(&bundle, delayed("10")).unwrap();

    let told = reconcile(&stage.setup, &[]);
    assert_eq!(told.kinds(), ["undecided"], "{told:#?}");
    let finding = told.json()["accounts"][0]["findings"][0].clone();
    assert_eq!(finding["candidates"], serde_json::json!(asked), "{told:#?}");
    assert!(told.explained().contains("--adopt"), "{told:#?}");
    for more in [&[][..], &["--even-if-pending"]] {
        assert_eq!(apply(&stage.setup, more).code, Some(1), "it is not guessed: {more:?}");
    }
    let stranger = "01a203b5-d7a7-7231-b0e1-76c40bf4d52b";
    let other = format!("0x{}", "11".repeat(32));
    for wrong in [format!("{hash}={stranger}"), format!("{other}={}", asked[1])] {
        let told = apply(&stage.setup, &["--adopt", &wrong]);
        assert!(told.code == Some(1) && told.err.contains("nothing was changed"), "{told:#?}");
    }
    let server = stage.setup.start(&[OFTEN]).await;
    let waits = server.ask(crate::stage::SUB, "new", &payout(1)).await;
    assert_eq!((waits.status, waits.code()), (503, "reconcile-required"), "{:#}", waits.body);
    server.stop().await;

    let applied = apply(&stage.setup, &["--adopt", &format!("{hash}={}", asked[1])]);
    assert_eq!(applied.code, Some(0), "{applied:#?}");
    let server = stage.setup.start(&[OFTEN]).await;
    assert_eq!(server.wait_for(&asked[1], &["finalized"]).await["adopted"], true);
    assert!(is(&server.read(&asked[0]).await, &["delayed"]));
    server.stop().await;
    assert_eq!(stage.paid().await, 1);
    let said = stage.invariants().leaves("RECONCILED").await;
    let found = said.iter().find_map(|leaf| leaf["found"].as_str()).unwrap();
    assert!(found.contains("\"chosen\"") && found.contains(&asked[1]), "{found}");
    stage.check().await;
}
