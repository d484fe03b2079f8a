//! Reading old blocks again. A running watcher does it, where it was if it is stopped in between; this
//! command asks for it, and shows how far it is.

use crate::{Outcome, open, print};
use claviger::ports::clock::Clock as _;
use claviger::ports::watch_store::{Progress, WatchStore, chain_duty};
use claviger::system::SystemClock;
use claviger::watch::plan::{ChainPlan, Plan};
use claviger::watch::progress::behind;
use claviger::watch::status::behind_to_text;
use claviger::watch::store::OpenMode;
use std::io::Write as _;
use std::time::Duration;

/// What to read again.
pub(crate) struct Wanted {
    /// The source.
    pub(crate) source: String,
    /// The first block.
    pub(crate) from_block: u64,
    /// The last block; else all up to where the source is.
    pub(crate) to_block: Option<u64>,
    /// Whether to stay until it is done.
    pub(crate) wait: bool,
}

pub(crate) async fn run(plan: &Plan, wanted: &Wanted) -> Outcome<()> {
    let Wanted { source, from_block, to_block, wait } = wanted;
    let chain = chain_of(plan, source)?;
    let store = open(plan, OpenMode::Existing).await?;
    let taken = match to_block {
        Some(to) => store.reread(source, *from_block, *to).await?,
        None => store.rewind(source, *from_block).await?,
    };
    if !taken {
        let text = "is not known, or has not read so far: nothing to read again";
        return Err(format!("source {source} {text}").into());
    }
    let to = to_block.map_or(String::new(), |to| format!(" to {to}"));
    print(&format!("source {source} is read again from block {from_block}{to}"))?;
    if *wait {
        follow(chain, store.as_ref(), source).await?;
        print(&format!("source {source} has read them"))?;
    }
    Ok(())
}

/// The chain of a source. Nobody would read one that is not configured.
fn chain_of<'a>(plan: &'a Plan, name: &str) -> Outcome<&'a ChainPlan> {
    let of = |chain: &&ChainPlan| chain.sources.iter().any(|source| source.name == name);
    let chain = plan.chains.iter().find(of);
    chain.ok_or_else(|| format!("source {name} is not in the configuration").into())
}

/// A line a second on standard error, until the source has come to where it was.
async fn follow(chain: &ChainPlan, store: &dyn WatchStore, name: &str) -> Outcome<()> {
    let duty = chain_duty(&chain.chain.name);
    // The head moves on; what was there at the beginning is what is waited for.
    let mut end = None;
    loop {
        let state = store.load(&chain.chain.name).await?.ok_or("the chain's rows are gone")?;
        if let Some(why) = &state.halted {
            let chain = &chain.chain.name;
            let text = "it is read once the chain goes on (`claviger-watcher resume`)";
            return Err(format!("chain {chain} is halted: {why}; {text}").into());
        }
        let progress: Vec<Progress> = store.progress().await?;
        let progress = progress.iter().find(|progress| progress.source == name);
        let source = state.sources.iter().find(|source| source.name == name);
        let source = source.ok_or("the source's row is gone")?;
        let now = SystemClock.now();
        let Some(behind) = behind(&state, source, progress, now) else { return Ok(()) };
        if source.next_block > *end.get_or_insert(behind.to_block) {
            return Ok(());
        }
        let held = |duty: &claviger::ports::watch_store::Duty| duty.until > now;
        let led = store.duties().await?.iter().any(|known| known.name == duty && held(known));
        let alone = if led { "" } else { "; no watcher leads this chain: it waits for one" };
        let text = behind_to_text(&behind);
        // Nobody is left to tell if standard error is closed.
        let _ = writeln!(std::io::stderr(), "source {name}: {text}{alone}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
