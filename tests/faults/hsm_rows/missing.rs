//! A key that is not in the token when the server starts.

use super::Rows;
use crate::support::report::report;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use crate::support::signing_load::{Caller, Load, hello, signer_of};
use claviger::core::access::Role;
use reqwest::Method;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files of a SoftHSM's objects.
fn objects(tokens: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for token in std::fs::read_dir(tokens).unwrap() {
        for file in std::fs::read_dir(token.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let is_object = path.extension().is_some_and(|it| it == "object")
                && path.file_name().is_some_and(|name| name != "token.object");
            if is_object {
                found.insert(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_a_key_that_is_missing_at_start_is_an_alarm_and_the_others_serve() {
    let mut rows = Rows::open(&[]).await;
    let tokens = rows.stage.setup.dir().join("tokens");
    let before = objects(&tokens);
    // Outside the group, so that payouts are the others' matter.
    let lost = rows.server.key("lost", Some("payments"), "external").await;
    let its_files: Vec<PathBuf> = objects(&tokens).difference(&before).cloned().collect();
    assert!(!its_files.is_empty());
    let text = "while it is there";
    let caller = Caller::of(&rows.server);
    let said = caller.post("/v1/signatures", "h6-0", &hello(&lost, text)).await.unwrap();
    assert_eq!(signer_of(text, &said.body).as_ref(), Ok(&lost));

    // It disappears while the server is down.
    let aside = rows.stage.setup.dir().join("aside");
    std::fs::create_dir(&aside).unwrap();
    let kept = |file: &PathBuf| aside.join(file.file_name().unwrap());
    rows = rows
        .restart(&[], || its_files.iter().for_each(|it| std::fs::rename(it, kept(it)).unwrap()))
        .await;
    let log = rows.server.program.stderr();
    let alarm =
        |line: &&str| line.contains("\"level\":\"ERROR\"") && line.to_lowercase().contains(&lost);
    assert!(log.lines().any(|line| alarm(&line)), "{log}");

    // The record is kept.
    let operator = rows.server.token("dev:op", Role::Operator);
    let url = format!("{}/admin/v1/keys", rows.server.admin_url());
    let listed = rows.server.try_call(Method::GET, url, &operator, None, None).await.unwrap().ok();
    assert!(listed.to_string().contains(&lost), "{listed:#}");

    // It signs nothing; the others do.
    let (messages, payouts) = (rows.messages(8), rows.payouts(2));
    let caller = Caller::of(&rows.server);
    let text = "while it is gone";
    let said = caller.post("/v1/signatures", "h6-1", &hello(&lost, text)).await.unwrap();
    assert!(said.body["signature"].is_null(), "{}", said.body);
    // Another server may have it: what is asked is accepted, and signed once the key is back.
    assert_eq!(said.status, 202, "{}", said.body);
    messages.until_released(100).await;
    payouts.until_released(5).await;
    let (messages, payouts) = rows.stop("h6", messages, payouts).await;
    Rows::assert_unnoticed(&messages);
    Rows::assert_unnoticed(&payouts);

    // It is put back: found, and what was decided is signed.
    rows = rows
        .restart(&[], || its_files.iter().for_each(|it| std::fs::rename(kept(it), it).unwrap()))
        .await;
    let caller = Caller::of(&rows.server);
    let said = poll_until(LIMIT, "it signs again", async || {
        let said = caller.post("/v1/signatures", "h6-1", &hello(&lost, text)).await?;
        (said.status == 201).then_some(said)
    })
    .await;
    assert_eq!(signer_of(text, &said.body).as_ref(), Ok(&lost));
    let load = Load::messages(&rows.server, &[&lost], 4, 50);
    let (tally, _) = load.end().await;
    report(&format!("h6, when it is back: {tally}"));
    Rows::assert_unnoticed(&tally);
}
