//! The pure core of the transaction life against a simulated chain: reorgs, dropped and replaced pool
//! entries, nodes that lag separately in nonces and receipts, lost answers, crashes between any two steps,
//! operators who cancel and speed up. Seeded: `CLAVIGER_SEED=N` runs that seed alone, `CLAVIGER_SEEDS=N` so
//! many of them.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod chain;
mod random;
mod world;

use chain::FINAL_DEPTH;
use claviger::core::tx::state::Status;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// So many seeds unless the environment says otherwise.
const SEEDS: u64 = 4_000;
const EVENTS: u64 = 150;
const ROWS_MAX: usize = 8;

/// One event of the run.
fn happen(world: &mut World) {
    let kind = world.random.below(20);
    match kind {
        0 | 1 if world.rows.len() < ROWS_MAX => world.accept(),
        2..=4 => world.chain.mine(3),
        5 if !world.sent.is_empty() => {
            let sent = world.sent.clone();
            world.reorgs += 1;
            world.chain.reorg(&mut world.random, &sent);
        }
        6 => {
            let keys: Vec<u64> = world.chain.pool.keys().copied().collect();
            if let Some(nonce) = world.random.pick(&keys) {
                world.chain.pool.remove(nonce);
            }
        }
        7 => world.chain.base_fee = 1 + u128::from(world.random.below(1200)),
        8 => world.recover(),
        9 if !world.rows.is_empty() && world.random.one_in(3) => {
            let index = world.random.below(world.rows.len() as u64) as usize;
            world.intervene(index);
        }
        _ => {
            world.now += world.random.below(600) as i64;
            for index in 0..world.rows.len() {
                world.follow(index);
            }
        }
    }
    check_ends(world);
}

/// I5: an end that was told is what the final chain says, at any time.
fn check_ends(world: &World) {
    for (nonce, row) in world.rows.iter().enumerate().filter(|(_, row)| row.view.status.is_end()) {
        let told = row.mined.expect("an end names its block");
        let (number, block, tx) =
            world.chain.find(told.hash, world.chain.height()).expect("an end that is not mined");
        assert_eq!((number, block), (told.block_number, told.block_hash), "nonce {nonce}");
        assert!(number <= world.chain.final_number(), "nonce {nonce}: told before it was final");
        let no_op = row.view.attempts.iter().any(|it| it.no_op && it.hash == Some(tx.hash));
        let expected = match (no_op, row.view.ending, tx.succeeds) {
            (true, Some(ending), _) => ending.status(),
            (false, _, true) => Status::Finalized,
            (false, _, false) => Status::Reverted,
            (true, None, _) => panic!("a no-op that nobody wanted, nonce {nonce}"),
        };
        assert_eq!(row.view.status, expected, "nonce {nonce}");
    }
}

/// No faults any more, and a cheap market: everything must come to its end by itself.
fn quiet(world: &mut World) {
    world.faults = false;
    world.chain.base_fee = 1;
    world.recover();
    for _ in 0..400 {
        if world.rows.iter().all(|row| row.view.status.is_end()) {
            return;
        }
        world.now += 250;
        for index in 0..world.rows.len() {
            world.follow(index);
        }
        world.chain.mine(3);
        check_ends(world);
    }
    let stuck = world.rows.iter().filter(|row| !row.view.status.is_end());
    let stuck: Vec<String> = stuck.map(|row| format!("{:#?}", row.view)).collect();
    panic!("stuck at {} ms, base fee 1: {}", world.now, stuck.join("\n"));
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..EVENTS {
        happen(&mut world);
    }
    quiet(&mut world);
    // I2, I3: as many mined as nonces were given, each by its own request.
    let mined = world.chain.nonce_at(world.chain.height());
    assert_eq!(mined, world.rows.len() as u64, "a gap");
    assert!(world.chain.height() >= FINAL_DEPTH || world.rows.is_empty());
    world
}

#[test]
fn every_seed_ends_as_the_final_chain_says_and_nothing_is_stuck() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("CLAVIGER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CLAVIGER_SEEDS").unwrap_or(SEEDS),
    };
    let (mut reorgs, mut no_ops, mut statuses) = (0, 0, std::collections::BTreeMap::new());
    for seed in seeds.clone() {
        let ended = catch_unwind(AssertUnwindSafe(|| run(seed)));
        let Ok(world) = ended else {
            panic!("seed {seed} fails; CLAVIGER_SEED={seed} runs it alone");
        };
        reorgs += world.reorgs;
        no_ops += world.no_ops;
        for row in world.rows {
            *statuses.entry(row.view.status.name()).or_insert(0_u64) += 1;
        }
    }
    println!("{seeds:?}: {reorgs} reorgs, {no_ops} no-ops, ends: {statuses:?}");
    if seeds.end - seeds.start >= 1000 {
        for status in Status::ALL.into_iter().filter(|status| status.is_end()) {
            assert!(statuses.contains_key(status.name()), "no seed met {status}");
        }
    }
}
