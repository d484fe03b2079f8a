//! A client that can send anything, well-formed or not.

use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any answer takes; only a broken test meets it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Words that would betray what the server is made of, or what went wrong inside.
const INTERNAL: [&str; 10] = [
    "panick",
    ".rs",
    "secret",
    "axum",
    "hyper",
    "serde",
    "claviger::",
    "jsonwebtoken",
    "tokio",
    "Error {",
];

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Self { status, headers, body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that this is a problem document as it must be; answers with it.
    #[track_caller]
    pub fn problem(&self, case: &str, status: u16, code: &str) -> Value {
        let document = self.json();
        assert_eq!(document["code"], code, "{case}: {self:?}");
        assert_eq!(self.status, status, "{case}: {self:?}");
        assert_eq!(document["status"], status, "{case}");
        assert_eq!(document["type"], format!("urn:claviger:problem:{code}"), "{case}");
        assert!(!document["title"].as_str().unwrap().is_empty(), "{case}");
        assert!(!document["detail"].as_str().unwrap().is_empty(), "{case}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{case}");
        assert_eq!(document["request_id"].as_str(), self.header("x-request-id"), "{case}");
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()), "{case}");
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{case}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{case}");
        assert_eq!(self.header("retry-after").is_some(), [429, 503].contains(&status), "{case}");
        assert_eq!(self.header("www-authenticate").is_some(), status == 401, "{case}");
        for word in INTERNAL {
            assert!(!self.body.contains(word), "{case} shows `{word}`: {}", self.body);
        }
        document
    }
}

/// A request in the making.
pub struct Ask {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Self {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        Self { head: head.into_bytes(), body: Vec::new() }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.head.extend_from_slice(name.as_bytes());
        self.head.extend_from_slice(b": ");
        self.head.extend_from_slice(value.as_ref());
        self.head.extend_from_slice(b"\r\n");
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    pub fn json(self, body: impl AsRef<[u8]>) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        let length = self.body.len().to_string();
        self.header("content-length", length)
    }

    pub fn chunked(mut self, body: &[u8]) -> Self {
        for chunk in body.chunks(16 * 1024) {
            self.body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            self.body.extend_from_slice(chunk);
            self.body.extend_from_slice(b"\r\n");
        }
        self.body.extend_from_slice(b"0\r\n\r\n");
        self.header("transfer-encoding", "chunked")
    }

    pub fn bytes(mut self) -> Vec<u8> {
        self.head.extend_from_slice(b"\r\n");
        self.head.extend_from_slice(&self.body);
        self.head
    }

    pub async fn send(self, addr: SocketAddr) -> Answer {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let bytes = self.bytes();
        // The server may answer, and close, before it has read everything.
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(&bytes).await;
            writer
        });
        let mut answer = Vec::new();
        let reading = reader.read_to_end(&mut answer);
        let read = tokio::time::timeout(PATIENCE, reading).await.expect("the server never ends");
        assert!(read.is_ok() || !answer.is_empty(), "no answer: {read:?}");
        writing.abort();
        Answer::parse(&answer)
    }
}

/// Reads until the server closes, and answers with what came; a reset is an end too.
pub async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(PATIENCE, reading).await.expect("the server never closes");
    bytes
}
