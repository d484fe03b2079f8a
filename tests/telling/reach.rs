//! Where webhooks do not go: private addresses, however they are named.

use crate::receiver::{Receiver, SECRET};
use crate::still::Still;
use claviger::bus::webhook::{Lookup, Network, Reach, Webhook, WebhookConfig, WebhookError};
use claviger::ports::bus::{Notice, Outcome, Sink};
use claviger::ports::clock::Clock;
use claviger::system::SystemEntropy;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

fn notice(still: &Still) -> Notice {
    Notice {
        id: "id".to_owned(),
        kind: "claviger.transaction.mined".to_owned(),
        subject: "s".to_owned(),
        routing_key: "local.transaction.mined".to_owned(),
        at: still.clock.now(),
        body: "{}".to_owned(),
    }
}

fn built(
    still: &Still,
    url: &str,
    reach: Reach,
    lookup: Lookup,
    ca_file: Option<PathBuf>,
) -> Result<Webhook, WebhookError> {
    let secret_file = still.dir.path().join("hook.secret");
    std::fs::write(&secret_file, SECRET).unwrap();
    let url = url.parse().unwrap();
    let config = WebhookConfig { name: "hook".to_owned(), url, secret_file, reach, ca_file };
    let clock: Arc<dyn Clock> = Arc::<crate::still::TestClock>::clone(&still.clock);
    Webhook::new(config, clock, Arc::new(SystemEntropy), lookup)
}

/// A name server that gives these answers, one after another, and the last one again and again.
fn says(answers: &[&[&str]]) -> Lookup {
    let read = |answer: &&[&str]| answer.iter().map(|it| it.parse().unwrap()).collect();
    let answers: Vec<Vec<IpAddr>> = answers.iter().map(read).collect();
    let left = Arc::new(Mutex::new(answers));
    Arc::new(move |_| {
        let mut left = left.lock().unwrap();
        let answer = if left.len() > 1 { left.remove(0) } else { left[0].clone() };
        Box::pin(async move { Ok(answer) })
    })
}

fn error(outcome: Outcome) -> String {
    match outcome {
        Outcome::Retry { error, .. } => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_webhook_goes_to_no_private_address_whatever_its_name_says() {
    let still = Still::new().await;
    let receiver = Receiver::secure().await;
    let port = receiver.addr.port();
    let nobody = Reach::default();
    let here = Network { address: "127.0.0.1".parse().unwrap(), bits: 32 };
    let only_here = Reach { private: false, networks: vec![here] };

    // In the URL itself, in every form.
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "10.0.0.1",
        "0.0.0.0",
    ] {
        let url = format!("https://{host}:{port}/");
        let hook = built(&still, &url, nobody.clone(), says(&[&["1.1.1.1"]]), None).unwrap();
        let error = error(hook.tell(&notice(&still)).await);
        assert!(error.contains("may not be reached"), "{host}: {error}");
    }

    // By a name, and by a name of which one address is private.
    let url = format!("https://localhost:{port}/");
    let ca = receiver.ca.clone();
    let private = Reach { private: true, networks: Vec::new() };
    let cases: [(&[&str], &Reach); 4] = [
        (&["127.0.0.1"], &nobody),
        (&["::1"], &nobody),
        (&["127.0.0.1", "10.0.0.1"], &only_here),
        (&["169.254.169.254"], &private),
    ];
    for (answers, reach) in cases {
        let hook = built(&still, &url, reach.clone(), says(&[answers]), ca.clone()).unwrap();
        let error = error(hook.tell(&notice(&still)).await);
        assert!(error.contains("may not be reached"), "{answers:?}: {error}");
    }
    assert!(receiver.got().is_empty());

    // The connection is made to what was looked at: the second answer is never asked for.
    let rebinding = says(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let hook = built(&still, &url, only_here.clone(), rebinding, ca.clone()).unwrap();
    assert_eq!(hook.tell(&notice(&still)).await, Outcome::Done("204".to_owned()));
    assert_eq!(receiver.got().len(), 1);

    // A certificate that nobody vouches for is refused.
    let hook = built(&still, &url, only_here, says(&[&["127.0.0.1"]]), None).unwrap();
    let error = error(hook.tell(&notice(&still)).await);
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn plain_http_is_for_this_machine_only() {
    let still = Still::new().await;
    let receiver = Receiver::plain().await;
    let port = receiver.addr.port();
    let private = Reach { private: true, networks: Vec::new() };
    let url = format!("http://hook.test:{port}/");
    let refused = built(&still, &url, Reach::default(), says(&[&["127.0.0.1"]]), None);
    assert!(matches!(refused, Err(WebhookError::Url(..))));
    let hook = built(&still, &url, private.clone(), says(&[&["10.0.0.1"]]), None).unwrap();
    let error = error(hook.tell(&notice(&still)).await);
    assert!(error.contains("is not this machine"), "{error}");
    let hook = built(&still, &url, private, says(&[&["127.0.0.1"]]), None).unwrap();
    assert_eq!(hook.tell(&notice(&still)).await, Outcome::Done("204".to_owned()));
    assert_eq!(receiver.got().len(), 1, "by no resolver but ours");
}
