//! `claviger delivery list|replay|forget`

use crate::cli::args::RemoteArgs;
use crate::cli::client::{Door, Remote};
use crate::cli::print::{list, text};
use crate::cli::{Failure, print};
use crate::core::access::Role;
use crate::ports::clock::{Clock, Entropy};
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

/// `claviger delivery`
#[derive(Debug, Subcommand)]
pub enum DeliveryCommand {
    /// List what is owed to webhooks and the bus, oldest first.
    #[command(after_help = "What was given up is `dead`, with the reason of the last attempt.\n\n\
                      Example:\n  claviger delivery list --config ./dev/claviger.toml --state dead")]
    List {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// Only what is owed to this one: `bus`, or `webhook:NAME`.
        #[arg(long)]
        consumer: Option<String>,
        /// Only in this state.
        #[arg(long, value_parser = ["open", "dead"])]
        state: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u16,
        /// Where the page before ended.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Try again now, from the first attempt, what was given up or waits for its next attempt. Recorded in the
    /// audit log.
    #[command(
        after_help = "One by its number, or all that was given up of one consumer. It is told under the id that it had, so \
                      whoever has it already knows it.\n\n\
                      Examples:\n  claviger delivery replay --config ./dev/claviger.toml 17 --reason 'the receiver is back'\n  \
                      claviger delivery replay --config ./dev/claviger.toml --consumer bus --reason 'a queue is bound now'"
    )]
    Replay {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// The delivery's number, from the list.
        #[arg(required_unless_present = "consumer", conflicts_with = "consumer")]
        id: Option<i64>,
        /// All that was given up of this one: `bus`, or `webhook:NAME`.
        #[arg(long)]
        consumer: Option<String>,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Take a consumer out that is told events no more, with all that it is owed. Recorded in the audit log.
    #[command(
        after_help = "It stays in the database when it is taken out of the configuration, since another server may have it, \
                      and goes on being owed events. Take it out at every server first.\n\n\
                      Example:\n  claviger delivery forget --config ./dev/claviger.toml --consumer webhook:old --reason 'replaced'"
    )]
    Forget {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// `bus`, or `webhook:NAME`.
        #[arg(long)]
        consumer: String,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

/// Runs a delivery command.
///
/// # Errors
/// When the server is not reached or refuses.
pub async fn run(
    command: &DeliveryCommand,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    match command {
        DeliveryCommand::List { remote, consumer, state, limit, cursor } => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("limit", &limit.to_string());
            for (name, value) in [("consumer", consumer), ("state", state), ("cursor", cursor)] {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
            let path = format!("/admin/v1/deliveries?{}", query.finish());
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let found = server.call(Door::Admin, Method::GET, &path, None).await?;
            if remote.json { print::json(&found) } else { show(&found) }
        }
        DeliveryCommand::Replay { remote, id, consumer, reason } => {
            let (path, body) = match id {
                Some(id) => {
                    (format!("/admin/v1/deliveries/{id}/replay"), json!({ "reason": reason }))
                }
                None => (
                    "/admin/v1/deliveries/replay".to_owned(),
                    json!({ "consumer": consumer, "reason": reason }),
                ),
            };
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let done = server.call(Door::Admin, Method::POST, &path, Some(&body)).await?;
            let (to, what) = (
                text(&done, "consumer"),
                match id {
                    Some(_) => format!("event {} is", text(&done, "event")),
                    None => format!("{} event(s) are", text(&done, "replayed")),
                },
            );
            if remote.json {
                print::json(&done);
            } else {
                print::line(&format!("{what} told to {to} again"));
            }
        }
        DeliveryCommand::Forget { remote, consumer, reason } => {
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let body = json!({ "consumer": consumer, "reason": reason });
            let path = "/admin/v1/deliveries/forget";
            let done = server.call(Door::Admin, Method::POST, path, Some(&body)).await?;
            if remote.json {
                print::json(&done);
            } else {
                let count = text(&done, "forgotten");
                print::line(&format!(
                    "{consumer} is told nothing more; {count} deliveries were forgotten"
                ));
            }
        }
    }
    Ok(())
}

fn show(found: &Value) {
    let columns = ["ID", "CONSUMER", "STATE", "TYPE", "SUBJECT", "ATTEMPTS", "DUE", "REASON"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    let names = ["id", "consumer", "state", "type", "subject", "attempts", "due_at", "reason"];
    rows.extend(
        list(found, "deliveries").iter().map(|it| names.map(|name| text(it, name)).to_vec()),
    );
    print::table(&rows);
    let cursor = text(found, "next_cursor");
    if cursor != "-" {
        print::line(&format!("there are more: --cursor {cursor}"));
    }
}
