//! What happens: one event after another while the storm lasts; then a plateau, where fees stay above the caps
//! of most callers and nobody may keep others waiting for ever; and then the quiet in which everything must come
//! to its end.

use crate::chain::{ACCOUNTS, Content, Said, Signed, UNIT};
use crate::laws;
use crate::nodes::Bad;
use crate::world::{Core, DEPOSIT, Done, Stop, World, accepted};
use alloy::primitives::B256;
use claviger::core::intent::Fees;

const EVENTS: u64 = 150;
const REQUESTS_MAX: usize = 12;
/// Looks on the plateau or in the quiet, and the time between them. Together more than a clock was ever ahead.
const LOOKS_MAX: u64 = 700;
const LOOK_MS: i64 = 2000;

/// A whole run. The laws are asked after each event.
pub fn run(core: Core, seed: u64, is_told: bool) -> (World, Result<(), String>) {
    let mut world = World::new(core, seed, is_told);
    let ended =
        storm(&mut world).and_then(|()| plateau(&mut world)).and_then(|()| quiet(&mut world));
    let ended = match ended {
        Ok(()) => Ok(()),
        Err(Stop::Broken(what)) => Err(what),
        Err(Stop::Crash) => Err("a crash after the storm".to_owned()),
    };
    (world, ended)
}

fn storm(world: &mut World) -> Done {
    for _ in 0..EVENTS {
        match happen(world) {
            Err(Stop::Crash) => world.restart(),
            other => other?,
        }
        laws::check(world).map_err(Stop::Broken)?;
    }
    Ok(())
}

fn happen(world: &mut World) -> Done {
    match world.random.below(32) {
        0..=2 if world.requests.len() < REQUESTS_MAX => {
            let now = world.now().millis();
            let request = accepted(&mut world.random, now);
            let (account, index) = (request.account, world.requests.len());
            world.requests.push(request);
            world.count("requests");
            world.say(|_| format!("request {index}: accepted, account {account}"));
            world.work_lane(account)
        }
        3..=6 => mine(world),
        7 if world.chain.height() > 0 => reorg(world),
        8 => {
            let keys: Vec<(usize, u64)> = world.chain.pool.keys().copied().collect();
            if let Some(place) = world.random.pick(&keys).copied() {
                world.chain.pool.remove(&place);
                world.count("dropped by the pool");
                world.say(|_| format!("the pool drops {place:?}"));
            }
            Ok(())
        }
        9 => {
            world.chain.base_fee = UNIT * u128::from(1 + world.random.below(1200));
            world.say(|world| format!("base fee {}", world.chain.base_fee));
            Ok(())
        }
        10 => world.recover(),
        11 if !world.requests.is_empty() => {
            let index = world.random.below(world.requests.len() as u64) as usize;
            if world.random.one_in(3) { world.intervene(index) } else { Ok(()) }
        }
        12 => {
            node_goes_bad(world);
            Ok(())
        }
        13 => {
            clock_jumps(world);
            Ok(())
        }
        14 => {
            money(world);
            Ok(())
        }
        15 if world.random.one_in(6) => {
            stranger(world);
            Ok(())
        }
        16 => {
            world.reconcile();
            Ok(())
        }
        17 if !world.late.is_empty() => {
            let at = world.random.below(world.late.len() as u64) as usize;
            let late = world.late.swap_remove(at);
            world.say(|_| format!("request {}: a slow worker does {:?}", late.index, late.due));
            world.perform(late)
        }
        18..=20 => {
            let account = world.random.below(ACCOUNTS as u64) as usize;
            world.work_lane(account)
        }
        _ => {
            world.clock += world.random.below(600) as i64;
            (0..world.requests.len()).try_for_each(|index| world.follow(index))
        }
    }
}

fn mine(world: &mut World) -> Done {
    world.chain.mine(3);
    let mut bad = world.bad.take();
    if let Some(Bad::Forked(branch)) = &mut bad {
        world.chain.extend(branch, &mut world.random, &world.sent);
    }
    world.bad = bad;
    Ok(())
}

fn reorg(world: &mut World) -> Done {
    let lost = world.chain.reorg(&mut world.random, &world.sent);
    world.count("reorgs");
    world.say(|world| {
        format!("reorg: {} blocks go, the head is {}", lost.blocks.len(), world.chain.height())
    });
    if let Some(Bad::Forked(branch)) = &mut world.bad
        && lost.base < branch.base
    {
        // What it stands on has left the chain too.
        let below = (branch.base - lost.base) as usize;
        let mut blocks = lost.blocks[..below].to_vec();
        blocks.append(&mut branch.blocks);
        (branch.base, branch.blocks) = (lost.base, blocks);
    } else if world.bad.is_none() && world.random.one_in(3) {
        world.count("nodes that stay on a fork");
        world.bad = Some(Bad::Forked(lost));
    }
    Ok(())
}

fn node_goes_bad(world: &mut World) {
    if world.bad.is_some() {
        world.bad = None;
        world.say(|_| "all nodes are honest".to_owned());
        return;
    }
    if world.random.one_in(2) {
        world.bad = Some(Bad::Lying);
        world.count("nodes that lie");
    } else {
        let base = world.chain.height() - world.random.below(3).min(world.chain.height());
        world.bad = Some(Bad::Forked(crate::chain::Branch { base, blocks: Vec::new() }));
        world.count("nodes that stay on a fork");
    }
    world.say(|world| format!("a node goes bad: {:?}", world.bad));
}

fn clock_jumps(world: &mut World) {
    world.skew = match world.random.below(3) {
        0 => 0,
        1 => world.random.below(600_000) as i64,
        _ => -(world.random.below(60_000) as i64),
    };
    world.count("clock jumps");
    world.say(|world| format!("the clock is off by {} ms", world.skew));
}

fn money(world: &mut World) {
    let account = world.random.below(ACCOUNTS as u64) as usize;
    if world.random.one_in(2) {
        world.chain.deposits[account] -= world.chain.balance_at(account, world.chain.height());
        world.count("accounts drained");
    } else {
        world.chain.deposits[account] += DEPOSIT;
        world.count("accounts topped up");
    }
    world.say(|world| {
        let has = world.chain.balance_at(account, world.chain.height());
        format!("account {account} has {has}")
    });
}

/// Somebody else signs with the key of an account, at the nonce that its chain wants next.
fn stranger(world: &mut World) {
    let account = world.random.below(ACCOUNTS as u64) as usize;
    let nonce = world.chain.nonce_at(account, world.chain.height());
    let mut hash = [0xcc; 32];
    hash[..8].copy_from_slice(&world.random.next().to_be_bytes());
    let high = UNIT * u128::from(500 + world.random.below(5000));
    let tx = Signed {
        hash: B256::from(hash),
        account,
        nonce,
        fees: Fees { max_fee: high, max_priority_fee: high },
        value: 0,
        content: Content::Stranger,
        succeeds: true,
        refused: false,
    };
    let said = world.chain.send(tx);
    if said == Said::Taken {
        world.sent.push(tx);
        world.count("strangers");
    }
    world.say(|_| format!("account {account}: a stranger sends nonce {nonce}, {said:?}"));
}

/// No faults any more, and a base fee that stays between the caps of callers and the chain's own: a head that
/// cannot be mined gives way to those who wait behind it, and one behind which nobody waits stays.
fn plateau(world: &mut World) -> Done {
    let base_fee = UNIT * u128::from(200 + world.random.below(800));
    calm(world, "PLATEAU", base_fee, laws::nobody_is_kept_waiting)?;
    for index in 0..world.requests.len() {
        if laws::is_priced_out(world, index) {
            world.count("heads at their cap behind which nobody waited");
        }
    }
    Ok(())
}

/// A cheap market: everything must come to its end by itself, or, where a stranger took the nonce, by an
/// operator's word.
///
/// The market is cheap because a caller's cap may be anywhere, and a head at its cap behind which nobody waits
/// may wait for ever.
fn quiet(world: &mut World) -> Done {
    calm(world, "QUIET", UNIT, laws::quiet)
}

/// No faults, money, honest nodes, a clock that is right, and this base fee, until the law holds. It must, in
/// time.
fn calm(
    world: &mut World,
    name: &'static str,
    base_fee: u128,
    law: fn(&World) -> laws::Law,
) -> Done {
    world.faults = false;
    world.bad = None;
    world.skew = 0;
    world.chain.base_fee = base_fee;
    world.chain.deposits.iter_mut().for_each(|deposit| *deposit += DEPOSIT);
    world.say(|_| format!("{name}, the base fee is {base_fee}"));
    world.recover()?;
    for _ in 0..LOOKS_MAX {
        world.clock += LOOK_MS;
        world.reconcile();
        while let Some(late) = world.late.pop() {
            world.perform(late)?;
        }
        for account in 0..ACCOUNTS {
            world.work_lane(account)?;
        }
        (0..world.requests.len()).try_for_each(|index| world.follow(index))?;
        world.chain.mine(3);
        laws::check(world).map_err(Stop::Broken)?;
        if law(world).is_ok() {
            return Ok(());
        }
    }
    let open = world.requests.iter().enumerate().filter(|(_, request)| request.is_open());
    let open: Vec<String> =
        open.map(|(index, request)| format!("request {index}: {:#?}", request.view)).collect();
    let what = law(world).err().unwrap_or_default();
    Err(Stop::Broken(format!("stuck at {} ms: {what} {}", world.clock, open.join("\n"))))
}
