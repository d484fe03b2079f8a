//! `claviger key create|import|list`

use crate::cli::args::{KeyCommand, KeyCreateArgs, KeyListArgs};
use crate::cli::client::{Door, Remote};
use crate::cli::{Failure, print};
use crate::core::access::Role;
use crate::ports::clock::{Clock, Entropy};
use futures::stream::{self, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// How many keys are listed with one call.
const PAGE: usize = 1_000;
/// How many keys are made with one token of the development issuer, which lives a minute.
const BATCH: usize = 500;
/// How often a key is asked for again where the server has no room, a second apart.
const TRIES: u32 = 30;

/// Runs a key command.
///
/// # Errors
/// When the server is not reached or refuses.
pub async fn run(
    command: &KeyCommand,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(args) => match args.count {
            None => {
                let server = Remote::new(&args.remote, Role::Operator, clock, entropy)?;
                let key = create(&server, args, &args.label).await?;
                show(&[key], args.remote.json);
                Ok(())
            }
            Some(count) => create_many(args, count, clock, entropy).await,
        },
        KeyCommand::Import { remote, cka_id, label, group, mode, hsm } => {
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let body = json!({
                "cka_id": cka_id, "label": label, "group": group, "mode": mode, "hsm": hsm,
            });
            let path = "/admin/v1/keys/import";
            let key = server.call(Door::Admin, Method::POST, path, Some(&body)).await?;
            show(&[key], remote.json);
            Ok(())
        }
        // The program does these: they need the HSM.
        KeyCommand::Ceremony(_) | KeyCommand::CeremonyVerify(_) => {
            Err(Failure::new("a ceremony asks no server"))
        }
        KeyCommand::List(args) => {
            let keys = list(args, args.limit.unwrap_or(usize::MAX), clock, entropy).await?;
            show(&keys, args.remote.json);
            Ok(())
        }
    }
}

async fn create(server: &Remote, args: &KeyCreateArgs, label: &str) -> Result<Value, Failure> {
    let body = json!({
        "label": label,
        "group": args.group,
        "mode": args.mode,
        "hsm": args.hsm,
        "custody": args.custody,
    });
    server.call(Door::Admin, Method::POST, "/admin/v1/keys", Some(&body)).await
}

/// As [`create`]; a server without room is asked again.
async fn create_at_last(
    server: &Remote,
    args: &KeyCreateArgs,
    label: &str,
) -> Result<Value, Failure> {
    let mut tries = 0_u32;
    loop {
        match create(server, args, label).await {
            Err(failure) if tries < TRIES && failure.to_string().contains(" overloaded: ") => {
                tries = tries.saturating_add(1);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => return other,
        }
    }
}

/// Makes the keys that are missing. The first failure ends it; what was made stays, and the same command makes
/// the rest.
async fn create_many(
    args: &KeyCreateArgs,
    count: u32,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    if !(1..=1_000_000).contains(&count) || !(1..=64).contains(&args.at_once) {
        return Err(Failure::new("--count must be 1 to 1000000 and --at-once 1 to 64"));
    }
    let all = KeyListArgs {
        remote: args.remote.clone(),
        group: args.group.clone(),
        hsm: Some(args.hsm.clone()),
        custody: Some(args.custody.clone()),
        state: None,
        limit: None,
    };
    let label = |key: &Value| key.get("label").and_then(Value::as_str).map(str::to_owned);
    let there = list(&all, usize::MAX, clock, entropy).await?;
    let there: BTreeSet<String> = there.iter().filter_map(label).collect();
    let wanted = (1..=count).map(|number| format!("{}-{number}", args.label));
    let (there, missing): (Vec<String>, Vec<String>) =
        wanted.partition(|label| there.contains(label));
    let bar = bar(missing.len());
    let mut made = 0_usize;
    let mut failed = None;
    for batch in missing.chunks(BATCH) {
        let server = Remote::new(&args.remote, Role::Operator, clock, entropy)?;
        let server = &server;
        let asked = stream::iter(batch).map(|label| create_at_last(server, args, label));
        let mut asked = asked.buffer_unordered(args.at_once);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(_) => made = made.saturating_add(1),
                // No further one is asked for. Those on their way are made all the same, and found by the next
                // run.
                Err(failure) => drop(failed.get_or_insert(failure)),
            }
            bar.inc(1);
            if failed.is_some() {
                break;
            }
        }
        if failed.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    let before = there.len();
    match failed {
        Some(failure) => Err(Failure::new(format!(
            "{made} keys were made, {before} were there before; run the same command again for the rest: \
             {failure}"
        ))),
        None if args.remote.json => {
            print::json(&json!({ "made": made, "there_before": before }));
            Ok(())
        }
        None => {
            print::line(&format!("{made} keys were made, {before} were there before"));
            Ok(())
        }
    }
}

/// On the standard error, if that is a terminal.
fn bar(all: usize) -> ProgressBar {
    let all = u64::try_from(all).unwrap_or(u64::MAX);
    let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} keys, {per_sec}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// Follows the pages.
async fn list(
    args: &KeyListArgs,
    most: usize,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<Vec<Value>, Failure> {
    let server = Remote::new(&args.remote, Role::Operator, clock, entropy)?;
    let mut found: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    while found.len() < most {
        let limit = most.saturating_sub(found.len()).min(PAGE).to_string();
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &limit);
        let filters = [
            ("group", &args.group),
            ("hsm", &args.hsm),
            ("custody", &args.custody),
            ("state", &args.state),
            ("cursor", &cursor),
        ];
        for (name, value) in filters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        let path = format!("/admin/v1/keys?{}", query.finish());
        let page = server.call(Door::Admin, Method::GET, &path, None).await?;
        let keys = page.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
        found.extend(keys);
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    Ok(found)
}

fn show(keys: &[Value], as_json: bool) {
    if as_json {
        print::json(&json!({ "keys": keys }));
        return;
    }
    const COLUMNS: [&str; 8] =
        ["id", "label", "hsm", "custody", "group", "mode", "state", "address"];
    let mut rows = vec![COLUMNS.map(str::to_uppercase).to_vec()];
    let cell =
        |key: &Value, name: &str| key.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    rows.extend(keys.iter().map(|key| COLUMNS.map(|name| cell(key, name)).to_vec()));
    print::table(&rows);
}
