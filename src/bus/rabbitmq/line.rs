//! The way to the exchange: one connection, many publications under way, each confirmed.
//!
//! What is published is a batch, in which no two have the same id; how it is judged says [`Flight`].
//!
//! A queue that has lost its majority confirms nothing, for as long as that lasts. What waits for it must not
//! hold up the rest: a batch that is not confirmed soon is answered in parts, and others join it. When the broker
//! is silent about something for too long the channel is given up, and only of that is it not known whether it was
//! stored.
//!
//! A broker that is short of memory or disk blocks the connection: it reads nothing, and forgets nothing. That
//! is no silence. What is under way waits for as long as it takes, nothing new is taken, and no copy is sent.

use super::flight::{BATCH_MAX, Flight};
use super::{ANSWER_TIMEOUT, BrokerError, Settings, Topology};
use super::{LOOK_EVERY, answered, close, reconnect_after, rest};
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How many more may wait for the next batch; who comes then waits to be heard.
const WAITING_MAX: usize = 1024;
/// How long what is under way may take when it is time to end.
const ENDING: Duration = Duration::from_secs(5);

/// A message on its way to the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// The routing key.
    pub(super) key: String,
    /// The event's id; becomes the message's.
    pub(super) id: String,
    /// The event's type.
    pub(super) kind: String,
    /// The `CloudEvents` document.
    pub(super) body: String,
}

/// What the broker made of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Published {
    /// Acknowledged, and not returned: every queue that is bound to its key has it on disk.
    Stored,
    /// No queue is bound to its key.
    Unroutable,
    /// A queue would not take it (nack).
    Refused,
    /// Whether it was stored is not known: why.
    Unknown(String),
}

pub(super) struct Job {
    pub(super) message: Outgoing,
    pub(super) answer: oneshot::Sender<Published>,
}

/// A connection in confirm mode.
pub(super) struct Open {
    connection: Connection,
    pub(super) channel: Channel,
    patience: Duration,
}

/// The way to one exchange. Nothing moves without [`Line::run`].
pub(super) struct Line {
    settings: Settings,
    topology: Topology,
    /// The program: shown in the broker's list of connections, and in each message.
    program: &'static str,
    /// How long a broker that reads may be silent about what is under way.
    patience: Duration,
    jobs: mpsc::Sender<Job>,
    /// Taken by whoever runs the line.
    waiting: Mutex<Option<mpsc::Receiver<Job>>>,
    /// While there is a connection.
    status: Mutex<Option<ConnectionStatus>>,
}

impl Line {
    /// A line that is not connected yet.
    pub(super) fn new(settings: Settings, topology: Topology, program: &'static str) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let (waiting, status) = (Mutex::new(Some(waiting)), Mutex::new(None));
        let patience = ANSWER_TIMEOUT;
        Self { settings, topology, program, patience, jobs, waiting, status }
    }

    pub(super) const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether a message would go out now: there is a connection, and the broker reads it.
    pub(super) fn ready(&self) -> bool {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.as_ref().is_some_and(|status| status.connected() && !status.blocked())
    }

    /// Publishes, and waits for the broker's word.
    pub(super) async fn publish(&self, message: Outgoing) -> Published {
        let unknown = |why: &str| Published::Unknown(why.to_owned());
        if !self.ready() {
            return unknown("there is no connection to RabbitMQ that it reads");
        }
        let (answer, told) = oneshot::channel();
        if self.jobs.send(Job { message, answer }).await.is_err() {
            return unknown("nothing is published any more: the program ends");
        }
        told.await.unwrap_or_else(|_| unknown("the connection to RabbitMQ went away"))
    }

    /// Keeps a connection, and publishes over it, until the stop. Runs once.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let taken = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = taken else { return };
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            match self.connected().await {
                Ok(open) => {
                    tracing::info!(exchange = self.topology.exchange(), "publishing to RabbitMQ");
                    failures = 0;
                    self.set(Some(open.connection.status().clone()));
                    serve(&open, self.topology.exchange(), self.program, &mut waiting, &stop).await;
                    self.set(None);
                    close(&open.connection).await;
                    if !stop.is_cancelled() {
                        tracing::warn!(
                            "the connection to RabbitMQ is lost; events wait in the outbox"
                        );
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(failures, %error, "no RabbitMQ to publish to; events wait in the outbox");
                }
            }
            // Who came too late for this connection hears so, and does not wait for the next one.
            while waiting.try_recv().is_ok() {}
            if !rest(&stop, reconnect_after(failures.max(1))).await {
                break;
            }
        }
    }

    async fn connected(&self) -> Result<Open, BrokerError> {
        let connection = self.settings.connect(&format!("{} publisher", self.program)).await?;
        let channel = answered("channel.open", connection.create_channel()).await?;
        self.topology.declare(&channel).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        answered("confirm.select", confirms).await?;
        Ok(Open { connection, channel, patience: self.patience })
    }

    fn set(&self, status: Option<ConnectionStatus>) {
        metrics::gauge!("claviger_bus_connected").set(if status.is_some() { 1.0 } else { 0.0 });
        metrics::gauge!("claviger_bus_blocked").set(0.0);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Publishes until the connection is lost, its state is not known any more, or the stop.
async fn serve(
    open: &Open,
    exchange: &str,
    program: &'static str,
    waiting: &mut mpsc::Receiver<Job>,
    stop: &CancellationToken,
) {
    let (mut jobs, mut blocked, mut flight) = (Vec::new(), false, Flight::default());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        told_blocked(open, &mut blocked);
        let takes = !blocked && !stop.is_cancelled() && flight.takes();
        tokio::select! {
            () = stop.cancelled(), if flight.is_empty() => return,
            count = waiting.recv_many(&mut jobs, BATCH_MAX), if takes && jobs.is_empty() => {
                if count == 0 {
                    return;
                }
            }
            confirmed = flight.confirmed() => flight.note(confirmed),
            _ = ticks.tick() => {
                if let Some(error) = looked(open, &mut flight, blocked, stop) {
                    flight.give_up(&error, LOOK_EVERY).await;
                    return;
                }
            }
        }
        if flight.is_empty() && (flight.is_broken() || !is_connected(open)) {
            return;
        }
        // Who does not wait for the answer any more is not published for.
        jobs.retain(|job| !job.answer.is_closed());
        if !jobs.is_empty() && !blocked && !stop.is_cancelled() && flight.takes() {
            jobs = flight.publish(open, exchange, program, std::mem::take(&mut jobs));
        }
    }
}

fn is_connected(open: &Open) -> bool {
    open.channel.status().connected() && open.connection.status().connected()
}

/// Some time has passed. Why nothing more is waited for, if so: time in which the broker is blocked does not count,
/// unless the program is to end.
fn looked(
    open: &Open,
    flight: &mut Flight,
    blocked: bool,
    stop: &CancellationToken,
) -> Option<BrokerError> {
    if flight.is_empty() {
        return None;
    }
    flight.passed(LOOK_EVERY, blocked);
    if blocked && stop.is_cancelled() {
        return Some(BrokerError::Gone("the program ends while the broker is blocked"));
    }
    let patience = if stop.is_cancelled() { ENDING } else { open.patience };
    flight.is_silent(patience).then_some(BrokerError::Silent("a publication"))
}

/// Tells when the broker begins to block, and when it ends.
fn told_blocked(open: &Open, blocked: &mut bool) {
    let now = open.connection.status().blocked();
    if now == *blocked {
        return;
    }
    *blocked = now;
    metrics::gauge!("claviger_bus_blocked").set(if now { 1.0 } else { 0.0 });
    if now {
        tracing::error!("RabbitMQ is short of memory or disk and reads nothing; events wait");
    } else {
        tracing::info!("RabbitMQ reads again");
    }
}
