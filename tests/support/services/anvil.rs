//! A private EVM chain, and enough of its JSON-RPC to set a stage and to look at the outcome.

use super::program::scratch;
use super::{Program, poll_until, repository, tool};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;

/// How long a local node may take for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// When blocks are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mining {
    /// At once for each transaction.
    #[default]
    Auto,
    /// One every so many seconds, with or without transactions.
    EverySecs(u64),
    /// Only when `mine` is called.
    Manual,
}

/// How to start a chain; the default is chain id 31337 that mines at once.
#[derive(Clone, Debug, Default)]
pub struct AnvilOptions {
    pub chain_id: Option<u64>,
    pub mining: Mining,
    /// Blocks until `safe` is one epoch and `finalized` two epochs behind (anvil's default: 32).
    pub slots_in_an_epoch: Option<u64>,
    /// A port to listen on, to come back where another one was; else a free one.
    pub port: Option<u16>,
    /// Further arguments, as anvil takes them.
    pub args: Vec<String>,
}

/// A running node. Its development accounts are funded and unlocked.
pub struct Anvil {
    program: Program,
    port: u16,
    mining: Mining,
    accounts: Vec<String>,
    http: reqwest::Client,
    _home: TempDir,
}

impl Anvil {
    pub async fn start(options: AnvilOptions) -> Self {
        let mut args = vec!["--host".to_owned(), "127.0.0.1".to_owned()];
        let mut option = |name: &str, value: u64| args.extend([name.to_owned(), value.to_string()]);
        // Port 0: the system gives a free one, so that there is no race for it.
        option("--port", options.port.unwrap_or(0).into());
        if let Some(chain_id) = options.chain_id {
            option("--chain-id", chain_id);
        }
        if let Some(slots) = options.slots_in_an_epoch {
            option("--slots-in-an-epoch", slots);
        }
        match options.mining {
            Mining::Auto => {}
            Mining::EverySecs(secs) => option("--block-time", secs),
            Mining::Manual => args.push("--no-mining".to_owned()),
        }
        args.extend(options.args);

        let home = scratch("anvil-home");
        let mut program = Program::spawn("anvil", tool("ANVIL"), args, [("HOME", home.path())]);
        let line = program.wait_for_line("Listening on ", LIMIT).await;
        let port = line.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        let mut anvil = Self {
            port: port.unwrap_or_else(|| panic!("no port in: {line}")),
            program,
            mining: options.mining,
            accounts: Vec::new(),
            http: reqwest::Client::builder().no_proxy().build().expect("a plain HTTP client"),
            _home: home,
        };
        let accounts = anvil.rpc("eth_accounts", json!([])).await;
        anvil.accounts = serde_json::from_value(accounts).expect("a list of addresses");
        anvil
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process, to stop, resume or kill it.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// The addresses of the development accounts: lower case, funded, unlocked.
    pub fn accounts(&self) -> &[String] {
        &self.accounts
    }

    /// The `result` of a call; panics on a JSON-RPC error.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        let answer = self.try_rpc(method, params.clone()).await;
        answer.unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }

    /// The `result` of a call, or its `error`; panics if the node cannot be asked.
    pub async fn try_rpc(&self, method: &str, params: Value) -> Result<Value, Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let request = self.http.post(self.url()).timeout(LIMIT).json(&body);
        let answer = request.send().await.unwrap_or_else(|error| panic!("{method}: {error}"));
        let mut answer: Value =
            answer.json().await.unwrap_or_else(|error| panic!("{method}: {error}"));
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }

    /// Makes `blocks` blocks at once.
    pub async fn mine(&self, blocks: u64) {
        self.rpc("anvil_mine", json!([quantity(blocks.into())])).await;
    }

    /// Sets a balance, in wei.
    pub async fn set_balance(&self, address: &str, wei: u128) {
        self.rpc("anvil_setBalance", json!([address, quantity(wei)])).await;
    }

    /// A balance, in wei.
    pub async fn balance(&self, address: &str) -> u128 {
        number(&self.rpc("eth_getBalance", json!([address, "latest"])).await)
    }

    pub async fn block_number(&self) -> u64 {
        let number = number(&self.rpc("eth_blockNumber", json!([])).await);
        number.try_into().expect("a block number fits in 64 bits")
    }

    /// How many transactions of an address are mined.
    pub async fn nonce(&self, address: &str) -> u64 {
        let count = self.rpc("eth_getTransactionCount", json!([address, "latest"])).await;
        number(&count).try_into().expect("a nonce fits in 64 bits")
    }

    /// Sends a transaction of an unlocked account and gives its hash. `data` is 0x hex.
    pub async fn send(&self, from: &str, to: &str, data: &str, value_wei: u128) -> String {
        let value = quantity(value_wei);
        self.send_transaction(json!({ "from": from, "to": to, "data": data, "value": value })).await
    }

    /// Sends a transaction object of an unlocked account and gives its hash.
    pub async fn send_transaction(&self, transaction: Value) -> String {
        text(&self.rpc("eth_sendTransaction", json!([transaction])).await)
    }

    /// The receipt of a transaction, if it is mined.
    pub async fn receipt(&self, hash: &str) -> Option<Value> {
        Some(self.rpc("eth_getTransactionReceipt", json!([hash])).await).filter(Value::is_object)
    }

    /// The receipt of a transaction once it is mined, whether it succeeded or not.
    pub async fn wait_for_receipt(&self, hash: &str, limit: Duration) -> Value {
        let what = format!("transaction {hash} is mined");
        poll_until(limit, &what, async || self.receipt(hash).await).await
    }

    /// The bytes that a call of a contract returns, as 0x hex.
    pub async fn call(&self, to: &str, data: &str) -> String {
        text(&self.rpc("eth_call", json!([{ "to": to, "data": data }, "latest"])).await)
    }

    /// Deploys an artefact from the first development account and gives the contract's address.
    /// `arguments` are the encoded arguments of the constructor: words, without `0x`.
    pub async fn deploy(&self, artefact: &Value, arguments: &str) -> String {
        let code = format!("{}{arguments}", text(&artefact["bytecode"]));
        let deployer = &self.accounts()[0];
        let hash = self.send_transaction(json!({ "from": deployer, "data": code })).await;
        if self.mining == Mining::Manual {
            self.mine(1).await;
        }
        let receipt = self.wait_for_receipt(&hash, LIMIT).await;
        assert_eq!(receipt["status"], "0x1", "deployment failed: {receipt}");
        text(&receipt["contractAddress"])
    }

    /// The selector of a function, such as `hit(uint256)`, followed by its arguments as words of
    /// the ABI. The node is asked for the hash, so that this is no second encoder of ours.
    pub async fn calldata(&self, signature: &str, arguments: &[String]) -> String {
        let hash = text(&self.rpc("web3_sha3", json!([hex_of(signature.as_bytes())])).await);
        format!("{}{}", &hash[..10], arguments.concat())
    }
}

/// A committed artefact: `contractName`, `abi`, `bytecode`, `deployedBytecode`.
pub fn artefact(contract: &str) -> Value {
    let path = repository().join("contracts/build").join(format!("{contract}.json"));
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A number as one word of the ABI: 64 hex digits.
pub fn word(number: u128) -> String {
    format!("{number:064x}")
}

/// An address as one word of the ABI: 64 hex digits.
pub fn address_word(address: &str) -> String {
    format!("{:0>64}", address.trim_start_matches("0x").to_lowercase())
}

fn hex_of(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

fn quantity(number: u128) -> String {
    format!("{number:#x}")
}

fn number(value: &Value) -> u128 {
    let digits = text(value);
    u128::from_str_radix(digits.trim_start_matches("0x"), 16)
        .unwrap_or_else(|error| panic!("{value}: {error}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}
