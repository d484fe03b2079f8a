//! RabbitMQ (AMQP 0-9-1): one topic exchange, one quorum queue for each consumer.
//!
//! Publishing: persistent, mandatory, confirmed; a message is done on an acknowledgement without a
//! return. The watcher's publisher and the server's share one way to do it. Consuming: one message at a time, acknowledged when what became of it is stored. What the
//! broker has handed out too often goes to a second queue, and from there to the inbox too: nothing is
//! dropped. Connections are made anew for as long as it takes.

mod flight;
mod line;
mod publisher;
mod sink;
mod subscriber;
mod topology;

pub use publisher::{Publisher, Routes};
pub use sink::{EventSink, Unroutable};
pub use subscriber::Subscriber;
pub use topology::Topology;

use crate::ports::bus::QueueLook;
use lapin::options::QueueDeclareOptions;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connect as _, Connection, ConnectionProperties};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest wait for a connection that is ready to use.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for a TCP connection, in milliseconds.
const TCP_TIMEOUT_MS: u64 = 5000;
/// A broker that is silent for longer is gone, in seconds.
const HEARTBEAT_S: u16 = 10;
/// Longest wait for the answer to a command, or for a confirm.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked whether a connection is still there, where nothing else would tell.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Waits between attempts to connect: the first, doubled each time, and the longest.
const RECONNECT_FIRST: Duration = Duration::from_millis(250);
const RECONNECT_MOST: Duration = Duration::from_secs(10);

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A URL without a password.
    Url(String),
    /// A file with the URL; read again for each connection.
    File(PathBuf),
}

/// How to reach the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its address: `amqp://user:password@host:port/vhost`.
    pub address: Address,
}

/// Why the broker did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address, or the file that has it. Never shows the URL.
    #[error("[bus] {0}")]
    Settings(String),
    /// The broker, or the way to it.
    #[error("RabbitMQ: {0}")]
    Broker(#[from] lapin::Error),
    /// No answer in time.
    #[error("RabbitMQ gave no answer to {0}")]
    Silent(&'static str),
    /// The connection or the queue went away.
    #[error("RabbitMQ: {0}")]
    Gone(&'static str),
    /// Longer than AMQP allows.
    #[error("a name is longer than 255 bytes: {0}")]
    TooLong(String),
}

impl Settings {
    /// Reads and checks the address; connects to nothing.
    ///
    /// # Errors
    /// What is wrong, without the URL.
    pub fn check(&self) -> Result<(), BrokerError> {
        self.uri().map(|_| ())
    }

    fn uri(&self) -> Result<AMQPUri, BrokerError> {
        let wrong = |text: String| BrokerError::Settings(text);
        let text = match &self.address {
            Address::Url(url) => url.clone(),
            Address::File(path) => std::fs::read_to_string(path)
                .map_err(|error| wrong(format!("url_file {}: {error}", path.display())))?,
        };
        let uri: AMQPUri = text
            .trim()
            .parse()
            .map_err(|_| wrong("url must be amqp://user:password@host:port/vhost".to_owned()))?;
        // Never plain AMQP where TLS was asked for. As it is built here the client library has no TLS, and would
        // speak in plain text to an amqps address, password and all.
        if uri.scheme == AMQPScheme::AMQPS {
            let text = "amqps is not supported yet: keep the link on the machine, or in a tunnel";
            return Err(wrong(text.to_owned()));
        }
        // The parser takes an address in brackets for no address at all, and goes to localhost.
        if text.contains('[') {
            return Err(wrong("url: write the name of an IPv6 host, not its address".to_owned()));
        }
        let mut uri = uri;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        uri.query.connection_timeout.get_or_insert(TCP_TIMEOUT_MS);
        Ok(uri)
    }

    /// Connects. `name` is shown in the broker's list of connections.
    async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        let uri = self.uri()?;
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()?;
        let connecting = uri.connect_with_config(properties, OwnedTLSConfig::default(), runtime);
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(BrokerError::Silent("the connection")),
        }
    }

    /// Asks the broker for its queues.
    ///
    /// # Errors
    /// When it cannot be asked. A queue that is not there has no numbers.
    pub async fn look(&self, topology: &Topology) -> Result<Vec<QueueLook>, BrokerError> {
        let connection = self.connect("claviger-watcher status").await?;
        let (mut looks, mut channels) = (Vec::new(), Vec::new());
        for name in topology.queue_names() {
            // A queue that is not there closes the channel.
            let channel = answered("channel.open", connection.create_channel()).await?;
            let options = QueueDeclareOptions::durable().passive();
            let asked = channel.queue_declare(short(&name)?, options, FieldTable::default());
            let found = answered("queue.declare", asked).await.ok();
            channels.push(channel);
            looks.push(QueueLook {
                name,
                messages: found.as_ref().map(lapin::Queue::message_count),
                consumers: found.as_ref().map(lapin::Queue::consumer_count),
            });
        }
        close(&connection).await;
        Ok(looks)
    }
}

/// An AMQP short string, or the error that it is too long for one.
fn short(text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| BrokerError::TooLong(text.to_owned()))
}

/// The answer to a command, in time.
async fn answered<T>(
    command: &'static str,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    timeout(ANSWER_TIMEOUT, asked)
        .await
        .map_err(|_| BrokerError::Silent(command))?
        .map_err(Into::into)
}

/// Closes in order; a broker that is gone needs no close.
async fn close(connection: &Connection) {
    let closing = connection.close(200, ShortString::default());
    let _ = timeout(Duration::from_secs(2), closing).await;
}

/// Waits, but not after the stop. `false` when it is time to end.
async fn rest(stop: &CancellationToken, wait: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// The wait before the next attempt to connect, after so many that failed.
fn reconnect_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    RECONNECT_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(RECONNECT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings { address: Address::Url(url.to_owned()) }
    }

    #[test]
    fn a_url_is_checked_and_never_shown() {
        settings("amqp://broker/%2f").check().unwrap();
        for (url, said) in [
            ("http://user:secret@broker", "amqp://"),
            ("amqps://user:secret@broker/%2f", "amqps"),
            ("amqp://user:secret@[::1]/%2f", "IPv6"),
            ("secret", "amqp://"),
        ] {
            let error = settings(url).check().unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_silent_broker_is_noticed_even_if_the_url_does_not_say_how() {
        let uri = settings("amqp://broker/%2f").uri().unwrap();
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT_S));
        let uri = settings("amqp://broker/%2f?heartbeat=3").uri().unwrap();
        assert_eq!(uri.query.heartbeat, Some(3));
    }

    #[test]
    fn attempts_to_connect_grow_apart() {
        assert_eq!(reconnect_after(1), RECONNECT_FIRST);
        assert_eq!(reconnect_after(3), RECONNECT_FIRST * 4);
        assert_eq!(reconnect_after(u32::MAX), RECONNECT_MOST);
    }
}
