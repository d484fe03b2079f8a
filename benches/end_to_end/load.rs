//! The callers: connections that are kept, each with one request on its way. Written by hand over TCP, so
//! that the callers cost little beside what they measure.

use super::cpu::Usage;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

type Body = Arc<dyn Fn(u64) -> String + Send + Sync>;

/// Never the same request twice, in a whole run.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What is asked, again and again.
#[derive(Clone)]
pub struct Requests {
    address: String,
    head: String,
    keyed: bool,
    body: Body,
}

impl Requests {
    pub fn new(
        address: String,
        path: &str,
        token: &str,
        keyed: bool,
        body: impl Fn(u64) -> String + Send + Sync + 'static,
    ) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\n"
        );
        Self { address, head, keyed, body: Arc::new(body) }
    }

    fn next(&self) -> Vec<u8> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let body = (self.body)(number);
        let key =
            if self.keyed { format!("idempotency-key: k{number}\r\n") } else { String::new() };
        format!("{}{key}content-length: {}\r\n\r\n{body}", self.head, body.len()).into_bytes()
    }
}

/// A number of callers for a time.
pub struct Load {
    pub requests: Requests,
    pub concurrency: usize,
    pub warm: Duration,
    pub each: Duration,
}

/// What came of it.
pub struct Done {
    /// From request to answer, sorted, in microseconds.
    pub latencies_us: Vec<u64>,
    /// Answers that were not a signature.
    pub failed: u64,
    pub elapsed: Duration,
    /// One of them, to look at.
    pub failure: Option<String>,
}

impl Done {
    pub fn per_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// In milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (self.latencies_us.len() * percent / 100).min(last);
        self.latencies_us.get(at).map_or(f64::NAN, |us| *us as f64 / 1000.0)
    }
}

impl Load {
    /// Warms up, then measures. What is begun before the end is answered, and counted if the answer came
    /// in time.
    pub async fn run(self, usage: impl Fn() -> Usage) -> (Done, Usage) {
        let begin = Instant::now() + self.warm;
        let end = begin + self.each;
        let callers: Vec<_> = (0..self.concurrency)
            .map(|_| tokio::spawn(caller(self.requests.clone(), begin, end)))
            .collect();
        tokio::time::sleep_until(begin.into()).await;
        let before = usage();
        tokio::time::sleep_until(end.into()).await;
        let used = usage().since(&before);
        let mut done =
            Done { latencies_us: Vec::new(), failed: 0, elapsed: self.each, failure: None };
        for caller in callers {
            let (latencies, failures) = caller.await.unwrap();
            done.latencies_us.extend(latencies);
            done.failed += failures.len() as u64;
            done.failure = done.failure.or(failures.into_iter().next());
        }
        done.latencies_us.sort_unstable();
        (done, used)
    }
}

async fn caller(requests: Requests, begin: Instant, end: Instant) -> (Vec<u64>, Vec<String>) {
    let mut stream = TcpStream::connect(&requests.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut latencies, mut failures, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let sent = Instant::now();
        if sent >= end {
            return (latencies, failures);
        }
        stream.write_all(&requests.next()).await.unwrap();
        let answer = answer(&mut stream, &mut buffer).await;
        let now = Instant::now();
        if now < begin || now > end {
            continue;
        }
        // Signed: the bytes of a signature, or the hash of signed bytes.
        let signed = answer.contains("\"signature\":{") || answer.contains("\"hash\":\"0x");
        if answer.starts_with("HTTP/1.1 201") && signed {
            latencies.push((now - sent).as_micros() as u64);
        } else {
            failures.push(answer);
        }
    }
}

/// Head and body of one answer.
fn answer<'a>(
    stream: &'a mut TcpStream,
    buffer: &'a mut Vec<u8>,
) -> Pin<Box<dyn Future<Output = String> + Send + 'a>> {
    Box::pin(async move {
        buffer.clear();
        loop {
            if let Some(whole) = whole(buffer) {
                return String::from_utf8_lossy(&buffer[..whole]).into_owned();
            }
            let read = stream.read_buf(buffer).await.unwrap();
            assert!(read > 0, "the server closed a connection");
        }
    })
}

/// How long the answer is, once all of it is there.
fn whole(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&buffer[..head]).unwrap();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let all = head + length.expect("answers say their length");
    (buffer.len() >= all).then_some(all)
}
