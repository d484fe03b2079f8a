//! Random histories of many at once over the real store: decisions, replacements, settlements, releases, looks
//! at exposures, units that are rolled back or dropped on their way, clocks that differ, processes that end. At
//! each quiet point what happened is counted again by a reference that is not the store's.
//!
//! `CLAVIGER_SEED=N` runs the programs of one seed, `CLAVIGER_HISTORIES=N` those of as many. The database
//! schedules them anew each time, so a seed that failed once may pass now and then.

mod program;
mod reference;
mod world;

use crate::fixtures::{Database, add_key, at};
use claviger::core::id::ChainId;
use claviger::core::policy::{Charge, Period};
use claviger::ports::store::Store;
use program::{Answer, Do, Rng, Terms};
use reference::{Kind, Reference};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use world::{Entry, OWNERS, WORKERS, World};

/// On PostgreSQL one of them takes as long as four on SQLite.
const HISTORIES_OF_ONE: u64 = 4;
const HISTORIES_OF_TWO: u64 = 1;
const PHASES: u64 = 4;
const STEPS: usize = 25;
/// Far above what one takes, far below what waiting for each other would.
const DEADLINE: Duration = Duration::from_secs(120);
const DAY_MS: i64 = 86_400_000;

const fn kind(period: Period, max: u64, counts: bool) -> Kind {
    Kind { period, max, counts }
}

/// Of each span amounts or requests. Of the longest rolling one a piece is 79 ms.
const KINDS: [Kind; 9] = [
    kind(Period::Rolling(60), 40, false),
    kind(Period::Rolling(250), 60, false),
    kind(Period::Rolling(100), 6, true),
    kind(Period::Rolling(20_000), 200, false),
    kind(Period::Day, 150, false),
    kind(Period::Week, 400, false),
    kind(Period::Month, 900, false),
    kind(Period::Month, 90, true),
    kind(Period::Rolling(10 * DAY_MS), 500, false),
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_interleaving_exceeds_a_window_or_loses_spend_on_sqlite() {
    all("sqlite", Database::sqlite().await, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_interleaving_exceeds_a_window_or_loses_spend_with_two_servers_on_postgres() {
    all("postgres", Database::postgres().await, 2).await;
}

async fn all(name: &str, database: Database, stores: usize) {
    for key in 1..=OWNERS {
        add_key(&database.store, u8::try_from(key).unwrap()).await;
    }
    let Database { store, url, _folder } = database;
    drop(store);
    let seeds = match number("CLAVIGER_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let few = if stores > 1 { HISTORIES_OF_TWO } else { HISTORIES_OF_ONE };
            0..number("CLAVIGER_HISTORIES").unwrap_or(few)
        }
    };
    let (begun, mut met) = (Instant::now(), Met::default());
    for seed in seeds {
        let done = tokio::time::timeout(DEADLINE, history(seed, &url, stores, &mut met)).await;
        let done = done.unwrap_or_else(|_| Err(format!("not over within {DEADLINE:?}")));
        if let Err(what) = done {
            panic!(
                "history {seed} on {name} fails; CLAVIGER_SEED={seed} cargo test --features failpoints \
                 --test store no_interleaving runs it alone\n{what}"
            );
        }
    }
    met.print(name, begun.elapsed());
}

/// What the histories met.
#[derive(Default)]
struct Met {
    operations: usize,
    accepted: usize,
    refused: usize,
    rolled_back: usize,
    others: usize,
    probes: usize,
}

impl Met {
    fn add(&mut self, entry: &Entry) {
        self.operations += 1;
        match (&*entry.what, &entry.answer) {
            (_, Answer::Done) if !entry.is_kept => self.rolled_back += 1,
            (Do::Hold { .. }, Answer::Done) => self.accepted += 1,
            (_, Answer::Full(_)) => self.refused += 1,
            _ => self.others += 1,
        }
    }

    fn print(&self, name: &str, took: Duration) {
        println!(
            "{name}: {} operations, {:.0} a second: {} held, {} refused, {} rolled back, {} others; \
             {} questions at quiet points",
            self.operations,
            f64::from(u32::try_from(self.operations).unwrap()) / took.as_secs_f64(),
            self.accepted,
            self.refused,
            self.rolled_back,
            self.others,
            self.probes,
        );
        assert!(self.accepted > 50 && self.refused > 20, "it would show nothing");
    }
}

async fn history(seed: u64, url: &str, stores: usize, met: &mut Met) -> Result<(), String> {
    let mut rng = Rng(seed);
    // On a chain of its own, so that open exposures of another are not seen.
    let terms = Terms { seed, chain: ChainId::new(1_000_000 + seed), kinds: KINDS.to_vec() };
    let world = World::new(terms, url, stores, &mut rng).await;
    let mut reference = Reference::new(&KINDS);
    for phase in 0..PHASES {
        let crashes = (seed + phase) % 3 == 2;
        run(&world, &mut rng, crashes).await?;
        let entries = world.taken();
        for (n, entry) in entries.iter().enumerate() {
            met.add(entry);
            let judged = judge(&mut reference, &world.terms, entry);
            judged.map_err(|error| format!("{}\n{error}", story(&entries[..=n])))?;
        }
        if world.conflicts.load(SeqCst) > 0 {
            return Err("two units waited for each other".to_owned());
        }
        let quiet = quiet(&world, &reference).await;
        met.probes += quiet.map_err(|error| format!("{}\n{error}", story(&entries)))?;
    }
    Ok(())
}

/// All workers at once, until they are done or all processes are ended in the midst of it.
async fn run(world: &Arc<World>, rng: &mut Rng, crashes: bool) -> Result<(), String> {
    let mut workers = JoinSet::new();
    let half = u64::try_from(WORKERS * STEPS / 2).unwrap();
    world.mark.store(world.steps.load(SeqCst) + half, SeqCst);
    for worker in 0..WORKERS {
        workers.spawn(world.clone().work(worker, rng.next(), STEPS));
    }
    world.reached.notified().await;
    if crashes {
        workers.shutdown().await;
        world.reopen_all().await;
    } else if world.stores() > 1 {
        world.reopen_one().await;
    }
    while let Some(done) = workers.join_next().await {
        done.map_err(|error| error.to_string())??;
    }
    if !crashes && rng.one_in(2) {
        world.reopen_all().await;
    }
    world.learn_all().await.map_err(|error| error.to_string())
}

fn judge(reference: &mut Reference, terms: &Terms, entry: &Entry) -> Result<(), String> {
    match (&*entry.what, &entry.answer) {
        (_, Answer::Late) => Ok(()),
        (what, Answer::Done) => reference.accepted(what, entry.now, entry.is_kept),
        (Do::Hold { asks, .. }, Answer::Full(told)) => {
            let full = (0..KINDS.len()).find(|limit| terms.label(*limit) == told.label).unwrap();
            reference.refused(asks, entry.now, (full, told))
        }
        (_, Answer::Full(_)) => Err("only a decision may be refused".to_owned()),
    }
}

/// The last of what happened.
fn story(entries: &[Entry]) -> String {
    let last = entries.iter().rev().take(30).rev();
    last.map(Entry::line).collect::<Vec<_>>().join("\n")
}

/// When nothing is going on, the sums are those of the reference, what fits is accepted, and one more is not.
async fn quiet(world: &World, reference: &Reference) -> Result<usize, String> {
    let store = world.store(0);
    let rows = read!(store, [], |unit| unit.limits_now(at(i64::MIN)).await?);
    let mut asked = 0;
    for limit in 0..KINDS.len() {
        let row = rows.iter().find(|row| row.label == world.terms.label(limit));
        let held = row.map_or(0, |row| row.held.units().to::<u64>());
        if held != reference.held(limit) {
            return Err(format!("limit {limit} holds {held} of {}", reference.held(limit)));
        }
    }
    // Now, around the moments at which the newest settlements leave, and when all have left.
    let late = world.late();
    let edges = reference.edges(late).into_iter().flat_map(|edge| [edge - 1, edge]);
    for now in [late, late + 70 * DAY_MS].into_iter().chain(edges) {
        asked += probe(world, reference, &store, now).await?;
    }
    Ok(asked)
}

/// What fits everywhere is accepted, and one more is refused by each limit. Nothing of it is kept.
async fn probe(
    world: &World,
    reference: &Reference,
    store: &Arc<dyn Store>,
    now: i64,
) -> Result<usize, String> {
    let charge = |limit: usize, value: u64| world.terms.charge(limit, (value, 0), KINDS[limit].max);
    let limits = 0..KINDS.len();
    let used: Vec<(u64, u64)> = limits.clone().map(|limit| reference.used(limit, now)).collect();
    let fits = |limit: usize| KINDS[limit].max.saturating_sub(used[limit].1);
    // A settlement may have spent above the maximum, as it counts what was paid. Nothing always fits.
    let much = |limit: usize| (KINDS[limit].max + 1).saturating_sub(used[limit].0).max(1);
    let fitting: Vec<Charge> = limits.clone().map(|limit| charge(limit, fits(limit))).collect();
    let too_much: Vec<Charge> = limits.clone().map(|limit| charge(limit, much(limit))).collect();
    let full =
        roll_back!(store, [fitting], |unit| unit.reserve("probe", &fitting, at(now)).await?);
    if let Some(full) = full.unwrap() {
        return Err(format!("at {now} there was room: {full:?}; used are {used:?}"));
    }
    let refused = roll_back!(store, [too_much], |unit| {
        let mut refused = Vec::new();
        for charge in too_much {
            refused.push(unit.reserve("probe", &[charge], at(now)).await?.is_some());
        }
        refused
    });
    match refused.unwrap().iter().position(|refused| !refused) {
        Some(limit) => Err(format!("at {now} {} fit into limit {limit}: {used:?}", much(limit))),
        None => Ok(2 * KINDS.len()),
    }
}
