//! The story of a transaction in plain words: how each attempt stands and why it was made, and what the
//! whole waits for now. Told from the database, so every server process tells the same.

use crate::app::read::FullTransaction;
use crate::app::{App, AppError, ChainRuntime};
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::store::{AttemptRow, Lane, Place, Sent, TransactionRow, Wait, look};

/// What a transaction that has not ended waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Stable kebab-case.
    pub code: &'static str,
    /// For people.
    pub detail: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
}

/// How one attempt stands, in a word.
#[must_use]
pub fn state(full: &FullTransaction, attempt: &AttemptRow) -> &'static str {
    let mined = full.row.mined.as_ref().map(|mined| mined.transaction_hash);
    let later = |it: &AttemptRow| it.number > attempt.number && it.signed_at.is_some();
    match (mined, attempt.hash) {
        (_, None) => "decided",
        (Some(mined), Some(hash)) if mined == hash => "mined",
        (Some(_), Some(_)) => "replaced",
        (None, Some(_)) if full.attempts.iter().any(later) => "replaced",
        (None, Some(_)) => match attempt.answer.as_deref() {
            None => "signed",
            Some(answer) if answer == (Sent::Refused(String::new())).name() => "refused",
            Some(answer) if answer == Sent::Unfunded.name() => "unfunded",
            Some(answer) if answer == Sent::Underpriced.name() => "underpriced",
            Some(_) if attempt.accepted_at.is_some() => "accepted",
            Some(_) => "sent",
        },
    }
}

/// Why there is this attempt.
#[must_use]
pub fn because(full: &FullTransaction, attempt: &AttemptRow) -> String {
    let before = full.attempts.iter().rev().find(|it| it.number < attempt.number);
    let (Some(before), false) = (before, attempt.reason == "speed_up") else {
        return if attempt.is_no_op() {
            no_op_because(&full.row)
        } else if attempt.reason == "speed_up" {
            "an operator wanted it faster".to_owned()
        } else {
            attempt.reason.clone()
        };
    };
    let waited = before.signed_at.map(|at| span(attempt.decided_at.since(at)));
    let not_mined = waited.map_or_else(String::new, |waited| {
        format!("not mined {waited} after attempt {} was signed", before.number)
    });
    match (attempt.is_no_op(), before.is_no_op()) {
        (true, false) => no_op_because(&full.row),
        _ => format!("{}: {not_mined}", attempt.reason),
    }
}

fn no_op_because(row: &TransactionRow) -> String {
    match row.ending {
        Some(Ending::Cancelled) => "no_op: an operator cancelled it".to_owned(),
        Some(Ending::Expired) => {
            let limit = row.new.intent.not_after.map(|at| at.to_string()).unwrap_or_default();
            format!("no_op: not_after passed ({limit})")
        }
        Some(Ending::Failed | Ending::Outpriced) | None => {
            let why = row.failure.as_ref().map_or("it failed", |failure| &failure.detail);
            format!("no_op: {why}")
        }
    }
}

/// A span in words, whole seconds where it has any.
fn span(ms: i64) -> String {
    match ms.checked_div(1_000) {
        Some(seconds) if seconds > 0 => format!("{seconds} s"),
        _ => format!("{ms} ms"),
    }
}

/// What a transaction waits for; `None` once it has ended.
///
/// # Errors
/// When the store does not answer.
pub async fn waiting(app: &App, full: &FullTransaction) -> Result<Option<Waiting>, AppError> {
    if full.row.status.is_end() {
        return Ok(None);
    }
    let row = full.row.clone();
    let (chain, address) = (row.new.intent.chain.id, row.new.address);
    let (lane, place) = look(&*app.store, "waiting", move |unit| {
        let row = row.clone();
        Box::pin(async move {
            let lane = unit.lane(chain, address).await?;
            Ok((lane, unit.place(&row).await?))
        })
    })
    .await?;
    let chain = app.chain_of(chain).map(|chain| &**chain);
    Ok(Some(told(full, chain, lane.as_ref(), place)))
}

fn told(
    full: &FullTransaction,
    chain: Option<&ChainRuntime>,
    lane: Option<&Lane>,
    place: Place,
) -> Waiting {
    let row = &full.row;
    let wait = |code, detail: String| Waiting { code, detail, since: None };
    let Some(chain) = chain else {
        return wait("chain-not-configured", "its chain is not configured any more".to_owned());
    };
    if row.mined.is_some() {
        return finality(row, chain);
    }
    match row.status {
        Status::Queued => queued(row, chain, lane, place),
        _ => in_flight(full, chain, place),
    }
}

fn finality(row: &TransactionRow, chain: &ChainRuntime) -> Waiting {
    let block = row.mined.as_ref().map_or(0, |mined| mined.block_number);
    let detail = match chain.final_seen() {
        None => format!("mined in block {block}, which is not known to be final yet"),
        Some(last) => {
            let to_go = block.saturating_sub(last);
            format!("mined in block {block}; final is {last}: {to_go} blocks to go")
        }
    };
    Waiting { code: "finality", detail, since: None }
}

fn queued(
    row: &TransactionRow,
    chain: &ChainRuntime,
    lane: Option<&Lane>,
    place: Place,
) -> Waiting {
    let wait = |code, detail: String| Waiting { code, detail, since: Some(row.new.at) };
    if let Some(reason) = lane.and_then(|lane| lane.halted.as_ref()) {
        return wait("lane-halted", format!("no nonce is given on this account: {reason}"));
    }
    if let Some(found) = &row.waits {
        let (code, detail) = match found.code.as_str() {
            Wait::BASE_FEE => {
                let cap = row.new.fee_cap.at_most(chain.settings.cap).max_fee;
                let detail = format!("its fee cap is {cap} wei per gas, and {}", found.detail);
                (Wait::BASE_FEE, detail)
            }
            _ => (Wait::UNFUNDED, found.detail.clone()),
        };
        return Waiting { code, detail, since: Some(found.since) };
    }
    if place.flying >= chain.settings.in_flight_max {
        let (flying, ahead) = (place.flying, place.ahead);
        return wait(
            "lane-full",
            format!(
                "{flying} of its account are not mined, as many as may be; {ahead} are before it"
            ),
        );
    }
    if place.ahead > 0 {
        return wait("queued", format!("{} of its account are before it", place.ahead));
    }
    wait("nonce", "it is the next of its account to get a nonce".to_owned())
}

/// It has a nonce and is not mined.
fn in_flight(full: &FullTransaction, chain: &ChainRuntime, place: Place) -> Waiting {
    let row = &full.row;
    let ends = row.ending.is_some();
    let wait = |code, detail: String, since| Waiting { code, detail, since };
    let newest = full.attempts.iter().rev().find(|it| !ends || it.is_no_op());
    let Some(newest) = newest else {
        let what =
            "its no-op is about to be decided; it needs a node that tells the fees".to_owned();
        return wait("cancelling", what, Some(row.updated_at));
    };
    let number = newest.number;
    if newest.signed_at.is_none() {
        let what = format!("attempt {number} is decided, and the HSM has not signed it yet");
        return wait("hsm", what, Some(newest.decided_at));
    }
    let text = newest.answer_detail.clone().unwrap_or_default();
    let since = newest.first_sent_at;
    match state(full, newest) {
        "signed" => wait("node", format!("attempt {number} was not sent yet"), newest.signed_at),
        "sent" => wait("node", format!("no node is known to have attempt {number}: {text}"), since),
        "refused" => wait("refused-by-nodes", text, newest.refused_since),
        "unfunded" => wait("unfunded", format!("the account cannot pay for it: {text}"), since),
        _ if row.waits.as_ref().is_some_and(|it| it.code == Wait::AT_CAP) => {
            let noted = row.waits.as_ref();
            let patience = span(chain.settings.pace.cap_patience_ms);
            let detail = noted.map_or("", |it| &it.detail);
            let what = format!("{detail}; others wait behind it; a no-op after {patience}");
            wait(Wait::AT_CAP, what, noted.map(|it| it.since))
        }
        _ if place.ahead > 0 => {
            let what = format!("{} lower nonces of its account are not mined", place.ahead);
            wait("lower-nonces", what, since)
        }
        _ if ends => wait("cancelling", "its no-op is to be mined".to_owned(), since),
        _ => wait("block", format!("attempt {number} is to be mined: {text}"), since),
    }
}
