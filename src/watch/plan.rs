//! The configuration, checked and compiled: what can be wrong is wrong at start.

mod bus;
mod process;
mod source;

pub use bus::BusPlan;
pub use process::ProcessPlan;
pub use source::{Source, Watches};

use super::config::{
    ChainSection, Config, Finality, OwnEvents, ServerSection, Since, SourceSection, TriggerSection,
};
use crate::config::store::{StoreSection, StoreUrlError};
use crate::core::trigger::{BusinessId, Rate, Trigger, TriggerError};
use alloy::primitives::Address;
use std::collections::BTreeSet;

/// Why a configuration cannot run.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct PlanError {
    place: String,
    reason: String,
}

/// A chain and what is watched on it.
#[derive(Debug, Clone)]
pub struct ChainPlan {
    /// Its section.
    pub chain: ChainSection,
    /// Its sources.
    pub sources: Vec<Source>,
}

/// A trigger that can run.
#[derive(Debug, Clone)]
pub struct TriggerPlan {
    /// Its name.
    pub name: String,
    /// Whose events.
    pub source: Source,
    /// The chain that the source is on.
    pub source_chain: String,
    /// The chain that the transaction goes to.
    pub chain: String,
    /// The group that signs.
    pub signer: String,
    /// The contract that is called.
    pub to: Address,
    /// The call.
    pub call: Trigger,
    /// The identity of the business.
    pub business_id: BusinessId,
    /// Whether it gets what its source found before it was there.
    pub since_beginning: bool,
    /// How often it may ask.
    pub rate: Option<Rate>,
    /// Whether it acts on events that its own requests have caused.
    pub allows_loop: bool,
}

impl TriggerPlan {
    /// What an operator should think about, if there is something.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let is_same = self.chain == self.source_chain
            && self.source.subject() == Some(self.to)
            && !matches!(self.source.watches, Watches::NativeTo(_));
        let what = if self.allows_loop {
            "and it acts on what it causes itself, for ever"
        } else {
            "and what it causes itself is parked"
        };
        is_same.then(|| {
            let name = &self.name;
            format!(
                "[[trigger]] {name}: it calls the contract that its source watches; if the call \
                 is what it waits for, or emits it, it feeds itself, {what}"
            )
        })
    }
}

/// Everything that runs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the database is.
    pub store: StoreSection,
    /// The server, if there are triggers.
    pub server: Option<ServerSection>,
    /// The bus.
    pub bus: BusPlan,
    /// The process itself.
    pub process: ProcessPlan,
    /// The chains.
    pub chains: Vec<ChainPlan>,
    /// The triggers.
    pub triggers: Vec<TriggerPlan>,
}

fn wrong(section: &'static str, name: &str, reason: impl ToString) -> PlanError {
    PlanError { place: format!("[[{section}]] {name}"), reason: reason.to_string() }
}

fn check_name(section: &'static str, name: &str) -> Result<(), PlanError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        let reason = "a name is 1 to 64 of a-z, 0-9, `-`, `_` and `.`";
        return Err(wrong(section, name, reason));
    }
    Ok(())
}

/// EIP-55 or all lower case; anything else is a typing error.
fn address(text: &str) -> Result<Address, &'static str> {
    const REASON: &str =
        "an address is 0x and 40 hex digits, lower case or with an EIP-55 checksum";
    let parsed: Address = text.parse().map_err(|_| REASON)?;
    if text == format!("{parsed:#x}") || text == parsed.to_checksum(None) {
        Ok(parsed)
    } else {
        Err(REASON)
    }
}

impl Plan {
    /// Checks a configuration.
    ///
    /// # Errors
    /// At the first thing that is wrong, by section and name.
    pub fn new(config: Config) -> Result<Self, PlanError> {
        let mut names = BTreeSet::new();
        let mut ids = BTreeSet::new();
        let mut chains = Vec::with_capacity(config.chain.len());
        for chain in config.chain {
            check_chain(&chain)?;
            if !names.insert(chain.name.clone()) || !ids.insert(chain.chain_id) {
                return Err(wrong("chain", &chain.name, "this name or chain_id is there twice"));
            }
            chains.push(ChainPlan { chain, sources: Vec::new() });
        }
        let mut names = BTreeSet::new();
        for section in config.source {
            if !names.insert(section.name.clone()) {
                return Err(wrong("source", &section.name, "this name is there twice"));
            }
            place_source(&mut chains, section)?;
        }
        let mut names = BTreeSet::new();
        let mut triggers = Vec::with_capacity(config.trigger.len());
        for section in config.trigger {
            if !names.insert(section.name.clone()) {
                return Err(wrong("trigger", &section.name, "this name is there twice"));
            }
            triggers.push(trigger(&chains, section)?);
        }
        if let (Some(trigger), None) = (triggers.first(), &config.server) {
            return Err(wrong("trigger", &trigger.name, "triggers need a [server]"));
        }
        let bus = BusPlan::new(config.bus, &chains, &triggers)?;
        let process = ProcessPlan::new(&config.watch)?;
        let (store, server) = (config.store, config.server);
        let misplaced = |error: StoreUrlError| PlanError {
            place: "[store]".to_owned(),
            reason: error.to_string(),
        };
        store.check().map_err(misplaced)?;
        Ok(Self { store, server, bus, process, chains, triggers })
    }
}

fn check_chain(chain: &ChainSection) -> Result<(), PlanError> {
    check_name("chain", &chain.name)?;
    if chain.rpc.is_empty() {
        return Err(wrong("chain", &chain.name, "rpc needs at least one URL"));
    }
    if chain.poll_ms == 0 || chain.window_blocks == 0 {
        return Err(wrong("chain", &chain.name, "poll_ms and window_blocks are at least 1"));
    }
    if chain.range_blocks == 0 {
        return Err(wrong("chain", &chain.name, "range_blocks is at least 1"));
    }
    check_depth("chain", &chain.name, chain.finality, chain.window_blocks)
}

fn check_depth(
    section: &'static str,
    name: &str,
    finality: Finality,
    window: u64,
) -> Result<(), PlanError> {
    match finality {
        Finality::Depth(depth) if depth >= window => {
            let reason = "the depth of finality must be below the chain's window_blocks";
            Err(wrong(section, name, reason))
        }
        _ => Ok(()),
    }
}

fn place_source(chains: &mut [ChainPlan], section: SourceSection) -> Result<(), PlanError> {
    let name = section.name.clone();
    let fail = |reason: String| wrong("source", &name, reason);
    check_name("source", &name)?;
    let chain = chains.iter_mut().find(|plan| plan.chain.name == section.chain);
    let chain = chain.ok_or_else(|| fail(format!("there is no chain {}", section.chain)))?;
    let finality = section.finality.unwrap_or(chain.chain.finality);
    check_depth("source", &name, finality, chain.chain.window_blocks)?;
    let watches = Watches::of(&section).map_err(fail)?;
    let (name, from_block) = (section.name, section.from_block);
    chain.sources.push(Source { name, watches, from_block, finality });
    Ok(())
}

fn trigger(chains: &[ChainPlan], section: TriggerSection) -> Result<TriggerPlan, PlanError> {
    let name = section.name.as_str();
    let fail = |reason: String| wrong("trigger", name, reason);
    let misfit = |error: TriggerError| fail(error.to_string());
    check_name("trigger", name)?;
    let found = chains.iter().find_map(|plan| {
        let source = plan.sources.iter().find(|source| source.name == section.source)?;
        Some((plan.chain.name.clone(), source))
    });
    let (source_chain, source) =
        found.ok_or_else(|| fail(format!("there is no source {}", section.source)))?;
    let to = match &section.to {
        Some(text) => address(text).map_err(|reason| fail(format!("to: {reason}")))?,
        None => source.emitter().ok_or_else(|| {
            fail("to is needed: its source is not of one contract's event".to_owned())
        })?,
    };
    if section.signer.is_empty() {
        return Err(fail("signer is empty".to_owned()));
    }
    let call = Trigger::parse(&section.function, &section.args, &source.watches).map_err(misfit)?;
    let business_id = BusinessId::parse(&section.business_id, &source.watches).map_err(misfit)?;
    let rate = section.rate.as_deref().map(|text| {
        let wrong = || fail(format!("rate: `{text}` is not a number and a span, such as 100/1m"));
        Rate::parse(text).ok_or_else(wrong)
    });
    Ok(TriggerPlan {
        rate: rate.transpose()?,
        allows_loop: section.own_events == OwnEvents::Allow,
        chain: section.chain.unwrap_or_else(|| source_chain.clone()),
        source: source.clone(),
        since_beginning: section.since == Since::Beginning,
        name: section.name,
        source_chain,
        signer: section.signer,
        to,
        call,
        business_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use std::path::Path;

    const GOOD: &str = r#"
        [store]
        url = "sqlite:watcher.db"
        [server]
        url = "http://127.0.0.1:8080"
        token_file = "token"
        [[chain]]
        name = "local"
        chain_id = 31337
        rpc = ["http://127.0.0.1:8545"]
        finality = { depth = 2 }
        [[source]]
        name = "charges"
        chain = "local"
        address = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
        event = "Asked(uint256 indexed orderId, address indexed payer, uint256 amount)"
        [[trigger]]
        name = "charge"
        source = "charges"
        signer = "payments"
        function = "run(uint256 orderId, uint256 amount)"
        args = { orderId = "orderId", amount = "amount" }
        business_id = ["{chain}", "{contract}", "orderId"]
    "#;

    fn plan(text: &str) -> Result<Plan, String> {
        let config: Config = parse(Path::new("watcher.toml"), text, std::iter::empty())
            .map_err(|error| error.to_string())?;
        Plan::new(config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_configuration_is_compiled() {
        let plan = plan(GOOD).unwrap();
        assert_eq!(plan.chains[0].sources[0].finality, Finality::Depth(2));
        assert_eq!(Some(plan.triggers[0].to), plan.chains[0].sources[0].emitter());
        assert_eq!(plan.triggers[0].chain, "local");
        assert!(!plan.triggers[0].allows_loop && plan.triggers[0].rate.is_none());
        assert!(plan.triggers[0].warning().unwrap().contains("feeds itself"));
        assert_eq!(
            plan.chains[0].sources[0].definition(),
            "Asked(uint256,address,uint256) of 0x5fbdb2315678afecb367f032d93f642f64180aa3"
        );
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (from, to, said) in [
            ("chain = \"local\"", "chain = \"other\"", "no chain other"),
            ("url = \"sqlite:watcher.db\"", "", "[store]: needs exactly one of"),
            ("[store]", "[store]\n        url_file = \"url\"", "[store]: needs exactly one of"),
            ("source = \"charges\"", "source = \"other\"", "no source other"),
            ("180aa3", "180aA3", "EIP-55"),
            ("amount = \"amount\"", "amount = \"payer\"", "does not fit"),
            ("\"{contract}\"", "\"{log_index}\"", "sign twice"),
            ("depth = 2", "depth = 5000", "window_blocks"),
            ("depth = 2", "height = 2", "unknown variant"),
            ("chain_id = 31337", "chain_id = 31337\nspeed = 1", "unknown field `speed`"),
            ("chain_id = 31337", "chain_id = 31337\nrange_blocks = 0", "range_blocks"),
            ("name = \"charges\"", "name = \"Charges!\"", "a-z"),
            ("signer =", "rate = \"100\"\n        signer =", "such as 100/1m"),
            ("signer =", "loop = \"perhaps\"\n        signer =", "unknown variant"),
            (
                "[server]\n        url = \"http://127.0.0.1:8080\"\n        token_file = \"token\"",
                "",
                "[server]",
            ),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = plan(&text).unwrap_err();
            assert!(error.contains(said), "{said}: {error}");
        }
    }

    const EVENT: &str =
        "event = \"Asked(uint256 indexed orderId, address indexed payer, uint256 amount)\"";
    const ADDRESS: &str = "address = \"0x5FbDB2315678afecb367f032d93F642f64180aa3\"";

    /// The good configuration, with another source (and what the trigger takes from it).
    fn with_source(source: &str, trigger: &str) -> String {
        let text = GOOD.replace(ADDRESS, "").replace(EVENT, source);
        let (head, tail) = text.split_once("function = \"run").unwrap();
        let tail = format!("function = \"run{tail}");
        if trigger.is_empty() { head.to_owned() + &tail } else { head.to_owned() + trigger }
    }

    #[test]
    fn a_source_is_of_one_kind() {
        let to = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
        let native = format!("native_to = [\"{to}\"]");
        for (source, said) in [
            ("", "`event`, `native_to` or `calls_to`"),
            (&format!("{EVENT}\n{native}"), "one of `event`, `native_to` and `calls_to`"),
            (&format!("{native}\ncalls_to = \"{to}\""), "one of `event`"),
            (&format!("{native}\n{ADDRESS}"), "`address` goes with `event`"),
            (&format!("{EVENT}\nfunction = \"f()\""), "`function` goes with `calls_to`"),
            ("native_to = []", "no address"),
            (&format!("native_to = [\"{to}\", \"{to}\"]"), "twice"),
            ("native_to = [\"0x5fbDB2315678afecb367f032d93F642f64180aa3\"]", "EIP-55"),
            (&format!("calls_to = \"{to}\"\nfunction = \"f(uint256)\""), "name of its own"),
        ] {
            let error = plan(&with_source(source, "")).unwrap_err();
            assert!(error.contains(said), "{said}: {error}");
        }
    }

    #[test]
    fn triggers_take_their_arguments_from_every_kind_of_source() {
        let to = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
        let call = |args: &str| {
            format!(
                "to = \"{to}\"\nfunction = \"run(address who, uint256 amount)\"\nargs = {args}\n\
                 business_id = [\"{{chain}}\", \"{{transaction_hash}}\"]"
            )
        };
        let native = format!("native_to = [\"{to}\"]");
        let calls = format!("calls_to = \"{to}\"\nfunction = \"pay(address payee, uint128 wei)\"");
        for (source, args, definition) in [
            (&native, r#"{ who = "from", amount = "value" }"#, "native transfers to 0x5fbdb2"),
            (
                &calls,
                r#"{ who = "payee", amount = "wei" }"#,
                "calls of pay(address,uint128) of 0x5f",
            ),
            (
                &EVENT.to_owned(),
                r#"{ who = "payer", amount = "amount" }"#,
                "Asked(uint256,address,uint256) of any contract",
            ),
        ] {
            let plan = plan(&with_source(source, &call(args))).unwrap();
            let found = plan.triggers[0].source.definition();
            assert!(found.starts_with(definition), "{found}");
        }
        let wrong = plan(&with_source(&native, &call(r#"{ who = "from", amount = "gas" }"#)));
        assert!(wrong.unwrap_err().contains("`gas`"));
        let nowhere = call(r#"{ who = "from", amount = "value" }"#).replace("to = ", "chain = ");
        let nowhere = nowhere.replacen(to, "local", 1);
        assert!(plan(&with_source(&native, &nowhere)).unwrap_err().contains("to is needed"));
    }

    #[test]
    fn a_trigger_may_begin_with_what_was_found_before() {
        assert!(!plan(GOOD).unwrap().triggers[0].since_beginning);
        let text = GOOD.replace("signer =", "since = \"beginning\"\nsigner =");
        assert!(plan(&text).unwrap().triggers[0].since_beginning);
        let text = GOOD.replace("signer =", "since = \"2020\"\nsigner =");
        assert!(plan(&text).unwrap_err().contains("beginning"));
    }

    #[test]
    fn no_two_triggers_have_the_same_queue() {
        let (_, trigger) = GOOD.split_once("[[trigger]]").unwrap();
        let other = trigger.replace("name = \"charge\"", "name = \"charge.dead\"");
        let text = format!("{GOOD}\n[[trigger]]{other}");
        assert_eq!(plan(&text).unwrap().triggers.len(), 2, "in this process there are no queues");
        let bus = "[bus]\nkind = \"rabbitmq\"\nurl = \"amqp://127.0.0.1\"";
        let error = plan(&format!("{text}\n{bus}")).unwrap_err();
        assert!(error.contains("charge.dead") && error.contains("gives up"), "{error}");
        assert!(plan(&format!("{GOOD}\n{bus}")).is_ok());
    }

    #[test]
    fn finality_is_a_word_or_a_depth() {
        for (text, wanted) in [
            ("\"finalized\"", Finality::Finalized),
            ("\"safe\"", Finality::Safe),
            ("{ depth = 12 }", Finality::Depth(12)),
        ] {
            let plan = plan(&GOOD.replace("{ depth = 2 }", text)).unwrap();
            assert_eq!(plan.chains[0].chain.finality, wanted);
        }
    }
}
