//! What an operator is shown.

use crate::compose::{broker, edge, orphans};
use crate::{Outcome, open, print};
use claviger::bus::rabbitmq::Topology;
use claviger::chain::evm::EvmChain;
use claviger::ports::chain::{BlockAt, Chain as _};
use claviger::ports::clock::Clock as _;
use claviger::ports::watch_store::ParkedFrom;
use claviger::system::SystemClock;
use claviger::watch::plan::Plan;
use claviger::watch::status::{self, Shown};
use claviger::watch::store::OpenMode;
use std::io::Write as _;

/// How many of each kind a page of what is parked has; each may have a mebibyte.
const PAGE: u32 = 20;

/// The broker's queues, as it says now; `None` for the embedded bus.
async fn look_at_broker(plan: &Plan) -> Option<status::Broker> {
    let (settings, exchange) = broker(&plan.bus)?;
    let names = plan.triggers.iter().map(|trigger| format!("trigger:{}", trigger.name));
    let topology = Topology::of_names(exchange, names);
    Some(settings.look(&topology).await.map_err(|error| error.to_string()))
}

/// The head of a chain, and how old what the watcher has come to is by its clock.
async fn look_at_head(chain: &EvmChain, cursor: Option<u64>) -> Option<status::Head> {
    let head = chain.block(BlockAt::Latest).await.ok().flatten()?;
    let at = match cursor {
        Some(number) => chain.block(BlockAt::Number(number)).await.ok().flatten(),
        None => None,
    };
    let ahead_seconds = at.map(|at| head.timestamp_s.saturating_sub(at.timestamp_s));
    Some(status::Head { number: head.number, ahead_seconds })
}

pub(crate) async fn status(plan: Plan, json: bool) -> Outcome<()> {
    let store = open(&plan, OpenMode::Existing).await?;
    let found = store.status().await?;
    let mut heads = status::Heads::new();
    for chain in &plan.chains {
        let name = chain.chain.name.as_str();
        let known = found.chains.iter().find(|known| known.pin.name == name);
        let cursor = known.map(|known| known.cursor.number);
        let edge = edge(chain, chain.chain.finality)?;
        heads.extend(look_at_head(&edge, cursor).await.map(|head| (name.to_owned(), head)));
    }
    let broker = look_at_broker(&plan).await;
    let again = store.all_checked().await?;
    let orphans = orphans(store.as_ref(), &plan).await?;
    let shown = Shown {
        status: &found,
        again: &again,
        orphans: &orphans,
        heads: &heads,
        broker: broker.as_ref(),
        now: SystemClock.now(),
    };
    if json {
        return print(&status::to_json(&shown).to_string());
    }
    print(&status::to_text(&shown))
}

/// Prints what is parked, a page at a time.
pub(crate) async fn parked(plan: &Plan) -> Outcome<()> {
    let store = open(plan, OpenMode::Existing).await?;
    let mut from = Some(ParkedFrom::default());
    while let Some(at) = from {
        let page = store.parked_page(at, PAGE).await?;
        let lines = status::parked_to_lines(&page.items);
        std::io::stdout().lock().write_all(lines.as_bytes())?;
        from = page.next;
    }
    Ok(())
}
