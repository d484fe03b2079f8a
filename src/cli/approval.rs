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
    /// Reject one, or all of one requester; what is rejected ends, whoever has approved it.
    #[command(
        after_help = "Examples:\n  claviger approval reject --config ./dev/claviger.toml --token-file ./ann.token ID \\\n    \
                      --hash 0x… --reason 'not our payee'\n  \
                      claviger approval reject --config ./dev/claviger.toml --token-file ./ann.token \\\n    \
                      --requester svc:payouts --reason 'its token was stolen'"
    )]
    Reject(RejectArgs),
}

/// `claviger approval reject`
#[derive(Debug, Args)]
pub struct RejectArgs {
    /// How to reach the server. The token says who answers; the development issuer's says `dev:cli`.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// The transaction's id.
    #[arg(required_unless_present = "requester", requires = "hash")]
    pub id: Option<String>,
    /// The hash of what `show` showed.
    #[arg(long, requires = "id")]
    pub hash: Option<String>,
    /// All that waits now of what this subject asked for, in any status, instead of one.
    #[arg(long, value_name = "SUB", requires = "reason", conflicts_with_all = ["id", "hash"])]
    pub requester: Option<String>,
    /// Why, for the audit log.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `claviger approval approve`
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
        ApprovalCommand::Approve(AnswerArgs { remote, id, hash, reason }) => {
            let server = Remote::new(remote, Role::Approver, clock, entropy)?;
            let found = answer(&server, id, "approve", (hash, reason.as_deref())).await?;
            if remote.json { print::json(&found) } else { show_one(&found) }
        }
        ApprovalCommand::Reject(RejectArgs { remote, id, hash, requester, reason }) => {
            let server = Remote::new(remote, Role::Approver, clock, entropy)?;
            let reason = reason.as_deref();
            match (id, hash, requester) {
                (Some(id), Some(hash), None) => {
                    let found = answer(&server, id, "reject", (hash, reason)).await?;
                    if remote.json { print::json(&found) } else { show_one(&found) }
                }
                (None, None, Some(requester)) => {
                    reject_all(&server, requester, reason, remote.json).await?;
                }
                _ => return Err(Failure::new("say an ID with --hash, or --requester")),
            }
        }
    }
    Ok(())
}

async fn answer(
    server: &Remote,
    id: &str,
    action: &str,
    (hash, reason): (&str, Option<&str>),
) -> Result<Value, Failure> {
    let id: RequestId = id.parse().map_err(|e| Failure::of("id", e))?;
    let path = format!("/admin/v1/approvals/{id}/{action}");
    let body = json!({ "hash": hash, "reason": reason });
    server.call(Door::Admin, Method::POST, &path, Some(&body)).await
}

/// Rejects all that waits now of one requester, each by the hash that was listed. What cannot be rejected, because
/// it went on or changed meanwhile, keeps no other from it.
async fn reject_all(
    server: &Remote,
    requester: &str,
    reason: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let all = waiting_of(server, requester).await?;
    let (mut rejected, mut left) = (Vec::new(), Vec::new());
    for (id, hash) in &all {
        match answer(server, id, "reject", (hash, reason)).await {
            Ok(_) => rejected.push(id),
            Err(why) => left.push(json!({ "id": id, "why": why.to_string() })),
        }
    }
    if as_json {
        print::json(&json!({ "rejected": rejected, "not_rejected": left }));
    } else {
        for it in &left {
            print::line(&format!("{} was not rejected: {}", text(it, "id"), text(it, "why")));
        }
        print::line(&format!("{} of {} requests rejected", rejected.len(), all.len()));
    }
    match left.len() {
        0 => Ok(()),
        left => Err(Failure::new(format!("{left} of {} were not rejected", all.len()))),
    }
}

/// The id and the hash of all that waits of one requester, page by page, newest first.
async fn waiting_of(server: &Remote, requester: &str) -> Result<Vec<(String, String)>, Failure> {
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("requester", requester).append_pair("limit", "200");
        if let Some(cursor) = &cursor {
            query.append_pair("cursor", cursor);
        }
        let path = format!("/admin/v1/approvals?{}", query.finish());
        let page = server.call(Door::Admin, Method::GET, &path, None).await?;
        all.extend(list(&page, "approvals").iter().map(|it| (text(it, "id"), text(it, "hash"))));
        match page.get("next_cursor").and_then(Value::as_str) {
            Some(next) => cursor = Some(next.to_owned()),
            None => return Ok(all),
        }
    }
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
