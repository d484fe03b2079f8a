//! One who reads a stream of server-sent events.

use claviger::core::access::Role;
use reqwest::Response;
use serde_json::Value;

use crate::support::server::{LIMIT, Server};

/// What a stream had, message by message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    pub id: Option<i64>,
    pub event: Option<String>,
    pub data: Option<Value>,
    pub comment: Option<String>,
}

impl Message {
    fn read(text: &str) -> Self {
        let mut message = Self::default();
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap();
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => message.comment = Some(value.to_owned()),
                "id" => message.id = Some(value.parse().unwrap()),
                "event" => message.event = Some(value.to_owned()),
                "data" => message.data = Some(serde_json::from_str(value).unwrap()),
                "retry" => assert_eq!(value, "2000"),
                other => panic!("{other} in {text}"),
            }
        }
        message
    }
}

pub struct Reader {
    answer: Response,
    text: String,
    /// The last id that came.
    pub last: Option<i64>,
}

/// `GET /v1/events` with this token.
pub async fn get(server: &Server, token: &str, query: &str, last: Option<&str>) -> Response {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/events{query}", server.client_url());
    let mut request = http.get(url).bearer_auth(token);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    request.send().await.unwrap()
}

impl Reader {
    pub async fn open(server: &Server, token: &str, query: &str, last: Option<i64>) -> Self {
        let last = last.map(|last| last.to_string());
        let answer = get(server, token, query, last.as_deref()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        let mut reader = Self { answer, text: String::new(), last: None };
        let first = reader.next().await.expect("a beginning");
        assert!(first.data.is_none() && first.id.is_some(), "{first:?}");
        reader
    }

    pub async fn of(server: &Server, sub: &str, role: Role, last: Option<i64>) -> Self {
        Self::open(server, &server.token(sub, role), "", last).await
    }

    /// The next message; `None` at the end.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let message = Message::read(message);
                self.text = rest.to_owned();
                self.last = message.id.or(self.last);
                return Some(message);
            }
            let chunk = tokio::time::timeout(LIMIT, self.answer.chunk()).await.expect("in time");
            // A connection that breaks off is an end too.
            let chunk = chunk.ok().flatten()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event's document; `None` at the end.
    pub async fn event(&mut self) -> Option<Value> {
        loop {
            let message = self.next().await?;
            if let Some(data) = message.data {
                assert_eq!(message.event.as_deref(), data["type"].as_str());
                return Some(data);
            }
        }
    }

    /// Events up to the first of this type and subject.
    pub async fn until(&mut self, kind: &str, subject: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let event = self.event().await.expect("the stream goes on");
            let is_it = event["type"] == kind && event["subject"] == subject;
            all.push(event);
            if is_it {
                return all;
            }
        }
    }

    /// All that comes until the stream ends: events, and the last comment.
    pub async fn rest(mut self) -> (Vec<Value>, Option<String>) {
        let (mut events, mut comment) = (Vec::new(), None);
        while let Some(message) = self.next().await {
            events.extend(message.data);
            comment = message.comment.or(comment);
        }
        (events, comment)
    }
}

/// The statuses of one transaction, in the order of these events.
pub fn story(events: &[Value], subject: &str) -> Vec<String> {
    let of_it = events.iter().filter(|event| event["subject"] == subject);
    of_it.map(|it| it["type"].as_str().unwrap().replace("claviger.transaction.", "")).collect()
}
