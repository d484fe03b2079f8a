//! The watcher with RabbitMQ between what is found and what is asked for.

use super::support::services::RabbitMq;
use super::*;
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

const KEY: &str = "local.0x00000000000000000000000000000000000e0001.Asked";

/// A message as another reader of the exchange gets it.
struct Tapped {
    key: String,
    persistent: bool,
    event: Value,
}

impl Tapped {
    /// The order it tells of, with `-` if it takes it back.
    fn order(&self) -> String {
        let order = self.event["data"]["args"]["orderId"].as_str().unwrap();
        let retracted = self.event["type"] == "claviger.chain.log.retracted";
        assert_eq!(self.key.ends_with(".retracted"), retracted);
        format!("{}{order}", if retracted { "-" } else { "" })
    }
}

fn orders(tapped: &[Tapped]) -> Vec<String> {
    tapped.iter().map(Tapped::order).collect()
}

async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A stage with a broker. Exchange and queues are this test's own, so that a broker can be shared.
struct Brokered {
    stage: Stage,
    url: String,
    name: &'static str,
    /// Has the file with the URL.
    _folder: TempDir,
}

impl Brokered {
    async fn new(name: &'static str) -> Self {
        Self::on(RabbitMq::shared().await, name, "{ depth = 2 }").await
    }

    async fn on(rabbit: &RabbitMq, name: &'static str, finality: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rabbitmq.url");
        std::fs::write(&file, format!("{}\n", rabbit.url())).unwrap();
        let bus = format!(
            "[bus]\nkind = \"rabbitmq\"\nurl_file = \"{}\"\nexchange = \"{name}.events\"",
            file.display()
        );
        let setting = Setting { finality, trigger: name.to_owned(), bus, ..Setting::default() };
        let stage = Stage::with(setting).await;
        Self { stage, url: rabbit.url(), name, _folder: folder }
    }

    fn exchange(&self) -> String {
        format!("{}.events", self.name)
    }

    fn queue(&self) -> String {
        format!("claviger.trigger.{}", self.name)
    }

    /// A second queue, of another application, that gets everything from now on.
    async fn tap(&self) {
        self.bind_queue(&format!("tap.{}", self.name), "#", FieldTable::default()).await;
    }

    async fn bind_queue(&self, queue: &str, key: &str, arguments: FieldTable) {
        let (_connection, channel) = channel(&self.url).await;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (exchange, none) = (self.exchange(), FieldTable::default);
        channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, none())
            .await
            .unwrap();
        channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
        channel
            .queue_bind(
                queue.into(),
                exchange.as_str().into(),
                key.into(),
                QueueBindOptions::default(),
                none(),
            )
            .await
            .unwrap();
    }

    /// The next messages of the second queue, once there are so many.
    async fn tapped(&self, count: usize) -> Vec<Tapped> {
        self.drained(&format!("tap.{}", self.name), count).await
    }

    async fn drained(&self, queue: &str, count: usize) -> Vec<Tapped> {
        let (_connection, channel) = channel(&self.url).await;
        let mut found = Vec::new();
        poll_until(LIMIT, &format!("{count} messages in {queue}"), async || {
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
            if let Some(message) = got {
                message.delivery.ack(BasicAckOptions::default()).await.unwrap();
                found.push(Tapped {
                    key: message.delivery.routing_key.to_string(),
                    persistent: *message.delivery.properties.delivery_mode() == Some(2),
                    event: serde_json::from_slice(&message.delivery.data).unwrap(),
                });
            }
            (found.len() == count).then_some(())
        })
        .await;
        found
    }

    /// How many messages wait in a queue, those in hand included once their reader is gone.
    async fn waiting(&self, queue: &str) -> u32 {
        let (_connection, channel) = channel(&self.url).await;
        let options = QueueDeclareOptions::durable().passive();
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default());
        queue.await.unwrap().message_count()
    }

    /// Publishes these bytes, as anybody with an account at the broker could.
    async fn publish(&self, exchange: &str, key: &str, bytes: &[u8]) {
        let (_connection, channel) = channel(&self.url).await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let sent =
            channel.basic_publish(exchange.into(), key.into(), options, bytes, properties).await;
        let confirmed = sent.unwrap().await.unwrap();
        assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "{key} is not bound");
    }

    /// Waits until the trigger's queue is read.
    async fn reachable(&self) {
        poll_until(LIMIT, "the queue is read", async || {
            (self.stage.status()["bus"]["queues"][0]["consumers"] == 1).then_some(())
        })
        .await;
    }

    async fn published(&self, count: u64) {
        poll_until(LIMIT, &format!("{count} messages published"), async || {
            (self.stage.count_of("publisher", "done") == count).then_some(())
        })
        .await;
    }

    /// Waits until `status` shows a reason with this in it.
    async fn shown_reason(&self, part: &str) {
        poll_until(LIMIT, &format!("`{part}` to look at"), async || {
            let items = self.stage.attention("log");
            let with = |item: &Value| item["reason"].as_str().unwrap().contains(part);
            items.iter().any(with).then_some(())
        })
        .await;
    }

    /// Emits one event in each of so many blocks, and makes them final.
    async fn emit(&self, orders: std::ops::Range<u128>) {
        for order in orders {
            self.stage.ask(order).await;
            self.stage.anvil.mine(1).await;
        }
        self.stage.anvil.mine(2).await;
    }
}

fn numbers(range: std::ops::Range<u128>) -> Vec<String> {
    range.map(|order| order.to_string()).collect()
}

#[tokio::test]
async fn a_final_event_goes_over_the_broker_once_and_only_to_who_asked_for_it() {
    let broker = Brokered::new("parity").await;
    broker.tap().await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(2).await;
    // Seen, and not final: as with the embedded bus, nobody hears of it yet.
    stage.at_head().await;
    assert_eq!(stage.count_of("publisher", "held"), 1);
    stage.anvil.mine(1).await;
    stage.outbox("done", 1).await;
    let told = &broker.tapped(1).await[0];
    assert_eq!((told.key.as_str(), told.persistent), (KEY, true));
    assert_eq!(told.event["type"], "claviger.chain.log");
    assert_eq!(told.event["id"], stage.server.requests()[0].body["metadata"]["event_id"]);
    assert_eq!(stage.orders(), [1]);
    let status = stage.status();
    assert_eq!(status["bus"]["reachable"], true);
    assert_eq!(status["bus"]["queues"][0]["name"], broker.queue());
    assert_eq!(status["bus"]["queues"][0]["consumers"], 1);
    stage.stop(watcher).await;
    assert_eq!(broker.waiting(&broker.queue()).await, 0);
}

#[tokio::test]
async fn e23_what_happens_while_the_broker_is_down_is_published_later_in_order() {
    let mut rabbit = RabbitMq::start().await;
    let broker = Brokered::on(&rabbit, "e23", "{ depth = 2 }").await;
    broker.tap().await;
    let stage = &broker.stage;
    let mut watcher = stage.watcher();
    broker.emit(0..3).await;
    stage.outbox("done", 3).await;
    rabbit.stop();
    broker.emit(3..60).await;
    stage.at_head().await;
    // It has tried to connect until its waits are long.
    watcher.wait_for_line("\"failures\":5,", LIMIT).await;
    let status = stage.status();
    assert_eq!(status["bus"]["reachable"], false);
    assert_eq!(stage.count_of("publisher", "ready"), 57);
    assert_eq!(stage.orders().len(), 3);
    rabbit.start_again().await;
    broker.published(60).await;
    assert_eq!(orders(&broker.tapped(60).await), numbers(0..60));
    stage.outbox("done", 60).await;
    assert_eq!(stage.orders(), (0..60).collect::<Vec<_>>());
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e24_what_a_full_queue_refuses_is_tried_again_in_order() {
    let broker = Brokered::new("e24").await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(1));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    broker.bind_queue("full.e24", "#", full).await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    broker.emit(1..4).await;
    broker.shown_reason("nack").await;
    assert_eq!(stage.count_of("publisher", "done"), 1);
    let mut told = Vec::new();
    for _ in 1..4 {
        told.extend(orders(&broker.drained("full.e24", 1).await));
    }
    assert_eq!(told, numbers(1..4));
    broker.published(3).await;
    stage.outbox("done", 3).await;
    // The trigger's own queue took each attempt; only one of them made a request.
    assert_eq!(stage.orders(), [1, 2, 3]);
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e25_an_unroutable_event_is_told_and_waits_for_a_binding() {
    let broker = Brokered::new("e25").await;
    let stage = &broker.stage;
    let mut watcher = stage.watcher();
    broker.emit(1..2).await;
    stage.outbox("done", 1).await;
    let (_connection, channel) = channel(&broker.url).await;
    let (queue, exchange) = (broker.queue(), broker.exchange());
    let (queue, exchange) = (queue.as_str(), exchange.as_str());
    let none = FieldTable::default;
    channel.queue_unbind(queue.into(), exchange.into(), KEY.into(), none()).await.unwrap();
    broker.emit(2..4).await;
    broker.shown_reason("unroutable").await;
    watcher.wait_for_line("unroutable: no queue is bound", LIMIT).await;
    assert_eq!(stage.count_of("publisher", "ready"), 2);
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), KEY.into(), options, none()).await.unwrap();
    stage.outbox("done", 3).await;
    assert_eq!(stage.orders(), [1, 2, 3]);
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e34_a_retraction_follows_its_event_over_the_broker_and_is_linked_to_the_request() {
    let broker = Brokered::on(RabbitMq::shared().await, "e34", "{ depth = 0 }").await;
    broker.tap().await;
    let stage = &broker.stage;
    stage.anvil.mine(5).await;
    let mut watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(1).await;
    stage.outbox("done", 1).await;
    // E6: the watcher is down when the block goes.
    watcher.kill9();
    stage.reorg(2).await;
    stage.ask(2).await;
    stage.anvil.mine(3).await;
    let watcher = stage.watcher();
    stage.outbox("done", 3).await;
    let told = broker.tapped(3).await;
    assert_eq!(orders(&told), ["1", "-1", "2"]);
    assert_eq!(told[0].event["id"], told[1].event["id"]);
    assert_eq!(told[1].event["source"], "/chains/local/sources/asked/retractions");
    let retracted = stage.shown("retraction", 1).await;
    assert_eq!(retracted[0]["event_id"], told[0].event["id"]);
    assert_eq!(retracted[0]["became"], format!("tx-{}", stage.server.requests()[0].key));
    assert_eq!(stage.orders(), [1, 2], "nothing is reversed by itself");
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e35_an_event_retracted_while_it_waits_in_the_queue_is_never_requested() {
    let broker = Brokered::on(RabbitMq::shared().await, "e35", "{ depth = 0 }").await;
    let stage = &broker.stage;
    stage.anvil.mine(5).await;
    stage.server.always(Some((503, "", json!({ "code": "overloaded" }))));
    let watcher = stage.watcher();
    for order in [1, 2] {
        stage.ask(order).await;
        stage.anvil.mine(1).await;
    }
    // The first is in hand, and refused again and again; the second waits behind it.
    broker.published(2).await;
    stage.requests(3).await;
    assert_eq!(stage.count("taken"), 1);
    stage.reorg(2).await;
    stage.outbox("cancelled", 1).await;
    broker.published(4).await;
    stage.server.always(None);
    stage.ask(3).await;
    stage.anvil.mine(1).await;
    poll_until(LIMIT, "order 3", async || stage.orders().ends_with(&[3]).then_some(())).await;
    let made = stage.server.requests();
    let answered: Vec<u128> = stage.orders().into_iter().filter(|order| *order != 1).collect();
    assert_eq!(answered, [3], "the second was never asked for");
    assert!(
        made.iter()
            .all(|request| request.key == made[0].key || request.key == made[made.len() - 1].key)
    );
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e39_nothing_is_lost_when_the_broker_is_killed() {
    let mut rabbit = RabbitMq::start().await;
    let broker = Brokered::on(&rabbit, "e39", "{ depth = 2 }").await;
    broker.tap().await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    stage.at_head().await;
    broker.reachable().await;
    // A stop in order first: this broker writes down late, minutes late if it is not stopped, that a
    // quorum queue was declared. What it keeps in one that it knows is safe at once.
    rabbit.stop();
    rabbit.start_again().await;
    broker.reachable().await;
    // Some are confirmed and wait in the queue when it dies, some are under way, some come later.
    stage.server.always(Some((503, "retry-after: 0\r\n", json!({ "code": "overloaded" }))));
    broker.emit(0..20).await;
    broker.published(20).await;
    for order in 20..40 {
        stage.ask(order).await;
    }
    stage.anvil.mine(3).await;
    rabbit.kill9();
    broker.emit(40..45).await;
    stage.at_head().await;
    stage.server.always(None);
    rabbit.start_again().await;
    stage.outbox("done", 45).await;
    assert_eq!(stage.server.by_key().len(), 45);
    let mut asked = stage.orders();
    asked.dedup();
    assert_eq!(asked, (0..45).collect::<Vec<_>>(), "each, in order");
    // At least once: what was under way may be there twice.
    broker.published(45).await;
    let waiting = broker.waiting("tap.e39").await as usize;
    let mut told = orders(&broker.tapped(waiting).await);
    told.dedup();
    assert_eq!(told, numbers(0..45));
    stage.stop(watcher).await;
}

#[tokio::test]
async fn strange_messages_are_parked_with_their_bytes_and_the_stream_goes_on() {
    let broker = Brokered::new("strange").await;
    broker.tap().await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    broker.emit(1..2).await;
    stage.outbox("done", 1).await;
    let event = broker.tapped(1).await.remove(0).event;
    let mut foreign = event.clone();
    foreign["source"] = json!("/chains/local/sources/others");
    let mut contradicting = event.clone();
    contradicting["data"]["args"]["amount"] = json!("1");
    let mut further = event.clone();
    further["data"]["signer"] = json!("treasury");
    let strange: [Vec<u8>; 4] = [
        vec![0xff, 0x00, 0x7b],
        foreign.to_string().into_bytes(),
        contradicting.to_string().into_bytes(),
        further.to_string().into_bytes(),
    ];
    for bytes in &strange {
        broker.publish(&broker.exchange(), KEY, bytes).await;
    }
    // The same event again, which somebody repeats.
    broker.publish(&broker.exchange(), KEY, event.to_string().as_bytes()).await;
    broker.emit(2..3).await;
    stage.outbox("done", 2).await;
    assert_eq!(stage.orders(), [1, 2]);
    assert_eq!(stage.attention("log").len(), strange.len());
    let (ok, text) = stage.command(&["parked", "--config"]);
    assert!(ok, "{text}");
    let parked: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept: Vec<&str> = parked.iter().map(|item| item["bytes"].as_str().unwrap()).collect();
    let wanted: Vec<String> = strange
        .iter()
        .map(|bytes| format!("0x{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()))
        .collect();
    assert_eq!(kept, wanted);
    assert!(parked[1]["reason"].as_str().unwrap().contains("not configured"));
    stage.stop(watcher).await;
}

#[tokio::test]
async fn a_message_that_the_broker_gives_up_is_parked_and_can_be_tried_again() {
    let broker = Brokered::new("givenup").await;
    broker.tap().await;
    let stage = &broker.stage;
    let mut watcher = stage.watcher();
    broker.emit(1..2).await;
    stage.outbox("done", 1).await;
    watcher.kill9();
    // Another reader takes the next event and gives it back until the broker has enough of it.
    let mut event = broker.tapped(1).await.remove(0).event;
    let other = "0x".to_owned() + &"ab".repeat(32);
    event["data"]["transaction_hash"] = json!(other);
    event["data"]["topics"][1] = json!(format!("0x{}", word(7)));
    event["data"]["args"]["orderId"] = json!("7");
    let data = &event["data"];
    event["id"] = json!(format!("local:{}:{other}:0", data["block_hash"].as_str().unwrap()));
    broker.publish(&broker.exchange(), KEY, event.to_string().as_bytes()).await;
    let queue = broker.queue();
    let (reading, channel) = channel(&broker.url).await;
    let options = BasicConsumeOptions::default();
    let none = FieldTable::default();
    let tag = "other".into();
    let mut reader =
        channel.basic_consume(queue.as_str().into(), tag, options, none).await.unwrap();
    poll_until(LIMIT, "the broker gives it up", async || {
        let next = tokio::time::timeout(Duration::from_millis(200), reader.next());
        if let Ok(Some(message)) = next.await {
            let options = BasicNackOptions { requeue: true, ..Default::default() };
            message.unwrap().nack(options).await.unwrap();
            return None;
        }
        (broker.waiting(&format!("{queue}.dead")).await == 1).then_some(())
    })
    .await;
    reading.close(200, "enough".into()).await.unwrap();
    let watcher = stage.watcher();
    stage.outbox("parked", 1).await;
    broker.shown_reason("handed out too often").await;
    assert_eq!(stage.orders(), [1]);
    let (ok, text) = stage.command(&["retry", "--config"]);
    assert!(ok, "{text}");
    stage.outbox("done", 2).await;
    stage.stop(watcher).await;
    assert_eq!(broker.waiting(&format!("{queue}.dead")).await, 0);
}

#[tokio::test]
async fn a_bus_that_cannot_be_is_refused_by_name() {
    for (bus, said) in [
        ("kind = \"rabbitmq\"", "url_file"),
        ("kind = \"rabbitmq\"\nurl = \"amqp://u:secret@127.0.0.1/%2f\"", "url_file"),
        ("kind = \"rabbitmq\"\nurl_file = \"absent\"", "absent"),
        ("kind = \"embedded\"\nexchange = \"events\"", "rabbitmq"),
        ("kind = \"rabbitmq\"\nurl = \"amqp://127.0.0.1/%2f\"\nexchange = \"a#b\"", "exchange"),
        ("kind = \"rabbitmq\"\nurl = \"http://127.0.0.1\"", "amqp"),
    ] {
        let stage = Stage::new().await;
        let text = stage.config().replace("[[trigger]]", &format!("[bus]\n{bus}\n[[trigger]]"));
        std::fs::write(stage.path("watcher.toml"), text).unwrap();
        let (ok, text) = stage.command(&["config", "check"]);
        assert!(!ok && text.contains(said) && !text.contains("secret"), "{bus}: {text}");
    }
}

#[cfg(feature = "failpoints")]
mod killed {
    use super::*;

    #[tokio::test]
    async fn e27_after_the_outbox_commit_the_event_is_published_at_restart() {
        let broker = Brokered::new("e27").await;
        broker.tap().await;
        let stage = &broker.stage;
        broker.emit(1..2).await;
        stage.killed_at("watch.after_commit").await;
        assert_eq!(broker.waiting("tap.e27").await, 0);
        let watcher = stage.watcher();
        assert_eq!(orders(&broker.tapped(1).await), ["1"]);
        stage.outbox("done", 1).await;
        assert_eq!(stage.orders(), [1]);
        stage.stop(watcher).await;
    }

    #[tokio::test]
    async fn e28_after_publishing_it_is_twice_on_the_bus_and_requested_once() {
        let broker = Brokered::new("e28").await;
        broker.tap().await;
        let stage = &broker.stage;
        broker.emit(1..2).await;
        stage.killed_at("bus.after_publish").await;
        assert_eq!(stage.count_of("publisher", "done"), 0);
        let watcher = stage.watcher();
        broker.emit(2..3).await;
        stage.outbox("done", 2).await;
        let told = broker.tapped(3).await;
        assert_eq!(orders(&told), ["1", "1", "2"]);
        assert_eq!(told[0].event, told[1].event);
        let keys = stage.server.by_key();
        assert_eq!(keys.len(), 2, "one signing request for each event: {keys:?}");
        stage.stop(watcher).await;
        assert_eq!(broker.waiting(&broker.queue()).await, 0);
    }

    #[tokio::test]
    async fn e29_in_mid_block_nothing_is_published_and_nothing_is_lost() {
        let broker = Brokered::new("e29").await;
        broker.tap().await;
        let stage = &broker.stage;
        for order in [1, 2, 3] {
            stage.ask(order).await;
        }
        stage.anvil.mine(3).await;
        stage.killed_at("watch.mid_block").await;
        assert_eq!(stage.status()["chains"][0]["cursor"]["number"], 0);
        assert!(stage.status()["outbox"].as_array().unwrap().is_empty());
        assert_eq!(broker.waiting("tap.e29").await, 0);
        let watcher = stage.watcher();
        stage.outbox("done", 3).await;
        assert_eq!(orders(&broker.tapped(3).await), ["1", "2", "3"]);
        assert_eq!(stage.orders(), [1, 2, 3]);
        stage.stop(watcher).await;
    }

    #[tokio::test]
    async fn between_the_servers_answer_and_the_acknowledgement_it_is_requested_once() {
        for (name, failpoint, times) in
            [("answer", "bus.after_answer", 2), ("ack", "bus.before_ack", 1)]
        {
            let broker = Brokered::new(name).await;
            let stage = &broker.stage;
            broker.emit(1..2).await;
            stage.killed_at(failpoint).await;
            assert_eq!(stage.orders(), [1]);
            let watcher = stage.watcher();
            stage.outbox("done", 1).await;
            broker.emit(2..3).await;
            stage.outbox("done", 2).await;
            let keys = stage.server.by_key();
            assert_eq!((keys.len(), stage.orders().len()), (2, times + 1), "{failpoint}: {keys:?}");
            stage.stop(watcher).await;
            assert_eq!(broker.waiting(&broker.queue()).await, 0);
        }
    }
}
