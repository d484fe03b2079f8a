//! SIGKILL at random moments: of the server, of the watcher, of the database, of the broker.

use crate::programs::Supervised;
use crate::run::{KILL_BROKER, KILL_DATABASE, KILL_SERVER, KILL_WATCHER, Run, pace};
use crate::support::services::{Postgres, RabbitMq};

const SERVER_ENDED: &str = "ends that nobody asked for: server";
const WATCHER_ENDED: &str = "ends that nobody asked for: watcher";

enum Victim {
    Server,
    Watcher,
    Database,
    Broker,
}

/// Kills, each after its share of the requests, until there have been enough of them.
pub async fn storm(
    run: &Run,
    server: &mut Supervised,
    watcher: &mut Supervised,
    postgres: &mut Postgres,
    mut rabbit: Option<&mut RabbitMq>,
) {
    let mut random = run.random(5);
    // Of each hand the same kinds, in any order.
    let mut deck = Vec::new();
    let mut done = 0;
    while done < run.plan.kills {
        server.tend(SERVER_ENDED).await;
        watcher.tend(WATCHER_ENDED).await;
        if run.asked() * (run.plan.kills + 1) < run.plan.transactions * (done + 1) {
            pace(20).await;
            continue;
        }
        pace(random.below(1_200)).await;
        if deck.is_empty() {
            deck = vec![Victim::Server, Victim::Server, Victim::Watcher, Victim::Database];
            deck.extend(rabbit.is_some().then_some(Victim::Broker));
        }
        match deck.swap_remove(random.below(deck.len() as u64) as usize) {
            Victim::Watcher => {
                watcher.kill9();
                run.count(KILL_WATCHER);
                watcher.up().await;
            }
            Victim::Broker => {
                if let Some(rabbit) = rabbit.as_deref_mut() {
                    run.count(KILL_BROKER);
                    rabbit.kill9();
                    pace(random.below(1_500)).await;
                    rabbit.start_again().await;
                }
            }
            Victim::Database => {
                run.count(KILL_DATABASE);
                postgres.kill9();
                // Both programs stand without it for a while.
                pace(random.below(1_500)).await;
                postgres.start_again().await;
            }
            Victim::Server => {
                server.kill9();
                run.count(KILL_SERVER);
                if random.one_in(4) && done + 1 < run.plan.kills {
                    // Once more while it finds out what it was at.
                    server.spawn_again();
                    pace(random.below(700)).await;
                    server.kill9();
                    run.count(KILL_SERVER);
                    done += 1;
                }
                server.up().await;
            }
        }
        done += 1;
    }
}

/// Starts again what ends by itself.
pub async fn tend(server: &mut Supervised, watcher: &mut Supervised) {
    loop {
        server.tend(SERVER_ENDED).await;
        watcher.tend(WATCHER_ENDED).await;
        pace(100).await;
    }
}
