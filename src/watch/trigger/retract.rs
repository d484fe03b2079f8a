//! A retraction: the server is told that the event of its request is gone, until it has answered.

use super::{Not, TriggerConsumer, request};
use crate::ports::bus::{Kind, Message, STANDS_AGAIN};
use serde_json::{Value, json};

impl TriggerConsumer {
    pub(super) async fn retract(&self, message: &Message) -> Result<String, Not> {
        let (source, event_id) = (message.source.as_str(), message.event_id.as_str());
        if self.means.store.stands(source, event_id).await? {
            return Ok(STANDS_AGAIN.to_owned());
        }
        let told = self.told(message)?;
        let request = request(&self.plan, event_id, &told)?;
        let trigger = self.plan.name.as_str();
        // By its key, not by what is stored here: the answer to a request may not have come.
        let found = self.means.server.by_key(&request.key).await;
        let found = found.map_err(|error| Not::Yet(None, error))?;
        if found.status != 200 {
            return Err(Not::Yet(found.retry_after_ms, found.to_string()));
        }
        let document = found.document.unwrap_or_default();
        let first = document.get("transactions").and_then(|list| list.as_array()?.first());
        let Some((id, of)) = first.and_then(|first| Some((first.get("id")?.as_str()?, first)))
        else {
            return self.nothing_there(event_id).await;
        };
        let Some(gone) = retraction(&request.body, of) else {
            return Ok(format!("{id} is linked to it, and answers another event of the business"));
        };
        tracing::error!(trigger, event_id, request = id, "retracted after the server was asked");
        self.tell(id, &gone).await
    }

    /// The server shows no request: either it was never asked for one, or it shows ours no more, such as another
    /// principal's whose keys are not shared with us any longer. That must not pass for told.
    async fn nothing_there(&self, event_id: &str) -> Result<String, Not> {
        let status = self.means.store.status().await?;
        let own = status.attention.iter().find(|item| {
            item.consumer == self.name && item.kind == Kind::Retraction && item.event_id == event_id
        });
        match own.map(|item| &item.became) {
            Some(Some(became)) => Err(Not::Never(format!(
                "it was asked for ({became}), and the server shows us no request for it: not told"
            ))),
            None if status.attention_more > 0 => Err(Not::Never(
                "the server shows us no request for it, and whether one was asked for is among what \
                 `status` has no room for: not told"
                    .to_owned(),
            )),
            _ => Ok("the server has no request for it".to_owned()),
        }
    }

    async fn tell(&self, id: &str, body: &Value) -> Result<String, Not> {
        let said = self.means.server.retract(id, body).await;
        let said = said.map_err(|error| Not::Yet(None, error))?;
        match said.status {
            200 if said.ended_as_gone() => Ok(format!("{id} was ended before it was signed")),
            200 => Ok(format!("{id} is flagged at the server; nothing is reversed by itself")),
            // The server's nodes have not seen the reorganisation yet.
            409 => Err(Not::Early(said.to_string())),
            400 | 404 | 405 | 413 | 422 => Err(Not::Never(said.to_string())),
            _ => Err(Not::Yet(said.retry_after_ms, said.to_string())),
        }
    }
}

/// What the server is told of a request, which was `asked` for an event and is shown as `of`: the source that both
/// name, or where neither names one the id of the event. `None` if it answers another event.
fn retraction(asked: &Value, of: &Value) -> Option<Value> {
    let event_id = |of: &Value| of.get("metadata")?.get("event_id").cloned();
    match (asked.get("source"), of.get("source")) {
        (Some(source), Some(other)) => (source == other).then(|| json!({ "source": source })),
        (None, None) => {
            let gone = event_id(asked)?;
            (event_id(of)? == gone).then(|| json!({ "event_id": gone }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retraction_names_the_event_as_its_request_does_and_no_other_request_is_told() {
        let of = |source: Option<u8>, event: &str| {
            let mut body = json!({ "metadata": { "event_id": event } });
            if let Some(source) = source {
                body["source"] = json!({ "log_index": source });
            }
            body
        };
        let with = of(Some(1), "a");
        assert_eq!(retraction(&with, &with), Some(json!({ "source": { "log_index": 1 } })));
        assert_eq!(retraction(&with, &of(Some(2), "a")), None);
        let without = of(None, "a");
        assert_eq!(retraction(&without, &without), Some(json!({ "event_id": "a" })));
        assert_eq!(retraction(&without, &of(None, "b")), None);
        assert_eq!(retraction(&without, &with), None);
        assert_eq!(retraction(&with, &without), None);
    }
}
