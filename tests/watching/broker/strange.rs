//! What nobody should have published, and what nobody should have configured.

use super::*;

/// A true event with another order and another transaction.
fn invented(event: &Value, order: u128) -> Value {
    let mut event = event.clone();
    let other = "0x".to_owned() + &"ab".repeat(32);
    event["data"]["transaction_hash"] = json!(other);
    event["data"]["topics"][1] = json!(format!("0x{}", word(order)));
    event["data"]["args"]["orderId"] = json!(order.to_string());
    event["id"] =
        json!(format!("local:{}:{other}:0", event["data"]["block_hash"].as_str().unwrap()));
    event
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
    // Well formed, in a block that there is, and in it there is no such event.
    let invented = invented(&event, 9).to_string().into_bytes();
    let strange: [Vec<u8>; 5] = [
        vec![0xff, 0x00, 0x7b],
        foreign.to_string().into_bytes(),
        contradicting.to_string().into_bytes(),
        further.to_string().into_bytes(),
        invented,
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
    assert!(parked[4]["reason"].as_str().unwrap().contains("it is not in it"));
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_broker_gives_up_is_parked_and_can_be_tried_again() {
    let broker = Brokered::new("givenup").await;
    let stage = &broker.stage;
    let mut watcher = stage.watcher();
    broker.emit(1..2).await;
    stage.outbox("done", 1).await;
    // In hand, and not answered, when the watcher dies.
    stage.server.always(Some((503, "", json!({ "code": "overloaded" }))));
    broker.emit(2..3).await;
    stage.outbox("taken", 1).await;
    watcher.kill9();
    stage.server.always(None);
    let asked = stage.orders().len();
    // Another reader takes it and gives it back until the broker has enough of it.
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
    assert_eq!(stage.orders().len(), asked, "it is not asked for again by itself");
    let (ok, text) = stage.command(&["retry", "--config"]);
    assert!(ok, "{text}");
    stage.outbox("done", 2).await;
    stage.stop(watcher).await;
    assert_eq!(broker.waiting(&format!("{queue}.dead")).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_cannot_be_is_refused_by_name() {
    for (bus, said) in [
        ("kind = \"rabbitmq\"", "url_file"),
        ("kind = \"rabbitmq\"\nurl = \"amqp://u:secret@127.0.0.1/%2f\"", "url_file"),
        ("kind = \"rabbitmq\"\nurl_file = \"absent\"", "absent"),
        ("kind = \"embedded\"\nexchange = \"events\"", "rabbitmq"),
        ("kind = \"rabbitmq\"\nurl = \"amqp://127.0.0.1/%2f\"\nexchange = \"a#b\"", "exchange"),
        ("kind = \"rabbitmq\"\nurl = \"http://127.0.0.1\"", "amqp"),
        ("kind = \"rabbitmq\"\nurl = \"amqps://127.0.0.1/%2f\"", "amqps"),
    ] {
        let stage = Stage::new().await;
        let text = stage.config().replace("[[trigger]]", &format!("[bus]\n{bus}\n[[trigger]]"));
        std::fs::write(stage.path("watcher.toml"), text).unwrap();
        let (ok, text) = stage.command(&["config", "check"]);
        assert!(!ok && text.contains(said) && !text.contains("secret"), "{bus}: {text}");
    }
}
