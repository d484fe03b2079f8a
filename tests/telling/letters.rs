//! A receiver that is away, slow to agree, or gone: the schedule by a clock that is moved, and dead letters.

use crate::receiver::{OTHER, Receiver, SECRET};
use crate::still::Still;
use claviger::app::AppError;
use claviger::app::record::Instruction;
use claviger::app::tell::operate::{self, DeliveryFilter};
use claviger::bus::webhook::{Reach, Webhook, WebhookConfig, system_lookup};
use claviger::core::principal::Principal;
use claviger::ports::bus::Sink;
use claviger::ports::clock::Clock;
use claviger::ports::store::{DeliveryRow, End, KindFilter, Subscription, look, unit};
use claviger::system::SystemEntropy;
use std::sync::Arc;

const SECOND_MS: i64 = 1_000;
const SCHEDULE_S: [i64; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];

pub fn webhook(still: &Still, url: &str) -> Webhook {
    let secret_file = still.dir.path().join("hook.secret");
    std::fs::write(&secret_file, SECRET).unwrap();
    let config = WebhookConfig {
        name: "hook".to_owned(),
        url: url.parse().unwrap(),
        secret_file,
        reach: Reach { private: true, networks: Vec::new() },
        ca_file: None,
    };
    let clock: Arc<dyn Clock> = Arc::<crate::still::TestClock>::clone(&still.clock);
    Webhook::new(config, clock, Arc::new(SystemEntropy), system_lookup()).unwrap()
}

async fn listed(still: &Still, is_dead: bool) -> Vec<DeliveryRow> {
    let is_dead = Some(is_dead);
    let filter = DeliveryFilter { consumer: None, is_dead, after: 0, limit: 10 };
    operate::deliveries(&still.app, filter).await.unwrap()
}

pub fn said() -> Instruction {
    let who = Principal { iss: "i".to_owned(), sub: "op".to_owned() };
    Instruction { who, reason: Some("a test".to_owned()) }
}

#[tokio::test]
async fn a_receiver_that_is_down_for_days_gets_a_dead_letter_and_what_comes_after_goes_on() {
    let still = Still::new().await;
    let receiver = Receiver::plain().await;
    let hook = webhook(&still, &receiver.url());
    receiver.always(Some((503, None, "down")));
    still.happens(&hook, "a", "submitted").await;
    still.happens(&hook, "a", "finalized").await;
    assert_eq!(still.tell(&hook).await, 1, "the later one waits behind the earlier");
    still.clock.advance_ms(SECOND_MS);
    still.happens(&hook, "b", "submitted").await;
    assert_eq!(still.tell(&hook).await, 1, "and nothing of another subject does");
    receiver.always(None);
    receiver.script(std::iter::repeat_n((503, None, "down"), 1));
    still.clock.advance_ms(6 * SECOND_MS);
    assert_eq!(still.tell(&hook).await, 2, "both are due; the first of them fails again");
    receiver.always(Some((503, None, "down")));
    for (n, pause) in SCHEDULE_S.into_iter().enumerate().skip(1) {
        still.clock.advance_ms(pause * SECOND_MS - 1);
        assert_eq!(still.tell(&hook).await, 0, "not before its time: {n}");
        // The pauses are up to a tenth longer.
        still.clock.advance_ms(pause * SECOND_MS / 10 + 1);
        let tried = still.tell(&hook).await;
        let is_last = n == SCHEDULE_S.len() - 1;
        assert_eq!(tried, if is_last { 2 } else { 1 }, "{n}");
    }
    let dead = listed(&still, true).await;
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].attempts, dead[0].kind.as_str()), (10, "claviger.transaction.submitted"));
    assert!(dead[0].reason.starts_with("tried 10 times; the last: 503"), "{}", dead[0].reason);
    let open = listed(&still, false).await;
    assert_eq!(
        open.len(),
        1,
        "the one behind it was tried at once, and waits its own five seconds"
    );
    assert_eq!((open[0].attempts, open[0].kind.as_str()), (1, "claviger.transaction.finalized"));

    // All attempts at an event have one id, each its own time, and each is signed.
    let first: Vec<_> =
        receiver.got().into_iter().filter(|got| got.id == dead[0].event_id).collect();
    assert_eq!(first.len(), 10);
    assert!(first.windows(2).all(|pair| pair[0].timestamp < pair[1].timestamp));

    receiver.always(None);
    still.clock.advance_ms(6 * SECOND_MS);
    assert_eq!(still.tell(&hook).await, 1);
    operate::replay(&still.app, dead[0].id, &said()).await.unwrap();
    let open = operate::replay(&still.app, dead[0].id, &said()).await.unwrap_err();
    assert!(matches!(open, AppError::Conflict { .. }), "{open}");
    assert_eq!(still.tell(&hook).await, 1);
    let last = receiver.got().pop().unwrap();
    assert_eq!(
        (last.id, last.headers["webhook-id"].to_str().unwrap()),
        (dead[0].event_id.clone(), dead[0].event_id.as_str())
    );
    assert!(listed(&still, false).await.is_empty() && listed(&still, true).await.is_empty());
    let unknown = operate::replay(&still.app, dead[0].id, &said()).await.unwrap_err();
    assert!(matches!(unknown, AppError::NotFound), "{unknown}");
}

#[tokio::test]
async fn what_a_receiver_says_decides_when_it_is_asked_again() {
    let still = Still::new().await;
    let receiver = Receiver::plain().await;
    let elsewhere = Receiver::plain().await;
    let hook = webhook(&still, &receiver.url());
    let after = |value: &str| Some(("retry-after", value.to_owned()));
    receiver.script([(429, after("3600"), ""), (503, after("1"), ""), (410, None, "")]);
    still.happens(&hook, "a", "submitted").await;
    assert_eq!(still.tell(&hook).await, 1);
    still.clock.advance_ms(3_599 * SECOND_MS);
    assert_eq!(still.tell(&hook).await, 0, "it asked for an hour");
    still.clock.advance_ms(SECOND_MS);
    assert_eq!(still.tell(&hook).await, 1);
    still.clock.advance_ms(299 * SECOND_MS);
    assert_eq!(still.tell(&hook).await, 0, "it asked for less than the schedule has");
    still.clock.advance_ms(32 * SECOND_MS);
    assert_eq!(still.tell(&hook).await, 1);
    let dead = listed(&still, true).await;
    assert_eq!((dead[0].attempts, dead[0].reason.as_str()), (3, "410 Gone"), "410 ends it");

    // A redirect is a failure, wherever it leads.
    let to = Some(("location", elsewhere.url()));
    receiver.script([301, 302, 303, 307, 308].map(|status| (status, to.clone(), "")));
    for (n, status) in ["301", "302", "303", "307", "308"].into_iter().enumerate() {
        still.happens(&hook, &format!("r{n}"), "submitted").await;
        assert_eq!(still.tell(&hook).await, 1);
        let open = listed(&still, false).await;
        assert!(open.last().unwrap().reason.starts_with(status), "{open:?}");
    }
    assert!(elsewhere.got().is_empty(), "nobody followed it");

    // What a stranger's answer says is cut short, and a long one is not read to its end.
    let long: &'static str = Box::leak("x\u{1b}[2J\n".repeat(100_000).into_boxed_str());
    receiver.script([(500, None, long)]);
    still.happens(&hook, "long", "submitted").await;
    still.tell(&hook).await;
    let reason = listed(&still, false).await.pop().unwrap().reason;
    assert!(reason.len() < 150 && !reason.chars().any(char::is_control), "{reason:?}");

    // The secret is changed while it runs.
    let both = format!("{OTHER}\n{SECRET}");
    std::fs::write(still.dir.path().join("hook.secret"), both).unwrap();
    still.happens(&hook, "rotated", "submitted").await;
    still.tell(&hook).await;
    let rotated = receiver.got().pop().unwrap();
    let signature = rotated.headers["webhook-signature"].to_str().unwrap().to_owned();
    let at: i64 = rotated.timestamp.parse().unwrap();
    let each = [OTHER, SECRET].map(|secret| {
        let their = standardwebhooks::Webhook::new(secret).unwrap();
        their.sign(&rotated.id, at, &rotated.body).unwrap()
    });
    assert_eq!(signature, each.join(" "));

    // Without its secret nothing is sent.
    std::fs::write(still.dir.path().join("hook.secret"), "whsec_").unwrap();
    let before = receiver.got().len();
    still.happens(&hook, "bare", "submitted").await;
    assert_eq!(still.tell(&hook).await, 1);
    assert_eq!(receiver.got().len(), before);
    assert!(hook.name() == "webhook:hook");
}

#[tokio::test]
async fn a_claim_of_a_process_that_is_gone_is_due_when_the_next_begins() {
    let still = Still::new().await;
    let receiver = Receiver::plain().await;
    let hook = webhook(&still, &receiver.url());
    still.happens(&hook, "a", "submitted").await;
    let claimed = claviger::app::tell::claim(&still.app, &hook).await.unwrap();
    assert!(claimed.is_some());
    assert_eq!(still.tell(&hook).await, 0, "somebody has it in hand");
    operate::begin(&still.app, &[]).await.unwrap();
    assert_eq!(still.tell(&hook).await, 1);
    // What waits for its time goes on waiting.
    receiver.script([(500, None, "")]);
    still.happens(&hook, "b", "submitted").await;
    assert_eq!(still.tell(&hook).await, 1);
    operate::begin(&still.app, &[]).await.unwrap();
    assert_eq!(still.tell(&hook).await, 0);
}

#[tokio::test]
async fn a_consumer_is_forgotten_where_nobody_tells_it_and_all_of_one_is_told_again_at_once() {
    let still = Still::new().await;
    let receiver = Receiver::plain().await;
    let hook = webhook(&still, &receiver.url());
    let wants = |consumer: &str| Subscription {
        consumer: consumer.to_owned(),
        kinds: vec![KindFilter::parse("*").unwrap()],
    };
    // Another server had this one.
    let old = wants("webhook:old");
    let known = unit(&*still.app.store, "test", move |unit| {
        let old = old.clone();
        Box::pin(async move { Ok(End::Commit(unit.set_consumer(&old).await?)) })
    });
    known.await.unwrap();
    operate::begin(&still.app, &[wants(hook.name())]).await.unwrap();
    receiver.always(Some((410, None, "")));
    for subject in ["a", "b", "c"] {
        still.happens(&hook, subject, "submitted").await;
    }
    assert_eq!(still.tell(&hook).await, 3);
    assert_eq!(listed(&still, true).await.len(), 3);

    let here = operate::forget(&still.app, hook.name(), &said()).await.unwrap_err();
    assert!(matches!(here, AppError::Conflict { .. }), "{here}");
    let nobody = operate::forget(&still.app, "webhook:new", &said()).await.unwrap_err();
    assert!(matches!(nobody, AppError::NotFound), "{nobody}");
    let owed = listed(&still, false).await;
    assert!(owed.len() == 3 && owed.iter().all(|row| row.consumer == "webhook:old"), "{owed:?}");
    assert_eq!(operate::forget(&still.app, "webhook:old", &said()).await.unwrap(), 3);
    assert!(listed(&still, false).await.is_empty());

    receiver.always(None);
    assert_eq!(operate::replay_all(&still.app, hook.name(), &said()).await.unwrap(), 3);
    assert_eq!(still.tell(&hook).await, 3);
    assert_eq!(operate::replay_all(&still.app, hook.name(), &said()).await.unwrap(), 0);
    let leaves = look(&*still.app.store, "leaves", |unit| {
        Box::pin(async move { unit.waiting_leaf_count().await })
    });
    assert_eq!(leaves.await.unwrap(), 2, "one for each word of an operator that did something");
}
