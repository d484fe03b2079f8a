//! The private instances that other tests stand on: they work, and they leave nothing behind.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod services;
}

use serde_json::json;
use std::path::Path;
use std::time::Duration;
use support::services::{
    Anvil, AnvilOptions, Mining, Postgres, PostgresOptions, Program, RabbitMq, SoftHsm,
    address_word, artefact, poll_until, word,
};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);
const NO_ARGS: [&str; 0] = [];
const NO_ENVS: [(&str, &str); 0] = [];

/// A zombie has ended: where nobody waits for orphans, its entry stays.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

fn shell(name: &str, script: &str) -> Program {
    Program::spawn(name, "sh", ["-c", script], NO_ENVS)
}

#[tokio::test]
async fn anvil_deploys_a_contract_and_counts_its_calls() {
    let mut anvil = Anvil::start(AnvilOptions::default()).await;
    let counter = anvil.deploy(&artefact("NaiveCounter"), "").await;
    let caller = anvil.accounts()[1].clone();
    let hit = anvil.calldata("hit(uint256)", &[word(7)]).await;
    for _ in 0..2 {
        let hash = anvil.send(&caller, &counter, &hit, 0).await;
        assert_eq!(anvil.wait_for_receipt(&hash, LIMIT).await["status"], "0x1");
    }
    let hits = anvil.calldata("hits(uint256)", &[word(7)]).await;
    assert_eq!(anvil.call(&counter, &hits).await, format!("0x{}", word(2)));
    assert_eq!(anvil.nonce(&caller).await, 2);

    let pid = anvil.program().pid();
    drop(anvil);
    assert!(!is_running(pid));
}

#[tokio::test]
async fn anvil_mines_only_when_told_and_finalises_two_epochs_behind() {
    let options = AnvilOptions {
        chain_id: Some(4242),
        mining: Mining::Manual,
        slots_in_an_epoch: Some(1),
        ..AnvilOptions::default()
    };
    let anvil = Anvil::start(options).await;
    assert_eq!(anvil.rpc("eth_chainId", json!([])).await, "0x1092");

    let to = "0x00000000000000000000000000000000000000aa";
    let hash = anvil.send(&anvil.accounts()[0], to, "0x", 5).await;
    assert!(anvil.receipt(&hash).await.is_none());
    anvil.mine(10).await;
    assert_eq!(anvil.receipt(&hash).await.unwrap()["blockNumber"], "0x1");
    assert_eq!(anvil.balance(to).await, 5);
    anvil.set_balance(to, 77).await;
    assert_eq!(anvil.balance(to).await, 77);
    assert_eq!(anvil.block_number().await, 10);
    let block = anvil.rpc("eth_getBlockByNumber", json!(["finalized", false])).await;
    assert_eq!(block["number"], "0x8");
}

#[tokio::test]
async fn the_payment_processor_executes_a_requested_charge_once() {
    let anvil = Anvil::start(AnvilOptions::default()).await;
    let [admin, merchant, payer, operator] = [0, 1, 2, 3].map(|at| anvil.accounts()[at].clone());
    let arguments = address_word(&merchant) + &address_word(&admin);
    let processor = anvil.deploy(&artefact("PaymentProcessor"), &arguments).await;
    let send = async |from: &str, signature: &str, words: &[String], value: u128| {
        let data = anvil.calldata(signature, words).await;
        // With its own gas limit, so that a revert is mined and not refused beforehand.
        let hash = anvil.send_transaction(json!({
            "from": from, "to": processor, "data": data, "gas": "0x7a120",
            "value": format!("{value:#x}"),
        }));
        anvil.wait_for_receipt(&hash.await, LIMIT).await["status"] == "0x1"
    };
    let execute = "executeCharge(uint256,uint256)";
    let request = "requestCharge(uint256,uint256)";
    let order = [word(9), word(1000)];

    assert!(send(&payer, request, &order, 0).await);
    assert!(!send(&payer, request, &order, 0).await, "a second request for the same order");
    assert!(!send(&operator, execute, &order, 0).await, "not an operator yet");
    assert!(!send(&payer, "grantOperator(address)", &[address_word(&operator)], 0).await);
    assert!(send(&admin, "grantOperator(address)", &[address_word(&operator)], 0).await);
    assert!(!send(&operator, execute, &order, 0).await, "nothing is deposited yet");
    assert!(send(&payer, "deposit()", &[], 5000).await);
    assert!(!send(&operator, execute, &[word(9), word(1001)], 0).await, "another amount");
    assert!(!send(&operator, execute, &[word(8), word(1000)], 0).await, "never requested");
    assert!(send(&operator, execute, &order, 0).await);
    assert!(!send(&operator, execute, &order, 0).await, "executed already");

    let view = async |signature: &str, argument: String| {
        let data = anvil.calldata(signature, &[argument]).await;
        anvil.call(&processor, &data).await
    };
    assert_eq!(view("executions(uint256)", word(9)).await, format!("0x{}", word(1)));
    assert_eq!(view("requested(uint256)", word(9)).await, format!("0x{}", word(1000)));
    let earned = view("balances(address)", address_word(&merchant)).await;
    assert_eq!(earned, format!("0x{}", word(1000)));
    assert!(send(&merchant, "withdraw(uint256)", &[word(1000)], 0).await);
    assert!(!send(&merchant, "withdraw(uint256)", &[word(1)], 0).await, "nothing is left");

    assert!(send(&admin, "revokeOperator(address)", &[address_word(&operator)], 0).await);
    assert!(send(&payer, request, &[word(10), word(1)], 0).await);
    assert!(!send(&operator, execute, &[word(10), word(1)], 0).await, "revoked");
}

#[tokio::test]
async fn postgres_gives_each_test_a_database_of_its_own() {
    let cluster = Postgres::shared().await;
    let (first, second) = (cluster.create_database(), cluster.create_database());
    assert_ne!(first, second);
    for url in [first, second] {
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await.unwrap();
        assert_eq!(one, 1);
        // The same name in both: they are two databases.
        sqlx::query("CREATE TABLE t (x BIGINT)").execute(&pool).await.unwrap();
    }
}

#[tokio::test]
async fn a_postgres_of_its_own_keeps_its_data_over_a_crash_and_ends_when_dropped() {
    let mut cluster =
        Postgres::start(PostgresOptions { fsync: true, max_connections: 10, port: None }).await;
    let url = cluster.create_database();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE t (x BIGINT)").execute(&pool).await.unwrap();
    pool.close().await;
    cluster.stop();
    assert!(!cluster.is_reachable().await);
    cluster.restart().await;
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&pool).await.unwrap();
    assert_eq!(count, 0);

    let pid = cluster.pid();
    drop(cluster);
    assert!(!is_running(pid));
}

#[tokio::test]
async fn rabbitmq_comes_back_on_the_same_port_and_ends_when_dropped() {
    let mut rabbit = RabbitMq::start().await;
    let address = ("127.0.0.1", rabbit.port());
    TcpStream::connect(address).await.unwrap();
    let url = rabbit.url();
    rabbit.stop();
    assert!(TcpStream::connect(address).await.is_err());
    rabbit.start_again().await;
    TcpStream::connect(address).await.unwrap();
    assert_eq!(rabbit.url(), url);

    let pids = rabbit.pids();
    assert_eq!(pids.len(), 2);
    drop(rabbit);
    for pid in pids {
        assert!(!is_running(pid), "{pid} outlived the broker");
    }
}

#[tokio::test]
async fn softhsm_tokens_are_private() {
    let (first, second) = (SoftHsm::create(), SoftHsm::create());
    let pin = |hsm: &SoftHsm| std::fs::read_to_string(hsm.pin_file()).unwrap();
    assert_ne!(pin(&first), pin(&second));
    assert!(first.module().is_file() && first.conf().is_file() && first.tokens().is_dir());
}

#[tokio::test]
async fn a_program_is_seen_from_outside() {
    let mut program = shell("speaker", "echo one; echo two >&2; exit 3");
    assert_eq!(program.wait_for_line("one", LIMIT).await, "one");
    assert_eq!(program.wait_for_line("tw", LIMIT).await, "two");
    assert_eq!(program.exit_status(LIMIT).await.code(), Some(3));
    assert_eq!((program.stdout().as_str(), program.stderr().as_str()), ("one\n", "two\n"));
}

#[tokio::test]
async fn a_program_is_gone_after_kill9_and_after_drop() {
    let mut program = shell("sleeper", "echo up; exec sleep 600");
    program.wait_for_line("up", LIMIT).await;
    program.kill9();
    assert!(!is_running(program.pid()));

    let program = shell("sleeper", "exec sleep 600");
    let pid = program.pid();
    assert!(is_running(pid));
    drop(program);
    assert!(!is_running(pid));
}

/// The next test runs this one in a process of its own, and kills that. By itself it does nothing.
#[tokio::test]
async fn leaves_a_child_and_a_cluster_behind() {
    let Some(note) = std::env::var_os("CLAVIGER_TEST_NOTE") else { return };
    let program = shell("sleeper", "exec sleep 600");
    let cluster = Postgres::start(PostgresOptions::default()).await;
    let folder = program.stdout_path();
    let folder = folder.parent().and_then(Path::parent).unwrap();
    let line = format!("LEFT {} {} {}\n", program.pid(), cluster.pid(), folder.display());
    std::fs::write(note, line).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_survives_a_killed_test_process() {
    let note = tempfile::NamedTempFile::new().unwrap();
    let mut test = Program::spawn(
        "killed-test",
        std::env::current_exe().unwrap(),
        ["--exact", "leaves_a_child_and_a_cluster_behind"],
        [("CLAVIGER_TEST_NOTE", note.path())],
    );
    let line = poll_until(LIMIT, "the other process has its children", async || {
        let text = std::fs::read_to_string(note.path()).unwrap();
        assert!(test.try_exit_status().is_none(), "{}", test.tail());
        text.ends_with('\n').then_some(text)
    })
    .await;
    let words: Vec<&str> = line.split_whitespace().collect();
    let pids = [1, 2].map(|at| words[at].parse::<u32>().unwrap());
    let folder = Path::new(words[3]);
    assert!(pids.iter().all(|pid| is_running(*pid)) && folder.is_dir());
    test.kill9();
    poll_until(LIMIT, "its children and its folder are gone", async || {
        (!pids.iter().any(|pid| is_running(*pid)) && !folder.exists()).then_some(())
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "ended (exit status: 1) without `ready`")]
async fn waiting_for_a_line_of_a_program_that_ended_says_so() {
    let mut program = Program::spawn("false", "false", NO_ARGS, NO_ENVS);
    program.wait_for_line("ready", LIMIT).await;
}
