//! Servers that are killed between the commit and the telling, and in the middle of a stream.

use crate::payment::{FINAL, SUB, configure, to_its_end};
use crate::reader::{Reader, story};
use crate::receiver::Receiver;
use crate::support::server::{ETHER, LIMIT, SetUp, chain, payout, payout_grants};
use crate::support::services::{Postgres, poll_until};
use claviger::core::access::Role;
use std::collections::BTreeSet;

const LIFE: [&str; 4] = ["queued", "submitted", "mined", "finalized"];

#[tokio::test]
async fn what_a_killed_server_was_telling_is_told_again_and_nothing_is_lost() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let hook = Receiver::plain().await;
    configure(&setup, &hook.section(&setup.dir(), "backend", "*"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    poll_until(LIMIT, "the key is told", async || (hook.got().len() >= 2).then_some(())).await;
    let before = hook.got().len();
    server.stop().await;

    // The first event of the transaction is told, and the server dies before it has written so.
    let mut server = setup.start(&[("CLAVIGER_FAILPOINT", "tell.after_told:2")]).await;
    let mut reader = Reader::of(&server, SUB, Role::Client, None).await;
    let (mut streamed, mut last) = (Vec::new(), reader.last);
    let asked = server.try_ask(SUB, "one", &payout(ETHER)).await;
    while let Some(event) = reader.event().await {
        streamed.push(event);
        last = reader.last;
    }
    let _ = server.program.exit_status(LIMIT).await;
    assert!(hook.got().len() > before, "it was told");

    let server = setup.start(&[]).await;
    let asked = match asked {
        Some(asked) => asked,
        None => server.ask(SUB, "one", &payout(ETHER)).await,
    };
    let id = asked.id();
    let mut reader = Reader::of(&server, SUB, Role::Client, last).await;
    to_its_end(&anvil, &server, &id).await;
    streamed.extend(reader.until(FINAL, &id).await);
    assert_eq!(story(&streamed, &id), LIFE, "no gap, no double");
    poll_until(LIMIT, "the webhook has it all", async || {
        (hook.story(&id).len() >= LIFE.len()).then_some(())
    })
    .await;
    assert_eq!(hook.story(&id), LIFE);
    let got = hook.got();
    let ids: BTreeSet<&String> = got.iter().map(|got| &got.id).collect();
    assert!(ids.len() < got.len(), "what was in hand was told again");
    server.stop().await;
}

#[tokio::test]
async fn on_two_servers_over_one_database_a_stream_goes_on_at_the_other() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &payout_grants("100.0"));
    let hook = Receiver::plain().await;
    configure(&setup, &hook.section(&setup.dir(), "backend", "claviger.transaction.*"));
    let one = setup.start(&[]).await;
    one.funded_key(&anvil, "op-1").await;
    let mut two = setup.start_beside("two.record", &[]).await;
    let mut reader = Reader::of(&two, SUB, Role::Client, None).await;
    let first = one.ask(SUB, "first", &payout(ETHER)).await.id();
    let mut events = reader.until("claviger.transaction.submitted", &first).await;
    let last = reader.last;
    two.program.kill9();
    let mut reader = Reader::of(&one, SUB, Role::Client, last).await;
    let second = one.ask(SUB, "second", &payout(ETHER)).await.id();
    for id in [&first, &second] {
        to_its_end(&anvil, &one, id).await;
    }
    events.extend(reader.until(FINAL, &second).await);
    for id in [&first, &second] {
        assert_eq!(story(&events, id), LIFE);
    }
    // What the killed one had in hand comes when its claim has ended; nothing overtakes it.
    for id in [&first, &second] {
        let story = hook.story(id);
        assert_eq!(story, LIFE[..story.len()], "in order");
    }
    one.stop().await;
}
