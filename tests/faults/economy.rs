//! What a look at the chain costs.

use crate::stage::{MINED, Options, Stage, attempts, id, of_attempt};
use crate::support::server::LIMIT;
use crate::support::services::poll_until;

/// Of each call of the server, only those that a look makes: who the nodes are, fees and balances are kept.
const LOOKING: [&str; 3] =
    ["eth_getTransactionCount", "eth_getTransactionReceipt", "eth_getBlockByNumber"];

/// Sixteen transactions of a lane are mined in one block that is not final. Each look asks for the account's
/// count, the final block and that block; what was seen already costs no receipt.
#[tokio::test]
async fn sixteen_mined_transactions_cost_a_handful_of_calls_a_look() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    let (server, address) = stage.open(&[]).await;
    let mut asked = Vec::new();
    for n in 0..16 {
        asked.push(stage.pay(&server, &format!("economy-{n}")).await);
    }
    for one in &asked {
        let hash = of_attempt(one, 0, "hash");
        poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    }
    stage.anvil.mine(1).await;
    for one in &asked {
        server.wait_for(&id(one), MINED).await;
    }
    let count = |method: &str| stage.proxy.count(method);
    let looks = || count("eth_getTransactionCount");
    let before: Vec<usize> = LOOKING.iter().map(|method| count(method)).collect();
    let begun = looks();
    poll_until(LIMIT, "ten looks", async || (looks() >= begun + 10).then_some(())).await;
    let calls: Vec<usize> =
        LOOKING.iter().zip(before).map(|(method, before)| count(method) - before).collect();
    let (total, looks) = (calls.iter().sum::<usize>(), calls[0]);
    println!("{total} calls in {looks} looks: {:.1} a look {calls:?}", total as f64 / looks as f64);
    assert!(total <= 4 * (looks + 1), "{total} calls in {looks} looks: {calls:?}");
    for one in &asked {
        assert_eq!(attempts(&stage.finish(&server, &id(one)).await).len(), 1);
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (16, 16));
    stage.check().await;
}
