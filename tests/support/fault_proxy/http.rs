//! Just enough HTTP/1.1 for a JSON-RPC client, by hand: a library would not let a connection close without
//! an answer.

use super::{Reply, Shared};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Answers the requests of one connection until it closes.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut stream = BufReader::new(stream);
    while let Some(body) = read(&mut stream).await {
        let Ok(body) = serde_json::from_slice(&body) else { return };
        let (status, text, retry_after_s) = match shared.answer(&body).await {
            Reply::Body(answer) => (200, answer.to_string(), None),
            Reply::Status { status, retry_after_s } => (status, String::new(), retry_after_s),
            // Dropping the stream closes the connection.
            Reply::Broken => return,
        };
        let retry = retry_after_s.map_or_else(String::new, |s| format!("retry-after: {s}\r\n"));
        let head = format!(
            "HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\n{retry}\
             content-length: {}\r\n\r\n",
            text.len()
        );
        let whole = [head.as_bytes(), text.as_bytes()].concat();
        if stream.get_mut().write_all(&whole).await.is_err() {
            return;
        }
    }
}

/// The body of the next request; `None` if the client has closed.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    let mut first = true;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        if !std::mem::take(&mut first) && line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}
