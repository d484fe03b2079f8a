//! What is under way to the broker, and what its confirmations say about it.
//!
//! AMQP returns what no queue takes without a delivery tag, and the client library gives a returned message
//! to whichever publication completes next. No two that are under way have the same id, so a return belongs to
//! the one whose id it has. The broker returns a message before it acknowledges it: once something is
//! acknowledged its return is there too, with its own confirmation, or one that came before, or one of the same
//! word of the broker. Or it waits for the next one, and only if another came with the return of something that
//! is not confirmed yet; as long as such a one is known, nothing counts as stored.

use super::line::{Job, Open, Outgoing, Published};
use super::{BrokerError, short};
use futures::stream::{FuturesUnordered, StreamExt as _};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// AMQP 0-9-1: the message is written to disk.
const PERSISTENT: u8 = 2;
/// All bodies are `CloudEvents` in structured mode.
const CONTENT_TYPE: &str = "application/cloudevents+json";
/// How many publications are under way at once; one round to the broker's disk is shared by them.
pub(super) const BATCH_MAX: usize = 256;
/// How long a batch may keep others from being published; what takes longer is waited for beside them.
const SLOW: Duration = Duration::from_millis(500);

type Answered = (u64, Result<Confirmation, BrokerError>);
type Confirming = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// One publication.
struct Under {
    id: String,
    answer: oneshot::Sender<Published>,
    /// What its confirmation says.
    own: Option<Published>,
    /// How long the broker is silent about it, time in which it was blocked not counted.
    silent: Duration,
    /// Whether it was confirmed a while ago: what was confirmed with it is known by now.
    rested: bool,
}

/// What is under way on one channel.
#[derive(Default)]
pub(super) struct Flight {
    confirming: FuturesUnordered<Confirming>,
    under: BTreeMap<u64, Under>,
    /// The ids of messages that were returned.
    returned: BTreeSet<String>,
    /// A message was returned without its id: it could be any of them.
    nameless: bool,
    /// The channel is not to be used again.
    broken: bool,
    next: u64,
}

impl Flight {
    pub(super) fn is_empty(&self) -> bool {
        self.under.is_empty()
    }

    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether anything may join what is under way.
    pub(super) fn takes(&self) -> bool {
        let is_slow = || self.unconfirmed().any(|it| it.silent > SLOW);
        !self.broken && (self.is_empty() || (self.under.len() < BATCH_MAX && is_slow()))
    }

    fn unconfirmed(&self) -> impl Iterator<Item = &Under> {
        self.under.values().filter(|it| it.own.is_none())
    }

    /// Publishes; gives back those that have to wait, since another of the same id is under way.
    pub(super) fn publish(
        &mut self,
        open: &Open,
        exchange: &str,
        program: &'static str,
        jobs: Vec<Job>,
    ) -> Vec<Job> {
        let ids = self.under.values().map(|it| it.id.clone()).collect();
        let (now, later) = distinct(ids, jobs);
        for Job { message, answer } in now {
            let n = self.next;
            self.next = n.saturating_add(1);
            let (id, silent, rested) = (message.id.clone(), Duration::ZERO, false);
            self.under.insert(n, Under { id, answer, own: None, silent, rested });
            let (channel, exchange) = (open.channel.clone(), exchange.to_owned());
            self.confirming.push(Box::pin(async move {
                (n, send(&channel, &exchange, program, &message).await)
            }));
        }
        later
    }

    /// The next confirmation; never, where none is waited for.
    pub(super) async fn confirmed(&mut self) -> Answered {
        match self.confirming.next().await {
            Some(answered) => answered,
            None => std::future::pending().await,
        }
    }

    /// Notes a confirmation. When it is the last one, all are answered.
    pub(super) fn note(&mut self, (n, confirmation): Answered) {
        let (own, returned) = told(confirmation);
        self.broken |= is_unknown(&own);
        self.keep(n, own, returned);
        if self.unconfirmed().next().is_none() {
            self.settle(|_| true, "");
        }
    }

    fn keep(&mut self, n: u64, own: Published, returned: Option<Option<String>>) {
        match returned {
            Some(Some(id)) => {
                self.returned.insert(id);
            }
            Some(None) => self.nameless = true,
            None => {}
        }
        if let Some(under) = self.under.get_mut(&n) {
            under.own = Some(own);
        }
    }

    /// So much time has passed. Answers what was confirmed a while ago, whatever else is not.
    pub(super) fn passed(&mut self, time: Duration, blocked: bool) {
        if !self.is_astray() && !self.nameless {
            self.settle(|it| it.rested, "");
        }
        for under in self.under.values_mut() {
            if under.own.is_some() {
                under.rested = true;
            } else if !blocked {
                under.silent = under.silent.saturating_add(time);
            }
        }
    }

    /// Whether the broker is silent about something for longer than this.
    pub(super) fn is_silent(&self, patience: Duration) -> bool {
        self.unconfirmed().any(|it| it.silent > patience)
    }

    /// Waits no longer: what is confirmed is answered, and of the rest it is not known.
    pub(super) async fn give_up(&mut self, error: &BrokerError, rest: Duration) {
        self.broken = true;
        let why = error.to_string();
        // What was confirmed in one moment comes one after the other. Whatever comes now may bring the return of
        // something that came before; by itself it is too late.
        let late = async {
            while let Some((n, confirmation)) = self.confirming.next().await {
                let (_, returned) = told(confirmation);
                self.keep(n, Published::Unknown(why.clone()), returned);
            }
        };
        let _ = timeout(rest, late).await;
        self.settle(|_| true, &why);
    }

    /// Whether a return is known of something that is not confirmed.
    fn is_astray(&self) -> bool {
        let unknown = |it: &Under| !matches!(&it.own, Some(own) if !is_unknown(own));
        self.under.values().any(|it| unknown(it) && self.returned.contains(&it.id))
    }

    /// Answers those that are over.
    fn settle(&mut self, is_over: impl Fn(&Under) -> bool, why: &str) {
        let is_astray = self.is_astray();
        let over: Vec<u64> =
            self.under.iter().filter(|(_, it)| is_over(it)).map(|(n, _)| *n).collect();
        for n in over {
            let Some(Under { id, answer, own, .. }) = self.under.remove(&n) else { continue };
            let is_returned = self.returned.remove(&id) || self.nameless;
            let outcome = match own {
                Some(Published::Stored) if is_returned => Published::Unroutable,
                Some(Published::Stored) if is_astray => {
                    Published::Unknown("RabbitMQ returned something, and did not say what".into())
                }
                Some(own) => own,
                None => Published::Unknown(why.to_owned()),
            };
            // Who asked may have given up; then it is published again, as after a crash.
            let _ = answer.send(outcome);
        }
        if self.under.is_empty() {
            self.returned.clear();
            self.nameless = false;
        }
    }
}

const fn is_unknown(published: &Published) -> bool {
    matches!(published, Published::Unknown(_))
}

/// Those with an id of their own, and those that have to wait.
fn distinct(mut ids: BTreeSet<String>, jobs: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
    jobs.into_iter().partition(|job| ids.insert(job.message.id.clone()))
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

/// What one confirmation says of its own publication, and the id of the message that came with it, which may be
/// another's; `Some(None)` if that has none.
fn told(confirmation: Result<Confirmation, BrokerError>) -> (Published, Option<Option<String>>) {
    let (own, returned) = match confirmation {
        Ok(Confirmation::Ack(message)) => (Published::Stored, message),
        Ok(Confirmation::Nack(message)) => (Published::Refused, message),
        Ok(Confirmation::NotRequested) => (Published::Refused, None),
        Err(error) => (Published::Unknown(error.to_string()), None),
    };
    let id = |message: BasicReturnMessage| {
        message.delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned())
    };
    (own, returned.map(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> (Job, oneshot::Receiver<Published>) {
        let word = |text: &str| text.to_owned();
        let message = Outgoing { key: word("k"), id: word(id), kind: word("t"), body: word("{}") };
        let (answer, answered) = oneshot::channel();
        (Job { message, answer }, answered)
    }

    /// These are under way, and nothing of them is confirmed.
    fn under_way(ids: &[&str]) -> (Flight, Vec<oneshot::Receiver<Published>>) {
        let (mut flight, mut all) = (Flight::default(), Vec::new());
        for (n, id) in (0..).zip(ids) {
            let (Job { message, answer }, answered) = job(id);
            let (silent, rested) = (Duration::ZERO, false);
            flight.under.insert(n, Under { id: message.id, answer, own: None, silent, rested });
            all.push(answered);
        }
        (flight, all)
    }

    fn answers(all: &mut [oneshot::Receiver<Published>]) -> Vec<Option<Published>> {
        all.iter_mut().map(|it| it.try_recv().ok()).collect()
    }

    fn id(text: &str) -> Option<Option<String>> {
        Some(Some(text.to_owned()))
    }

    #[test]
    fn a_batch_has_each_id_once_and_keeps_the_order() {
        let jobs = ["a", "b", "a", "c", "b", "d"].map(|id| job(id).0);
        let (batch, later) = distinct(["d".to_owned()].into(), jobs.into_iter().collect());
        let ids =
            |jobs: &[Job]| -> String { jobs.iter().map(|job| job.message.id.as_str()).collect() };
        assert_eq!((ids(&batch).as_str(), ids(&later).as_str()), ("abc", "abd"));
    }

    #[test]
    fn a_return_belongs_to_its_id_whatever_confirmation_brought_it() {
        use Published::{Refused, Stored, Unroutable};
        let (mut flight, mut all) = under_way(&["a", "b", "c", "d"]);
        // The return of `b` came with the acknowledgement of `a`, that of `d` with a nack.
        flight.keep(0, Stored, id("b"));
        flight.keep(1, Stored, None);
        flight.keep(2, Refused, id("d"));
        flight.keep(3, Stored, None);
        flight.settle(|_| true, "");
        let told = answers(&mut all);
        assert_eq!(told, [Stored, Unroutable, Refused, Unroutable].map(Some));
    }

    #[test]
    fn after_a_return_that_names_nobody_none_is_done() {
        let (mut flight, mut all) = under_way(&["a", "b"]);
        flight.keep(0, Published::Stored, Some(None));
        flight.keep(1, Published::Stored, None);
        flight.settle(|_| true, "");
        assert_eq!(answers(&mut all), [Published::Unroutable, Published::Unroutable].map(Some));
    }

    #[test]
    fn what_was_confirmed_a_while_ago_is_answered_beside_what_is_not() {
        let (mut flight, mut all) = under_way(&["a", "b", "c"]);
        flight.keep(0, Published::Stored, id("b"));
        flight.keep(1, Published::Stored, None);
        assert!(!flight.takes(), "others wait for it, until it is slow");
        flight.passed(SLOW, false);
        assert_eq!(answers(&mut all), [None, None, None], "its return may be on the way");
        flight.passed(SLOW, true);
        let [a, b, c] = answers(&mut all).try_into().unwrap();
        assert_eq!((a, b, c), (Some(Published::Stored), Some(Published::Unroutable), None));
        assert!(!flight.takes(), "while the broker is blocked it is not silent");
        flight.passed(SLOW, false);
        assert!(flight.takes() && flight.is_silent(SLOW) && !flight.is_silent(SLOW * 2));
    }

    #[tokio::test]
    async fn as_long_as_a_return_is_ahead_of_its_own_confirmation_nothing_counts_as_stored() {
        // The acknowledgement of `a` brought the return of `b`: that of `a` may wait for the next one.
        let (mut flight, mut all) = under_way(&["a", "b"]);
        flight.keep(0, Published::Stored, id("b"));
        flight.passed(SLOW, false);
        flight.passed(SLOW, false);
        assert_eq!(answers(&mut all), [None, None]);
        flight.give_up(&BrokerError::Silent("a publication"), Duration::ZERO).await;
        let told = answers(&mut all);
        assert!(told.iter().flatten().all(is_unknown) && told.iter().flatten().count() == 2);
        assert!(flight.is_empty() && flight.is_broken() && !flight.takes());
    }
}
