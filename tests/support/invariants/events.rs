//! I6 and I11: what came in is answered once, and is not lost.

use super::{Found, Invariants, Watched, World, database, hex};
use std::collections::BTreeSet;

pub(super) async fn check(world: &World, asked: &Invariants, found: &mut Found) {
    let bound: BTreeSet<&str> = world.db.bound.iter().map(|row| row.request_id.as_str()).collect();
    let kept: BTreeSet<&str> = world
        .db
        .transactions
        .iter()
        .map(|row| row.id.as_str())
        .chain(world.db.signatures.iter().map(|row| row.id.as_str()))
        .collect();
    for id in &asked.answered {
        if !kept.contains(id.as_str()) {
            found.say("I11", id, "was answered 2xx and is not in the database".to_owned());
        }
    }
    for row in &world.db.transactions {
        if !bound.contains(row.id.as_str()) {
            found.say("I11", &row.id, "no idempotency key leads to it".to_owned());
        }
    }
    for id in bound {
        if !kept.contains(id) {
            found.say("I11", id, "an idempotency key leads to it, and it is gone".to_owned());
        }
    }
    for watched in &asked.watched {
        answered_once(world, watched, found).await;
    }
}

/// I6.
async fn answered_once(world: &World, watched: &Watched, found: &mut Found) {
    let messages = match &watched.watcher_url {
        Some(url) => Some(database::outbox(url).await),
        None => None,
    };
    let logs =
        world.chain.logs.iter().filter(|log| {
            log.is_final && log.address == watched.address && log.topic == watched.topic
        });
    for log in logs {
        let subject = format!("{} log {}", log.transaction_hash, log.index);
        let requests: Vec<&str> = world
            .db
            .transactions
            .iter()
            .filter(|row| {
                row.source_tx.as_deref().map(hex).as_ref() == Some(&log.transaction_hash)
                    && row.source_block.as_deref().map(hex).as_ref() == Some(&log.block_hash)
                    && row.source_log.and_then(|at| u64::try_from(at).ok()) == Some(log.index)
            })
            .map(|row| row.id.as_str())
            .collect();
        if requests.len() != 1 {
            found.say("I6", &subject, format!("is final and has the requests {requests:?}"));
        }
        // An event's id: `{chain}:{block hash}:{transaction hash}:{log index}`.
        let id = format!("{}:{}:{}", log.block_hash, log.transaction_hash, log.index);
        if let Some(messages) = &messages
            && !messages.iter().any(|(event, _)| event.ends_with(&id))
        {
            found.say("I6", &subject, "is final and was never put on the bus".to_owned());
        }
    }
}
