//! `claviger approval list|show|approve|reject`

use crate::cli::args::RemoteArgs;
use crate::cli::client::{Door, Remote};
use crate::cli::print::{list, text};
use crate::cli::{Failure, print};
use crate::core::access::Role;
use crate::core::id::RequestId;
use crate::core::tx::state::Status;
use crate::ports::clock::{Clock, Entropy};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

/// `claviger approval`
#[derive(Debug, Subcommand)]
pub enum ApprovalCommand {
    /// List what waits for time or people, newest first.
    #[command(
        after_help = "Example:\n  claviger approval list --config ./dev/claviger.toml --requester svc:payouts"
    )]
    List {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// Only in this status: delayed or awaiting_approval.
        #[arg(long)]
        status: Option<String>,
        /// Only what this subject asked for.
        #[arg(long, value_name = "SUB")]
        requester: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u16,
    },
    /// Show one in full: what it would do, who must approve it, who has, and the hash to approve it by.
    #[command(after_help = "Example:\n  claviger approval show --config ./dev/claviger.toml ID")]
    Show {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// The transaction's id.
        id: String,
    },
    /// Approve exactly what `show` showed, by its hash.
    #[command(
        after_help = "The hash is of all that was shown: where anything of it has changed since, it is refused.\n\n\
                      Example:\n  claviger approval approve --config ./dev/claviger.toml --token-file ./ann.token ID \\\n    \
                      --hash 0x… --reason 'invoice 4711'"
    )]
    Approve(AnswerArgs),
    /// Reject one; it ends, whoever has approved it.
    #[command(
        after_help = "Example:\n  claviger approval reject --config ./dev/claviger.toml --token-file ./ann.token ID \\\n    \
                      --hash 0x… --reason 'not our payee'"
    )]
    Reject(AnswerArgs),
}

/// `claviger approval approve`, `claviger approval reject`
#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// How to reach the server. The token says who answers; the development issuer's says `dev:cli`.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// The transaction's id.
    pub id: String,
    /// The hash of what `show` showed.
    #[arg(long)]
    pub hash: String,
    /// Why, for the audit log.
    #[arg(long)]
    pub reason: Option<String>,
}

/// Runs an approval command.
///
/// # Errors
/// When the server is not reached or refuses.
pub async fn run(
    command: &ApprovalCommand,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    match command {
        ApprovalCommand::List { remote, status, requester, limit } => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("limit", &limit.to_string());
            if let Some(name) = status {
                let status = Status::from_name(name).filter(|status| status.is_waiting());
                let status = status
                    .ok_or_else(|| Failure::new("--status is delayed or awaiting_approval"))?;
                query.append_pair("status", status.name());
            }
            if let Some(requester) = requester {
                query.append_pair("requester", requester);
            }
            let path = format!("/admin/v1/approvals?{}", query.finish());
            let server = Remote::new(remote, Role::Approver, clock, entropy)?;
            let found = server.call(Door::Admin, Method::GET, &path, None).await?;
            if remote.json { print::json(&found) } else { show_many(&found) }
        }
        ApprovalCommand::Show { remote, id } => {
            let id: RequestId = id.parse().map_err(|e| Failure::of("id", e))?;
            let server = Remote::new(remote, Role::Approver, clock, entropy)?;
            let path = format!("/admin/v1/approvals/{id}");
            let found = server.call(Door::Admin, Method::GET, &path, None).await?;
            if remote.json { print::json(&found) } else { show_one(&found) }
        }
        ApprovalCommand::Approve(args) => answer(args, "approve", clock, entropy).await?,
        ApprovalCommand::Reject(args) => answer(args, "reject", clock, entropy).await?,
    }
    Ok(())
}

async fn answer(
    args: &AnswerArgs,
    action: &str,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    let id: RequestId = args.id.parse().map_err(|e| Failure::of("id", e))?;
    let server = Remote::new(&args.remote, Role::Approver, clock, entropy)?;
    let path = format!("/admin/v1/approvals/{id}/{action}");
    let body = json!({ "hash": args.hash, "reason": args.reason });
    let found = server.call(Door::Admin, Method::POST, &path, Some(&body)).await?;
    if args.remote.json {
        print::json(&found)
    } else {
        show_one(&found)
    }
    Ok(())
}

/// `treasury 2, security 1: 1 of 3`.
fn quorum(quorum: &Value) -> String {
    let groups = quorum.get("groups").and_then(Value::as_object).into_iter().flatten();
    let groups: Vec<String> = groups.map(|(group, many)| format!("{group} {many}")).collect();
    format!("{}: {} of {}", groups.join(", "), text(quorum, "taken"), text(quorum, "needed"))
}

fn due(found: &Value) -> String {
    match text(found, "expires_at").as_str() {
        "-" => text(found, "until"),
        expires => expires.to_owned(),
    }
}

fn show_many(found: &Value) {
    let columns = ["ID", "STATUS", "REQUESTER", "GRANTS", "DUE", "APPROVED"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    rows.extend(list(found, "approvals").iter().map(|it| {
        let requester = it.get("requester").map_or_else(|| "-".to_owned(), |who| text(who, "sub"));
        let approved: Vec<String> = list(it, "quorums").iter().map(quorum).collect();
        vec![
            text(it, "id"),
            text(it, "status"),
            requester,
            text(it, "grants"),
            due(it),
            approved.join("; "),
        ]
    }));
    print::table(&rows);
}

/// Everything that is approved, in full: nothing is shortened.
fn show_one(found: &Value) {
    let empty = Value::Null;
    for name in ["id", "status", "hash"] {
        print::line(&format!("{name:<12} {}", text(found, name)));
    }
    let requester = found.get("requester").unwrap_or(&empty);
    let who = format!("{} ({})", text(requester, "sub"), text(requester, "iss"));
    print::line(&format!("{:<12} {who}", "requester"));
    if let Some(Value::Object(request)) = found.get("request") {
        for (name, value) in request {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            print::line(&format!("  {name:<10} {value}"));
        }
    }
    for effect in list(found, "effects") {
        print::line(&format!("{:<12} {effect}", "effect"));
    }
    for name in ["grants", "asked_by", "bundle", "asked_at"] {
        print::line(&format!("{name:<12} {}", text(found, name)));
    }
    print::line(&format!("{:<12} {}", "due", due(found)));
    for it in list(found, "quorums") {
        print::line(&format!("{:<12} {}", "quorum", quorum(&it)));
    }
    for it in list(found, "approvals") {
        let counts = it.get("counts") == Some(&Value::Bool(true));
        let void = if counts { "" } else { " (void: of other terms)" };
        let (sub, at, reason) = (text(&it, "sub"), text(&it, "at"), text(&it, "reason"));
        print::line(&format!("{:<12} {sub} at {at}: {reason}{void}", "approved by"));
    }
}
