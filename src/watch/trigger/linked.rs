//! The same business, mined again: after a reorg a transaction is in another block, and its event is another event
//! of the same business. The server has its request already. While that has no nonce it would end unsigned, since
//! its own event is gone: so the server is told of that first, and this event gets a request of its own.

use super::Not;
use crate::watch::server::{Answer, Server};
use serde_json::{Value, json};

/// What must be the same for two requests to be of one business.
const SAME: [&str; 5] = ["chain", "signer", "to", "value", "data"];

/// What follows from a key that is bound to `id`, which was asked with another body: `said`.
pub(super) async fn resolve(
    server: &Server,
    body: &Value,
    id: &str,
    said: &Answer,
) -> Result<String, Not> {
    let found = server.transaction(id).await.map_err(|error| Not::Yet(None, error))?;
    if found.status != 200 {
        return match found.status {
            // It is another principal's, or gone: nothing is known of it.
            403 | 404 => Err(Not::Never(said.to_string())),
            _ => Err(Not::Yet(found.retry_after_ms, found.to_string())),
        };
    }
    match &found.document {
        Some(document) if is_same_business(body, document) => match found.ended_unpaid() {
            // It ended since: its key may be had, if the event is there.
            Some(_) if found.ended_as_gone() => Err(Not::Early(said.to_string())),
            Some(status) => Err(Not::Never(format!(
                "the same business, mined again, but its request {id} is {status}: {}",
                found.failure()
            ))),
            None => match unsigned(document) {
                Some(gone) => Err(take_back(server, id, gone).await),
                None => Ok(linked(id)),
            },
        },
        _ => Err(Not::Never(format!("its key has another request, {id}: {said}"))),
    }
}

fn linked(id: &str) -> String {
    format!("{id} (linked: the same business, mined again)")
}

/// The source of a request that has no nonce yet: the server looks for it before it gives one.
fn unsigned(found: &Value) -> Option<&Value> {
    let has_nonce = found.get("nonce").is_some_and(|nonce| !nonce.is_null());
    found.get("source").filter(|source| !has_nonce && !source.is_null())
}

/// Has the server end a request whose transaction is in another block now, as was just read. It believes only its
/// own nodes, and what it ends unsigned gives its key to the one that asks next: so nothing is paid for twice.
async fn take_back(server: &Server, id: &str, gone: &Value) -> Not {
    let said = match server.retract(id, &json!({ "source": gone })).await {
        Ok(said) => said,
        Err(error) => return Not::Yet(None, error),
    };
    match said.status {
        200 => Not::Yet(None, format!("its request {id} was for the block before: asked again")),
        // Its nodes have not seen the reorganisation yet. It ends the request when they have, or gives it a nonce.
        409 => Not::Aside(format!("its request {id} is for the block before: {said}")),
        400 | 404 | 405 | 413 | 422 => Not::Early(said.to_string()),
        _ => Not::Yet(said.retry_after_ms, said.to_string()),
    }
}

/// Whether both are of one transaction, which was in one block and is in another: it keeps its hash. Two events
/// of one transaction, or two transactions that ask for the same, are two businesses, whatever the business id
/// says. The log's index may be another one in the other block.
fn is_same_business(asked: &Value, found: &Value) -> bool {
    let is_mined_again = match (place(asked), place(found)) {
        (Some(asked), Some(found)) => {
            asked.is_of_log == found.is_of_log
                && asked.transaction == found.transaction
                && asked.block != found.block
        }
        _ => false,
    };
    is_mined_again
        && SAME.iter().all(|name| asked.get(name).is_some() && asked.get(name) == found.get(name))
}

/// Where the event of a request is.
struct Place<'a> {
    block: &'a str,
    transaction: &'a str,
    /// Whether the request names a source, which the server reads.
    is_of_log: bool,
}

fn place(of: &Value) -> Option<Place<'_>> {
    if let Some(source) = of.get("source").filter(|source| !source.is_null()) {
        let text = |name: &str| source.get(name)?.as_str();
        let (block, transaction) = (text("block_hash")?, text("transaction_hash")?);
        return Some(Place { block, transaction, is_of_log: true });
    }
    // Of what names no source the id says it: `{chain}:{block hash}:{transaction hash}:…`.
    let mut parts = of.get("metadata")?.get("event_id")?.as_str()?.split(':').skip(1);
    let (block, transaction) = (parts.next()?, parts.next()?);
    Some(Place { block, transaction, is_of_log: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(block: &str, transaction: &str, log_index: u64) -> Value {
        json!({
            "chain": "local", "signer": "payments", "to": "0x01", "value": "0", "data": "0x02",
            "source": {
                "block_hash": block, "transaction_hash": transaction, "log_index": log_index,
            },
            "metadata": { "event_id": format!("local:{block}:{transaction}:{log_index}") },
        })
    }

    /// What names no source.
    fn without_source(mut of: Value) -> Value {
        of.as_object_mut().unwrap().remove("source");
        of
    }

    #[test]
    fn a_transaction_that_was_mined_again_is_the_same_business_and_nothing_else_is() {
        for of in [|it| it, without_source] {
            let first = of(asked("0xaa", "0x01", 0));
            assert!(!is_same_business(&first, &first), "the same event is no other body");
            let again = of(asked("0xbb", "0x01", 3));
            assert!(is_same_business(&first, &again), "also at another index");
            for name in SAME {
                let mut other = again.clone();
                other[name] = json!("another");
                assert!(!is_same_business(&first, &other), "{name}");
            }
            let twin = of(asked("0xaa", "0x01", 1));
            assert!(!is_same_business(&first, &twin), "two equal logs of one transaction");
            let like = of(asked("0xbb", "0x02", 0));
            assert!(!is_same_business(&first, &like), "two that paid the same");
        }
    }

    #[test]
    fn what_says_of_no_event_is_linked_to_nothing() {
        let (first, again) = (asked("0xaa", "0x01", 0), asked("0xbb", "0x01", 0));
        assert!(!is_same_business(&first, &without_source(again.clone())), "the server read one");
        let first = without_source(first);
        for metadata in [json!(null), json!({}), json!({ "event_id": "local" })] {
            let mut other = without_source(again.clone());
            other["metadata"] = metadata;
            assert!(!is_same_business(&first, &other), "{other}");
        }
    }
}
