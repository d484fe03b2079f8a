//! The set-up, the storm, the quiet.

use crate::blocks::{self, Chain};
use crate::broker;
use crate::callers;
use crate::kills;
use crate::outcome::{self, Table};
use crate::programs;
use crate::random::Random;
use crate::run::{Door, Run, pace};
use crate::support::fault_proxy::FaultProxy;
use crate::support::server::{ETHER, SetUp, charge_grant};
use crate::support::services::{
    Anvil, AnvilOptions, Mining, Postgres, PostgresOptions, RabbitMq, address_word, artefact,
};
use crate::weather;
use claviger::core::access::Role;
use indicatif::ProgressBar;
use std::fs::Permissions;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Blocks this far below the head are final; no reorg reaches them.
pub const FINAL_DEPTH: u64 = 6;
const CALLERS: u64 = 24;
const PAYOUTS: &str = r#"
[[grant]]
id = "payouts"
owner = "treasury"
reason = "the long run"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "native.transfer"
to = { book = "payees" }
per_tx = "1.0"
windows = [{ span = "24h", rolling = true, max = "1000000.0", scope = "group" },
           { span = "1h", rolling = true, count = 1000000, scope = "principal" }]
fee = { max_fee_gwei = "150", max_tip_gwei = "5", max_gas = 21000 }
"#;
const COUNTED: &str =
    r#"windows = [{ span = "24h", rolling = true, count = 1000000, scope = "group" }]"#;

/// Everything that a run stands on.
pub struct Stage {
    pub anvil: Arc<Anvil>,
    pub postgres: Postgres,
    pub rabbit: Option<RabbitMq>,
    pub store_url: String,
    pub setup: Arc<SetUp>,
    /// What the server and the watcher see of the chain.
    pub server_proxy: Arc<FaultProxy>,
    pub watcher_proxy: Arc<FaultProxy>,
    pub processor: String,
    /// The operator accounts: two for payouts, two for charges.
    pub accounts: Vec<String>,
    pub watcher_config: String,
    pub watcher_url: String,
    /// What the payee had at first, in wei.
    pub payee_before: u128,
}

/// A port that no connection of ours takes by chance while its server is down: those begin higher.
fn port_to_keep(random: &mut Random) -> u16 {
    loop {
        let port = 20_000 + random.below(10_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The whole run; gives what it has to tell.
pub async fn soak(run: &Arc<Run>) -> Table {
    let (mut stage, mut server) = set_up(run).await;
    let mut watcher = programs::watcher(run, stage.watcher_config.clone()).await;
    if let Some(rabbit) = &mut stage.rabbit {
        broker::settle(rabbit).await;
    }
    let chain = Arc::new(Chain {
        run: run.clone(),
        anvil: stage.anvil.clone(),
        accounts: stage.accounts.clone(),
        processor: stage.processor.clone(),
        turn: Mutex::new(()),
    });
    let mut always: JoinSet<()> = JoinSet::new();
    always.spawn(blocks::drive(chain.clone()));
    always.spawn(blocks::watch_lanes(chain.clone(), stage.store_url.clone()));
    always.spawn(weather::change(
        run.clone(),
        vec![stage.server_proxy.clone(), stage.watcher_proxy.clone()],
    ));
    always.spawn(tell(run.clone()));
    always.spawn(keep_token(run.clone(), stage.setup.dir().join("watcher.token")));
    let mut work: JoinSet<()> = JoinSet::new();
    for number in 0..CALLERS.min(run.plan.payouts()) {
        work.spawn(callers::caller(run.clone(), number));
    }
    work.spawn(callers::users(chain.clone()));

    tokio::select! {
        () = kills::storm(
            run,
            &mut server,
            &mut watcher,
            &mut stage.postgres,
            stage.rabbit.as_mut(),
        ) => {}
        () = failed(&mut always) => {}
        () = async {
            finished(&mut work).await;
            std::future::pending().await
        } => {}
    }
    run.be_quiet();
    let quiet = async {
        finished(&mut work).await;
        outcome::all_over(run, &stage).await;
    };
    tokio::select! {
        () = quiet => {}
        () = kills::tend(&mut server, &mut watcher) => {}
        () = failed(&mut always) => {}
    }
    always.shutdown().await;
    outcome::no_leaf_waits(&stage).await;
    if stage.rabbit.is_some() {
        broker::all_told(run, &stage).await;
    }
    watcher.stop().await;
    server.stop().await;
    outcome::judge(run, &stage).await
}

/// Waits for all callers; one that failed ends the run.
async fn finished(work: &mut JoinSet<()>) {
    while let Some(ended) = work.join_next().await {
        ended.unwrap();
    }
}

/// What always runs ends only by failing.
async fn failed(always: &mut JoinSet<()>) {
    if let Some(ended) = always.join_next().await {
        ended.unwrap();
        panic!("a part of the run ended by itself");
    }
}

async fn set_up(run: &Arc<Run>) -> (Stage, programs::Supervised) {
    let mining = Mining::Manual;
    let anvil = Anvil::start(AnvilOptions { mining, ..AnvilOptions::default() }).await;
    let [deployer, payee, admin] = [0, 1, 2].map(|at| anvil.accounts()[at].clone());
    let arguments = format!("{}{}", address_word(&payee), address_word(&admin));
    let processor = anvil.deploy(&artefact("PaymentProcessor"), &arguments).await;
    let server_proxy = Arc::new(FaultProxy::start(&anvil.url()).await);
    let watcher_proxy = Arc::new(FaultProxy::start(&anvil.url()).await);
    let mut random = run.random(0);
    let port = port_to_keep(&mut random);
    let options = PostgresOptions { fsync: true, ..PostgresOptions::default() };
    let postgres = Postgres::start(PostgresOptions { port: Some(port), ..options }).await;
    let store_url = postgres.create_database();
    let rabbit = if run.plan.has_broker { Some(broker::start().await) } else { None };
    let grants = format!("{PAYOUTS}{}", charge_grant("charges", COUNTED));
    let setup = Arc::new(SetUp::new(&server_proxy.url(), Some(&store_url), &grants));
    let config = std::fs::read_to_string(setup.config()).unwrap();
    let config = config.replace(r#"finality = "finalized""#, "finality = { depth = 6 }");
    let bus = rabbit.as_ref().map_or_else(String::new, |rabbit| bus_section(rabbit, &setup));
    let told = if bus.is_empty() { "" } else { "events = [\"claviger.transaction.*\"]\n" };
    let config = format!("{config}\n[[group]]\nname = \"charges\"\n{bus}{told}");
    std::fs::write(setup.config(), config).unwrap();

    let listen = format!("127.0.0.1:{}", port_to_keep(&mut random));
    let envs = [
        ("CLAVIGER__SERVER__LISTEN", listen.as_str()),
        ("CLAVIGER__CHAIN__0__POLL_EVERY", "300ms"),
        ("CLAVIGER__CHAIN__0__RESEND_AFTER", "3s"),
        ("CLAVIGER__CHAIN__0__REBROADCAST_AFTER", "1s"),
    ];
    let first = setup.start(&envs).await;
    let mut accounts = Vec::new();
    for (label, group) in
        [("p-1", "payments"), ("p-2", "payments"), ("c-1", "charges"), ("c-2", "charges")]
    {
        let address = first.key(label, Some(group), "managed").await;
        anvil.set_balance(&address, 10_000 * ETHER).await;
        let grant = anvil.calldata("grantOperator(address)", &[address_word(&address)]).await;
        anvil.send(&admin, &processor, &grant, 0).await;
        accounts.push(address);
    }
    let user = anvil.accounts()[callers::USER].clone();
    let deposit = anvil.calldata("deposit()", &[]).await;
    anvil.send(&user, &processor, &deposit, 5_000 * ETHER).await;
    anvil.mine(FINAL_DEPTH + 1).await;
    first.stop().await;
    assert_ne!(deployer, processor);

    let issuer_key = setup.dir().join("issuer.p8");
    let door = Door { client_url: format!("http://{listen}"), issuer_key };
    assert!(run.door.set(door).is_ok());
    let owned = envs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let server = programs::server(run, &setup, owned).await;
    let (watcher_config, watcher_url) =
        set_up_watcher(run, &setup, &watcher_proxy, &processor, rabbit.as_ref());
    let payee_before = anvil.balance(&payee).await;
    let anvil = Arc::new(anvil);
    let stage = Stage {
        anvil,
        postgres,
        rabbit,
        store_url,
        setup,
        server_proxy,
        watcher_proxy,
        processor,
        accounts,
        watcher_config,
        watcher_url,
        payee_before,
    };
    (stage, server)
}

/// The section of either program's configuration.
fn bus_section(rabbit: &RabbitMq, setup: &SetUp) -> String {
    let file = setup.dir().join("rabbitmq.url");
    std::fs::write(&file, rabbit.url()).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    format!("[bus]\nkind = \"rabbitmq\"\nurl_file = \"{}\"\n", file.display())
}

/// Its configuration and its database.
fn set_up_watcher(
    run: &Run,
    setup: &SetUp,
    proxy: &FaultProxy,
    processor: &str,
    rabbit: Option<&RabbitMq>,
) -> (String, String) {
    let (config, token) = (setup.dir().join("watcher.toml"), setup.dir().join("watcher.token"));
    std::fs::write(&token, run.token("svc:watcher", Role::Client)).unwrap();
    let database = format!("sqlite:{}", setup.dir().join("watcher.db").display());
    let text = format!(
        r#"
[store]
url = "{database}"
[server]
url = "{server}"
token_file = "{token}"
{bus}
[[chain]]
name = "local"
chain_id = 31337
rpc = ["{rpc}"]
finality = {{ depth = {FINAL_DEPTH} }}
poll_ms = 200
[[source]]
name = "charges"
chain = "local"
address = "{processor}"
event = "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)"
from_block = 0
[[trigger]]
name = "charge"
source = "charges"
signer = "charges"
function = "executeCharge(uint256 orderId, uint256 amount)"
args = {{ orderId = "orderId", amount = "amount" }}
business_id = ["{{chain}}", "{{contract}}", "orderId"]
"#,
        bus = rabbit.map_or_else(String::new, |rabbit| bus_section(rabbit, setup)),
        server = run.door().client_url,
        token = token.display(),
        rpc = proxy.url(),
    );
    std::fs::write(&config, text).unwrap();
    let made = Command::new(programs::WATCHER_BIN).args(["init", "--config"]).arg(&config).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (config.display().to_string(), database)
}

/// The watcher's token lives a quarter of an hour; the run may live longer.
async fn keep_token(run: Arc<Run>, path: std::path::PathBuf) {
    loop {
        pace(240_000).await;
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, run.token("svc:watcher", Role::Client)).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    }
}

/// The progress line: at a terminal one that changes, elsewhere a new one now and then.
async fn tell(run: Arc<Run>) {
    let is_terminal = std::io::stderr().is_terminal();
    let line = ProgressBar::new_spinner();
    let mut every = tokio::time::interval(Duration::from_secs(if is_terminal { 1 } else { 10 }));
    loop {
        every.tick().await;
        if is_terminal {
            line.set_message(run.progress());
            line.tick();
        } else {
            println!("{}", run.progress());
        }
    }
}
