//! A transaction pool with the rules that anvil does not have, in geth's words (F5).
//!
//! Sources: go-ethereum `core/txpool/validation.go`, `core/txpool/legacypool/list.go`,
//! `core/txpool/errors.go`; reth rounds the replacement's minimum up.
//!
//! The pool mirrors what it passes on: entries leave it when their nonce is used up on the chain.
//! Transactions that are sent to the node behind its back are not seen.

use super::{Recorded, SEND, Shared};
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::types::{Address, U256};
use ethers_core::utils::{hex, keccak256, rlp::Rlp};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How a client rounds the 10 % that a replacement must pay more, in both fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// geth: the product is rounded down, but nothing equal replaces.
    Floor,
    /// reth: the product is rounded up.
    Ceil,
}

impl Rounding {
    /// Whether `new` may replace `old`, in one field.
    pub fn takes(self, old: U256, new: U256) -> bool {
        let product = old * U256::from(110_u64);
        let hundred = U256::from(100_u64);
        let least = match self {
            Self::Floor => product / hundred,
            Self::Ceil => (product + hundred - U256::one()) / hundred,
        };
        new > old && new >= least
    }
}

/// What happens to what the pool has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It goes to the node.
    Forward,
    /// It stays here and the node never has it: the test chooses what is mined.
    Withhold,
    /// A first version goes to the node; a replacement is accepted, answered with its hash, and lost.
    LoseReplacements,
}

/// The rules.
#[derive(Clone, Copy, Debug)]
pub struct PoolRules {
    pub rounding: Rounding,
    /// How many transactions one account may have here.
    pub per_account: usize,
    pub keeping: Keeping,
}

impl Default for PoolRules {
    fn default() -> Self {
        Self { rounding: Rounding::Floor, per_account: 64, keeping: Keeping::Forward }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    hash: String,
    fee: U256,
    tip: U256,
    /// Value and gas × fee.
    cost: U256,
}

/// The proxy's pool.
#[derive(Default)]
pub(super) struct Pool {
    rules: Option<PoolRules>,
    entries: BTreeMap<(Address, u64), Entry>,
}

/// An account, as the node has it.
struct Account {
    nonce: u64,
    balance: U256,
}

impl Pool {
    pub(super) fn new(rules: Option<PoolRules>) -> Self {
        Self { rules, entries: BTreeMap::new() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.rules.is_some()
    }

    pub(super) fn hashes(&self) -> Vec<String> {
        self.entries.values().map(|entry| entry.hash.clone()).collect()
    }

    /// Takes a transaction, or says in geth's words why not. `true` if it goes on to the node.
    fn take(
        &mut self,
        place: (Address, u64),
        entry: Entry,
        account: &Account,
    ) -> Result<bool, String> {
        let rules = self.rules.unwrap_or_default();
        let (sender, nonce) = place;
        self.entries.retain(|(of, used), _| *of != sender || *used >= account.nonce);
        if entry.tip > entry.fee {
            return Err(format!(
                "max priority fee per gas higher than max fee per gas: maxPriorityFeePerGas: {}, \
                 maxFeePerGas: {}",
                entry.tip, entry.fee
            ));
        }
        if self.entries.values().any(|known| known.hash == entry.hash) {
            return Err("already known".to_owned());
        }
        if nonce < account.nonce {
            return Err(format!("nonce too low: next nonce {}, tx nonce {nonce}", account.nonce));
        }
        self.affordable(place, &entry, account)?;
        let before = self.entries.get(&place);
        match before {
            Some(old) => {
                let enough = rules.rounding.takes(old.fee, entry.fee)
                    && rules.rounding.takes(old.tip, entry.tip);
                if !enough {
                    return Err("replacement transaction underpriced".to_owned());
                }
            }
            None => {
                let pooled = self.entries.keys().filter(|(of, _)| *of == sender).count();
                if pooled >= rules.per_account {
                    return Err(format!("account limit exceeded: pooled {pooled} txs"));
                }
            }
        }
        if before.is_some() && rules.keeping == Keeping::LoseReplacements {
            return Ok(false);
        }
        self.entries.insert(place, entry);
        Ok(rules.keeping != Keeping::Withhold)
    }

    /// The account must be able to pay for all that it has here, and for this one in place of the one it
    /// replaces.
    fn affordable(
        &self,
        place: (Address, u64),
        entry: &Entry,
        account: &Account,
    ) -> Result<(), String> {
        let (balance, cost) = (account.balance, entry.cost);
        let words = "insufficient funds for gas * price + value";
        if cost > balance {
            let over = cost - balance;
            return Err(format!("{words}: balance {balance}, tx cost {cost}, overshot {over}"));
        }
        let others = self.entries.iter().filter(|(at, _)| at.0 == place.0 && **at != place);
        let queued = others.fold(U256::zero(), |sum, (_, other)| sum + other.cost);
        if queued + cost > balance {
            let over = queued + cost - balance;
            return Err(format!(
                "{words}: balance {balance}, queued cost {queued}, tx cost {cost}, overshot {over}"
            ));
        }
        Ok(())
    }

    fn forget(&mut self, hash: &str) {
        self.entries.retain(|_, entry| entry.hash != hash);
    }
}

impl Shared {
    /// `eth_sendRawTransaction` under the pool's rules.
    pub(super) async fn submit(&self, call: &Recorded) -> Option<Value> {
        let raw = call.params[0].as_str()?;
        let Some((place, entry)) = read(raw) else {
            return Some(refused("rlp: value size exceeds available input length"));
        };
        let account = json!(format!("{:?}", place.0));
        let nonce = self.read("eth_getTransactionCount", json!([account, "latest"])).await?;
        let balance = self.read("eth_getBalance", json!([account, "latest"])).await?;
        let account = Account { nonce: quantity(&nonce)?.as_u64(), balance: quantity(&balance)? };
        let hash = entry.hash.clone();
        let taken = self.pool().take(place, entry, &account);
        match taken {
            Err(words) => Some(refused(&words)),
            Ok(false) => Some(json!({ "result": hash })),
            Ok(true) => {
                let answer = self.ask(SEND, &call.params).await?;
                if answer.get("error").is_some() {
                    self.pool().forget(&hash);
                }
                Some(answer)
            }
        }
    }
}

fn refused(words: &str) -> Value {
    json!({ "error": { "code": -32000, "message": words } })
}

fn quantity(value: &Value) -> Option<U256> {
    U256::from_str_radix(value.as_str()?.trim_start_matches("0x"), 16).ok()
}

/// Sender, nonce, hash and prices of signed bytes.
fn read(raw: &str) -> Option<((Address, u64), Entry)> {
    let bytes = hex::decode(raw.trim_start_matches("0x")).ok()?;
    let (tx, signature) = TypedTransaction::decode_signed(&Rlp::new(&bytes)).ok()?;
    let sender = signature.recover(tx.sighash()).ok()?;
    let (fee, tip) = match &tx {
        TypedTransaction::Eip1559(tx) => (tx.max_fee_per_gas?, tx.max_priority_fee_per_gas?),
        other => (other.gas_price()?, other.gas_price()?),
    };
    let cost = tx.gas()?.checked_mul(fee)?.checked_add(tx.value().copied().unwrap_or_default())?;
    let hash = format!("0x{}", hex::encode(keccak256(&bytes)));
    let entry = Entry { hash, fee, tip, cost };
    Some(((sender, tx.nonce()?.as_u64()), entry))
}
