//! The way to the exchange: one connection, many publications under way, each confirmed.
//!
//! AMQP returns what no queue takes without a delivery tag, and the client library gives a returned message
//! to whichever publication completes next. So what is under way is a batch, in which no two have the same
//! id; it is judged when all of it is confirmed, and a return belongs to the one whose id it has. (The broker
//! returns a message before it acknowledges it, so all returns of a batch have come by then, and none of
//! another batch can be among them.)
//!
//! A broker that is short of memory or disk blocks the connection: it reads nothing, and forgets nothing. That
//! is no silence. What is under way waits for as long as it takes, nothing new is taken, and no copy is sent.

use super::{ANSWER_TIMEOUT, BrokerError, Settings, Topology};
use super::{LOOK_EVERY, answered, close, reconnect_after, rest, short};
use futures::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionStatus};
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// AMQP 0-9-1: the message is written to disk.
const PERSISTENT: u8 = 2;
/// All bodies are `CloudEvents` in structured mode.
const CONTENT_TYPE: &str = "application/cloudevents+json";
/// How many publications are under way at once; one round to the broker's disk is shared by them.
const BATCH_MAX: usize = 256;
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

struct Job {
    message: Outgoing,
    answer: oneshot::Sender<Published>,
}

/// A connection in confirm mode.
struct Open {
    connection: Connection,
    channel: Channel,
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
    let (mut jobs, mut blocked) = (Vec::new(), false);
    loop {
        told_blocked(open, &mut blocked);
        tokio::select! {
            () = stop.cancelled() => return,
            count = waiting.recv_many(&mut jobs, BATCH_MAX), if !blocked => {
                if count == 0 {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_EVERY) => {
                if !open.channel.status().connected() || !open.connection.status().connected() {
                    return;
                }
            }
        }
        // Who does not wait for the answer any more is not published for.
        jobs.retain(|job| !job.answer.is_closed());
        while !jobs.is_empty() {
            let (batch, later) = distinct(std::mem::take(&mut jobs));
            jobs = later;
            if !settle(open, exchange, program, batch, &mut blocked, stop).await {
                return;
            }
        }
    }
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

/// Those with an id of their own, and those that have to wait for the next batch.
fn distinct(jobs: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
    let mut ids = BTreeSet::new();
    jobs.into_iter().partition(|job| ids.insert(job.message.id.clone()))
}

/// Publishes a batch and answers all of it. `false` if the channel is not to be used again: something of this
/// batch may still be answered on it.
async fn settle(
    open: &Open,
    exchange: &str,
    program: &'static str,
    batch: Vec<Job>,
    blocked: &mut bool,
    stop: &CancellationToken,
) -> bool {
    let sends = batch.iter().map(|job| send(&open.channel, exchange, program, &job.message));
    let confirmed = patiently(open, join_all(sends), blocked, stop).await;
    let (outcomes, known) = match confirmed {
        Ok(confirmed) => {
            let known = confirmed.iter().all(Result::is_ok);
            let ids: Vec<&str> = batch.iter().map(|job| job.message.id.as_str()).collect();
            (judged(&ids, confirmed.into_iter().map(told).collect()), known)
        }
        Err(error) => (vec![Published::Unknown(error.to_string()); batch.len()], false),
    };
    for (job, outcome) in batch.into_iter().zip(outcomes) {
        // Who asked may have given up; then it is published again, as after a crash.
        let _ = job.answer.send(outcome);
    }
    known
}

/// Waits for a batch, while the broker reads; time in which it is blocked does not count.
async fn patiently<T>(
    open: &Open,
    work: impl Future<Output = T>,
    blocked: &mut bool,
    stop: &CancellationToken,
) -> Result<T, BrokerError> {
    let mut work = pin!(work);
    let mut spent = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        told_blocked(open, blocked);
        if *blocked && stop.is_cancelled() {
            return Err(BrokerError::Gone("the program ends while the broker is blocked"));
        }
        if !*blocked {
            spent = spent.saturating_add(LOOK_EVERY);
        }
        if spent > if stop.is_cancelled() { ENDING } else { open.patience } {
            return Err(BrokerError::Silent("a publication"));
        }
    }
}

async fn send(
    channel: &Channel,
    exchange: &str,
    program: &'static str,
    message: &Outgoing,
) -> Result<Confirmation, BrokerError> {
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(short(CONTENT_TYPE)?)
        .with_message_id(short(&message.id)?)
        .with_type(short(&message.kind)?)
        .with_app_id(short(program)?);
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let (exchange, key) = (short(exchange)?, short(&message.key)?);
    let body = message.body.as_bytes();
    let confirm = channel.basic_publish(exchange, key, options, body, properties).await?;
    Ok(confirm.await?)
}

/// What one confirmation says, and the message that came with it, which may be another's.
struct Told {
    own: Published,
    /// The id of a returned message; `Some(None)` if it has none.
    returned: Option<Option<String>>,
}

fn told(confirmation: Result<Confirmation, BrokerError>) -> Told {
    let (own, returned) = match confirmation {
        Ok(Confirmation::Ack(message)) => (Published::Stored, message),
        Ok(Confirmation::Nack(message)) => (Published::Refused, message),
        Ok(Confirmation::NotRequested) => (Published::Refused, None),
        Err(error) => (Published::Unknown(error.to_string()), None),
    };
    let id = |message: BasicReturnMessage| {
        message.delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned())
    };
    Told { own, returned: returned.map(id) }
}

/// What became of each of a batch, from the confirmations of all of it.
fn judged(ids: &[&str], told: Vec<Told>) -> Vec<Published> {
    let returned: BTreeSet<String> =
        told.iter().filter_map(|told| told.returned.clone().flatten()).collect();
    // A message is returned as it was sent. One without its id could be any of them: then none is done.
    let nameless = told.iter().any(|told| told.returned == Some(None));
    let judge = |(told, id): (Told, &&str)| match told.own {
        Published::Stored if nameless || returned.contains(*id) => Published::Unroutable,
        own => own,
    };
    told.into_iter().zip(ids).map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> Job {
        let word = |text: &str| text.to_owned();
        let message = Outgoing { key: word("k"), id: word(id), kind: word("t"), body: word("{}") };
        Job { message, answer: oneshot::channel().0 }
    }

    fn with(own: Published, returned: Option<&str>) -> Told {
        Told { own, returned: returned.map(|id| Some(id.to_owned())) }
    }

    #[test]
    fn a_batch_has_each_id_once_and_keeps_the_order() {
        let jobs = ["a", "b", "a", "c", "b"].map(job);
        let (batch, later) = distinct(jobs.into_iter().collect());
        let ids =
            |jobs: &[Job]| -> String { jobs.iter().map(|job| job.message.id.as_str()).collect() };
        assert_eq!((ids(&batch).as_str(), ids(&later).as_str()), ("abc", "ab"));
    }

    #[test]
    fn a_return_belongs_to_its_id_whatever_confirmation_brought_it() {
        use Published::{Refused, Stored, Unroutable};
        // The return of `b` came with the acknowledgement of `a`, that of `d` with a nack.
        let all = vec![
            with(Stored, Some("b")),
            with(Stored, None),
            with(Refused, Some("d")),
            with(Stored, None),
        ];
        let judged = judged(&["a", "b", "c", "d"], all);
        assert_eq!(judged, [Stored, Unroutable, Refused, Unroutable]);
    }

    #[test]
    fn after_a_return_that_names_nobody_none_is_done() {
        let nameless = Told { own: Published::Stored, returned: Some(None) };
        let judged = judged(&["a", "b"], vec![nameless, with(Published::Stored, None)]);
        assert_eq!(judged, [Published::Unroutable, Published::Unroutable]);
    }
}
