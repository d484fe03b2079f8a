//! What the tests stand on.

use crate::support::fault_proxy::FaultProxy;
use crate::support::server::{Answer, ETHER, LIMIT, PAYEE, PROCESSOR, Server, SetUp, call};
use crate::support::services::{
    Anvil, AnvilOptions, Mining, Program, address_word, artefact, poll_until, word,
};
use claviger::core::access::Role;
use claviger::ports::store::{End, unit};
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Command;

pub const WATCHER: &str = "svc:watcher";
pub const OTHER: &str = "svc:watcher-b";
const BIN: &str = env!("CARGO_BIN_EXE_claviger-watcher");
/// Blocks so far below the head are final for the triggers' source; for the chain it takes more.
pub const DEPTH: u64 = 2;

/// Charges by the word of the caller alone: the grant names no event.
pub const GRANT: &str = r#"
[[grant]]
id = "charge"
owner = "payments"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:watcher", "svc:watcher-b"]
signers = ["payments"]
chains = ["local"]
action = "call"
contract = "processor"
function = "executeCharge(uint256,uint256)"
args = { amount = { max = "1000000000000000000" } }
fee = { max_fee_gwei = "150", max_tip_gwei = "5", max_gas = 200000 }
"#;

fn shared_keys(shares: bool) -> String {
    let set = if shares { format!("[\"{WATCHER}\", \"{OTHER}\"]") } else { String::new() };
    format!("shared_keys = [{set}]")
}

pub struct Stage {
    pub anvil: Anvil,
    pub setup: SetUp,
    pub server: Server,
    pub operator: String,
    pub proxy: FaultProxy,
    http: reqwest::Client,
}

impl Stage {
    /// A server, a processor, a payer with a deposit, and an operator with this much money.
    pub async fn new(operator_wei: u128) -> Self {
        Self::with(operator_wei, GRANT, true).await
    }

    /// The same with another grant, and with keys that the two watchers share or do not.
    pub async fn with(operator_wei: u128, grant: &str, shares: bool) -> Self {
        let mining = Mining::Manual;
        let anvil = Anvil::start(AnvilOptions { mining, ..AnvilOptions::default() }).await;
        let proxy = FaultProxy::start(&anvil.url()).await;
        let admin = anvil.accounts()[0].clone();
        let arguments = format!("{}{}", address_word(PAYEE), address_word(&admin));
        let at = anvil.deploy(&artefact("PaymentProcessor"), &arguments).await;
        assert_eq!(at.to_lowercase(), PROCESSOR);
        let setup = SetUp::new(&proxy.url(), None, grant);
        let bundle = setup.dir().join("policies/bundle.toml");
        let text = std::fs::read_to_string(&bundle).unwrap();
        let known = r#"subjects = ["svc:watcher", "#;
        let more = format!(r#"{known}"{OTHER}", "svc:stranger", "#);
        assert!(text.contains(known));
        std::fs::write(&bundle, text.replace(known, &more)).unwrap();
        let config = std::fs::read_to_string(setup.config()).unwrap();
        let config = config.replace(r#"finality = "finalized""#, "finality = { depth = 8 }");
        assert!(config.contains("depth = 8"));
        let shared = format!("[auth]\n{}\n", shared_keys(shares));
        let config = match config.contains("[auth]\n") {
            true => config.replacen("[auth]\n", &shared, 1),
            false => config.replacen("[[auth.issuer]]", &format!("{shared}[[auth.issuer]]"), 1),
        };
        std::fs::write(setup.config(), config).unwrap();
        let server = setup.start(&[]).await;
        let operator = server.key("op-1", Some("payments"), "managed").await;
        anvil.set_balance(&operator, operator_wei).await;
        let grant = anvil.calldata("grantOperator(address)", &[address_word(&operator)]).await;
        anvil.send(&admin, PROCESSOR, &grant, 0).await;
        let deposit = anvil.calldata("deposit()", &[]).await;
        anvil.send(&anvil.accounts()[3], PROCESSOR, &deposit, 10 * ETHER).await;
        anvil.mine(5).await;
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        Self { anvil, setup, server, operator, proxy, http }
    }

    /// A user asks for a charge: the signed bytes, and where the event is once it is mined.
    pub async fn request_charge(&self, order: u128) -> (Value, Value) {
        let arguments = [word(order), word(1000)];
        let data = self.anvil.calldata("requestCharge(uint256,uint256)", &arguments).await;
        let hash = self.anvil.send(&self.anvil.accounts()[3], PROCESSOR, &data, 0).await;
        self.anvil.mine(1).await;
        let raw = self.anvil.rpc("eth_getRawTransactionByHash", json!([hash])).await;
        (raw, self.source(&hash).await)
    }

    /// Where the event of a mined transaction is.
    pub async fn source(&self, hash: &str) -> Value {
        let receipt = self.anvil.wait_for_receipt(hash, LIMIT).await;
        let index = receipt["logs"][0]["logIndex"].as_str().unwrap().trim_start_matches("0x");
        json!({
            "block_hash": receipt["blockHash"],
            "transaction_hash": receipt["transactionHash"],
            "log_index": u64::from_str_radix(index, 16).unwrap(),
        })
    }

    /// The charge of an order, as a watcher would ask for it.
    pub async fn charge(&self, order: u128, source: &Value) -> Value {
        let arguments = [word(order), word(1000)];
        let data = self.anvil.calldata("executeCharge(uint256,uint256)", &arguments).await;
        json!({
            "chain": "local", "signer": "payments", "to": PROCESSOR, "value": "0", "data": data,
            "source": source,
        })
    }

    /// Takes blocks off the chain; in the first of those in their place are these transactions.
    pub async fn reorg(&self, depth: u64, raws: &[&Value]) {
        let again: Vec<Value> = raws.iter().map(|raw| json!([raw, 0])).collect();
        self.anvil.rpc("anvil_reorg", json!([depth, again])).await;
    }

    /// Nothing that was taken off the chain comes back by itself.
    pub async fn forget_pool(&self) {
        self.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    }

    pub async fn executions(&self, order: u128) -> u128 {
        let data = self.anvil.calldata("executions(uint256)", &[word(order)]).await;
        let answer = self.anvil.call(PROCESSOR, &data).await;
        u128::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
    }

    /// Mines until the request is in a block.
    pub async fn mine_until_mined(&self, id: &str) -> Value {
        poll_until(LIMIT, &format!("{id} is mined"), async || {
            self.anvil.mine(1).await;
            let found = self.server.read(id).await;
            ["mined", "finalized"].contains(&found["status"].as_str()?).then_some(found)
        })
        .await
    }

    /// Says that a request's source is gone.
    pub async fn retract(&self, sub: &str, id: &str, source: &Value) -> Answer {
        self.tell(sub, id, &json!({ "source": source })).await
    }

    /// The same with this body.
    pub async fn tell(&self, sub: &str, id: &str, body: &Value) -> Answer {
        let url = format!("{}/v1/transactions/{id}/retraction", self.server.client_url());
        self.call(sub, Method::POST, url, Some(body)).await
    }

    /// The same where no answer may come.
    pub async fn try_retract(&self, sub: &str, id: &str, source: &Value) -> Option<Answer> {
        let url = format!("{}/v1/transactions/{id}/retraction", self.server.client_url());
        let token = self.server.token(sub, Role::Client);
        let body = json!({ "source": source });
        call(&self.http, (Method::POST, url), &token, None, Some(&body)).await
    }

    /// With a server that was started anew, with this in its environment.
    pub async fn restart(self, envs: &[(&str, &str)]) -> Self {
        let Self { anvil, setup, server, operator, proxy, http } = self;
        server.stop().await;
        let server = setup.start(envs).await;
        Self { anvil, setup, server, operator, proxy, http }
    }

    /// With a server that was started anew, and with keys that the two watchers share, or do not any more.
    pub async fn restart_sharing(self, shares: bool) -> Self {
        let config = std::fs::read_to_string(self.setup.config()).unwrap();
        let other = config.replace(&shared_keys(!shares), &shared_keys(shares));
        assert_ne!(config, other);
        std::fs::write(self.setup.config(), other).unwrap();
        self.restart(&[]).await
    }

    /// With another server, once this one has crashed as it was told to.
    pub async fn after_crash(self) -> Self {
        let Self { anvil, setup, server, operator, proxy, http } = self;
        server.crashed().await;
        let server = setup.start(&[]).await;
        Self { anvil, setup, server, operator, proxy, http }
    }

    /// Looks requests up: `idempotency_key=…` or `transaction_hash=…`.
    pub async fn look_up(&self, sub: &str, query: &str) -> Vec<Value> {
        let url = format!("{}/v1/transactions?{query}", self.server.client_url());
        let found = self.call(sub, Method::GET, url, None).await.ok();
        found["transactions"].as_array().unwrap().clone()
    }

    /// The first events of these types, from the beginning, that this caller is told.
    pub async fn told(&self, sub: &str, types: &str, count: usize) -> Vec<Value> {
        let query = format!("types={types}&last_event_id=0");
        let url = format!("{}/v1/events?{query}", self.server.client_url());
        let token = self.server.token(sub, Role::Client);
        let mut answer = self.http.get(url).bearer_auth(token).send().await.unwrap();
        let mut text = String::new();
        loop {
            let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
            // The last line may not be whole yet.
            let events: Vec<Value> =
                lines.filter_map(|data| serde_json::from_str(data).ok()).collect();
            if events.len() >= count {
                return events;
            }
            let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn call(&self, sub: &str, method: Method, url: String, body: Option<&Value>) -> Answer {
        let token = self.server.token(sub, Role::Client);
        call(&self.http, (method, url), &token, None, body).await.expect("an answer")
    }

    fn path(&self, name: &str) -> String {
        self.setup.dir().join(name).display().to_string()
    }

    /// From now on the watcher is this one to the server.
    pub fn watch_as(&self, sub: &str) {
        let token = self.server.token(sub, Role::Client);
        std::fs::write(self.path("watcher.token"), token).unwrap();
    }

    /// The configuration of a watcher, its token and its database.
    pub fn set_up_watcher(&self) {
        self.watch_as(WATCHER);
        std::fs::write(self.path("watcher.toml"), self.watcher_config()).unwrap();
        let (ok, text) = self.command(&["init", "--config"]);
        assert!(ok, "{text}");
    }

    pub fn watcher_config(&self) -> String {
        format!(
            r#"
[store]
url = "sqlite:{database}"
[server]
url = "{server}"
token_file = "{token}"
[[chain]]
name = "local"
chain_id = 31337
rpc = ["{rpc}"]
finality = {{ depth = 8 }}
poll_ms = 50
[[source]]
name = "charges"
chain = "local"
address = "{PROCESSOR}"
event = "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)"
from_block = 0
finality = {{ depth = {DEPTH} }}
[[trigger]]
name = "charge"
source = "charges"
signer = "payments"
function = "executeCharge(uint256 orderId, uint256 amount)"
args = {{ orderId = "orderId", amount = "amount" }}
business_id = ["{{chain}}", "{{contract}}", "orderId"]
"#,
            database = self.path("watcher.db"),
            server = self.server.client_url(),
            token = self.path("watcher.token"),
            rpc = self.proxy.url(),
        )
    }

    pub fn write_watcher(&self, config: &str) {
        std::fs::write(self.path("watcher.toml"), config).unwrap();
    }

    pub fn watcher(&self) -> Program {
        let config = self.path("watcher.toml");
        let none: [(&str, &str); 0] = [];
        Program::spawn("claviger-watcher", BIN, ["run", "--config", &config], none)
    }

    /// Runs a short command of the watcher: whether it succeeded, and what it printed.
    pub fn command(&self, arguments: &[&str]) -> (bool, String) {
        let output =
            Command::new(BIN).args(arguments).arg(self.path("watcher.toml")).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    pub fn status(&self) -> Value {
        let (ok, text) = self.command(&["status", "--json", "--config"]);
        assert!(ok, "{text}");
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    }

    pub fn count(&self, state: &str) -> u64 {
        let status = self.status();
        let rows = status["outbox"].as_array().unwrap();
        let row = rows.iter().find(|row| row["state"] == state);
        row.map_or(0, |row| row["count"].as_u64().unwrap())
    }

    /// Waits until the trigger has this many deliveries in a state.
    pub async fn outbox(&self, state: &str, count: u64) {
        let what = format!("{count} deliveries {state}");
        poll_until(LIMIT, &what, async || (self.count(state) == count).then_some(())).await;
    }

    /// What `status` shows of the retraction, once it is told.
    pub async fn retraction(&self) -> Value {
        poll_until(LIMIT, "the retraction is told", async || {
            let status = self.status();
            let items = status["attention"].as_array().unwrap();
            let told = items.iter().find(|item| item["kind"] == "retraction")?;
            let reason = told["reason"].as_str()?;
            ["ended", "flagged"].iter().any(|word| reason.contains(word)).then(|| told.clone())
        })
        .await
    }

    /// Waits until a request waits for the nodes to say whether its event stands.
    pub async fn held(&self, id: &str) -> Value {
        poll_until(LIMIT, &format!("{id} waits for its event"), async || {
            let found = self.server.read(id).await;
            assert_eq!(found["status"], "queued", "{found:#}");
            (found["waiting"]["code"] == "source-event").then_some(found)
        })
        .await
    }

    /// Ends both, and gives the kinds of the events of these requests, in order, from the database.
    pub async fn events(self, watcher: Option<Program>, ids: &[&str]) -> Vec<Vec<String>> {
        if let Some(mut watcher) = watcher {
            watcher.signal("TERM");
            let status = watcher.exit_status(LIMIT).await;
            assert!(status.success(), "{status}: {}", watcher.tail());
        }
        self.server.stop().await;
        let store = self.setup.store().await;
        let mut all = Vec::new();
        for id in ids {
            let subject = (*id).to_owned();
            let events = unit(&*store, "events", move |unit| {
                let subject = subject.clone();
                Box::pin(async move { Ok(End::Rollback(unit.events_of(&subject).await?)) })
            });
            let kind = |kind: String| kind.trim_start_matches("claviger.transaction.").to_owned();
            all.push(events.await.unwrap().into_iter().map(|event| kind(event.kind)).collect());
        }
        all
    }
}
