//! A subscriber: one consumer's queue to its inbox, one message at a time.

use super::topology::{dead_queue_name, queue_name};
use super::{BrokerError, Settings, Topology};
use super::{LOOK_EVERY, answered, close, reconnect_after, rest, short};
use crate::ports::bus::{Arrival, Inbox, Taken};
use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a message is held without an outcome before it is given back and taken again. RabbitMQ
/// closes the channel of a consumer that holds one for longer than its `consumer_timeout`, thirty
/// minutes by default.
const HOLD: Duration = Duration::from_secs(15 * 60);

const GIVEN_UP: &str = "RabbitMQ gave it up: it was handed out too often without an answer";

/// Reads one consumer's queues.
pub struct Subscriber {
    settings: Settings,
    topology: Topology,
    inbox: Arc<dyn Inbox>,
    queue: String,
}

/// How a connection ended.
enum End {
    Stopped,
    HeldTooLong,
}

impl Subscriber {
    /// A subscriber that is not connected yet.
    #[must_use]
    pub fn new(settings: Settings, topology: Topology, inbox: Arc<dyn Inbox>) -> Self {
        let queue = queue_name(inbox.name());
        Self { settings, topology, inbox, queue }
    }

    /// Reads until the stop. What is in hand then goes back to the queue.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            match self.serve(&stop, &mut failures).await {
                Ok(End::Stopped) => break,
                Ok(End::HeldTooLong) => {
                    let queue = self.queue.as_str();
                    tracing::warn!(
                        queue,
                        "a message without an answer is given back, and taken again"
                    );
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let queue = self.queue.as_str();
                    tracing::warn!(queue, failures, %error, "the queue is not read");
                    if !rest(&stop, reconnect_after(failures)).await {
                        break;
                    }
                }
            }
        }
    }

    async fn serve(
        &self,
        stop: &CancellationToken,
        failures: &mut u32,
    ) -> Result<End, BrokerError> {
        let connection =
            self.settings.connect(&format!("claviger-watcher {}", self.inbox.name())).await?;
        let ended = self.read(&connection, stop, failures).await;
        // What was not acknowledged is back in the queue when the connection is closed.
        close(&connection).await;
        ended
    }

    async fn read(
        &self,
        connection: &Connection,
        stop: &CancellationToken,
        failures: &mut u32,
    ) -> Result<End, BrokerError> {
        let channel = answered("channel.open", connection.create_channel()).await?;
        self.topology.declare(&channel).await?;
        // One unanswered message for each queue: the next one waits for it.
        answered("basic.qos", channel.basic_qos(1, BasicQosOptions::default())).await?;
        let mut live = consume(&channel, &self.queue).await?;
        let mut dead = consume(&channel, &dead_queue_name(&self.queue)).await?;
        tracing::info!(queue = self.queue, "reading the queue");
        *failures = 0;
        loop {
            let (next, given_up) = tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                next = live.next() => (next, None),
                next = dead.next() => (next, Some(GIVEN_UP)),
            };
            let delivery = next.ok_or(BrokerError::Gone("the queue is no longer served"))??;
            if let Some(end) = self.hand_in(&channel, &delivery, given_up, stop).await? {
                return Ok(end);
            }
        }
    }

    /// Hands a message in until it has an outcome, and acknowledges it then. `Some` if it has to go
    /// back without one.
    async fn hand_in(
        &self,
        channel: &Channel,
        delivery: &Delivery,
        given_up: Option<&str>,
        stop: &CancellationToken,
    ) -> Result<Option<End>, BrokerError> {
        let since = Instant::now();
        loop {
            let arrival = Arrival { bytes: &delivery.data, given_up };
            match self.inbox.take(arrival).await {
                Taken::Settled => {
                    crate::failpoint!("bus.before_ack");
                    let acked = delivery.ack(BasicAckOptions::default());
                    answered("basic.ack", acked).await?;
                    return Ok(None);
                }
                Taken::Later(wait_ms) => {
                    let again = Instant::now().checked_add(Duration::from_millis(wait_ms));
                    while again.is_some_and(|again| Instant::now() < again) {
                        // What the broker took back is handed out again, perhaps to another process.
                        if !channel.status().connected() {
                            return Err(BrokerError::Gone("it went away with a message in hand"));
                        }
                        if since.elapsed() > HOLD {
                            return Ok(Some(End::HeldTooLong));
                        }
                        if !rest(stop, LOOK_EVERY).await {
                            return Ok(Some(End::Stopped));
                        }
                    }
                }
            }
        }
    }
}

async fn consume(channel: &Channel, queue: &str) -> Result<lapin::Consumer, BrokerError> {
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(short(queue)?, short("")?, options, FieldTable::default());
    answered("basic.consume", consumer).await
}
