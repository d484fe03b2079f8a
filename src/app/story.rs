//! The story of a transaction in plain words: how each attempt stands and why it was made, and what the
//! whole waits for now. Told from the database, so every server process tells the same.

use crate::app::read::FullTransaction;
use crate::app::{App, AppError, ChainRuntime};
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::store::{AttemptRow, Lane, Place, Sent, Suspension, TransactionRow, Wait, look};

/// What a transaction that has not ended waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What, in a word.
    pub code: WaitsFor,
    /// For people.
    pub detail: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
}

/// What there is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Its chain is not in the configuration any more.
    ChainNotConfigured,
    /// Its chain was reorganised below what was told as final: nothing goes on until an operator has looked.
    ChainHalted,
    /// The database may be older than the chain: nothing new is signed until an operator has looked.
    ReconcileRequired,
    /// It has to wait for some time first.
    Delay,
    /// People have to approve it first.
    Approval,
    /// No nonce is given on its account until an operator has looked.
    LaneHalted,
    /// As many of its account are not mined as may be.
    LaneFull,
    /// The market is above its fee cap.
    BaseFee,
    /// The account cannot pay for it.
    Funds,
    /// The nodes do not say whether its source event still stands.
    Source,
    /// Others of its account are before it.
    Queue,
    /// It is the next to get a nonce.
    Nonce,
    /// Its newest attempt is not signed yet.
    Hsm,
    /// No node is known to have its newest attempt.
    Node,
    /// The nodes refuse it for a reason of its own.
    Nodes,
    /// It can offer no more, and keeps others waiting.
    Cap,
    /// Lower nonces of its account are not mined.
    Lower,
    /// Its no-op is to be mined.
    NoOp,
    /// It is with the nodes, and not mined.
    Block,
    /// It is mined, and its block is not final.
    Finality,
}

impl WaitsFor {
    /// Everything there is.
    pub const ALL: [Self; 20] = [
        Self::ChainNotConfigured,
        Self::ChainHalted,
        Self::ReconcileRequired,
        Self::Delay,
        Self::Approval,
        Self::LaneHalted,
        Self::LaneFull,
        Self::BaseFee,
        Self::Funds,
        Self::Source,
        Self::Queue,
        Self::Nonce,
        Self::Hsm,
        Self::Node,
        Self::Nodes,
        Self::Cap,
        Self::Lower,
        Self::NoOp,
        Self::Block,
        Self::Finality,
    ];

    /// The stable name, in kebab-case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChainNotConfigured => "chain-not-configured",
            Self::ChainHalted => "chain-halted",
            Self::ReconcileRequired => "reconcile-required",
            Self::Delay => "delay",
            Self::Approval => "approval",
            Self::LaneHalted => "lane-halted",
            Self::LaneFull => "lane-full",
            Self::BaseFee => "base-fee-above-cap",
            Self::Funds => "unfunded",
            Self::Source => "source-event",
            Self::Queue => "queued",
            Self::Nonce => "nonce",
            Self::Hsm => "hsm",
            Self::Node => "node",
            Self::Nodes => "refused-by-nodes",
            Self::Cap => "at-fee-cap",
            Self::Lower => "lower-nonces",
            Self::NoOp => "cancelling",
            Self::Block => "block",
            Self::Finality => "finality",
        }
    }
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
    let (lane, place, halt) = look(&*app.store, "waiting", move |unit| {
        let row = row.clone();
        Box::pin(async move {
            let lane = unit.lane(chain, address).await?;
            let broken = unit.anchor(chain).await?.and_then(|anchor| anchor.broken);
            let halt = Halt { broken, suspension: unit.suspension().await? };
            Ok((lane, unit.place(&row).await?, halt))
        })
    })
    .await?;
    let chain = app.chain_of(chain).map(|chain| &**chain);
    let halted = halt.told(full);
    let now = app.clock.now();
    Ok(Some(halted.unwrap_or_else(|| told(full, chain, lane.as_ref(), place, now))))
}

/// What stops more than one lane.
struct Halt {
    broken: Option<String>,
    suspension: Option<Suspension>,
}

impl Halt {
    /// Told before everything else; what is signed is followed to its end while the server only waits for
    /// `reconcile`.
    fn told(&self, full: &FullTransaction) -> Option<Waiting> {
        if let Some(reason) = &self.broken {
            let detail = format!("nothing goes on on its chain: {reason}");
            return Some(Waiting { code: WaitsFor::ChainHalted, detail, since: None });
        }
        let is_signed = full.attempts.last().is_some_and(|it| it.signed_at.is_some());
        let why = self.suspension.as_ref().filter(|_| !is_signed)?;
        let detail =
            format!("nothing is signed until `claviger reconcile` has run: {}", why.reason);
        Some(Waiting { code: WaitsFor::ReconcileRequired, detail, since: Some(why.since) })
    }
}

fn told(
    full: &FullTransaction,
    chain: Option<&ChainRuntime>,
    lane: Option<&Lane>,
    place: Place,
    now: Timestamp,
) -> Waiting {
    let row = &full.row;
    let wait = |code, detail: String| Waiting { code, detail, since: None };
    let Some(chain) = chain else {
        return wait(
            WaitsFor::ChainNotConfigured,
            "its chain is not configured any more".to_owned(),
        );
    };
    if row.mined.is_some() {
        return finality(row, chain);
    }
    match row.status {
        Status::Delayed | Status::AwaitingApproval => before_queue(full),
        Status::Queued => queued(row, chain, lane, place, now),
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
    Waiting { code: WaitsFor::Finality, detail, since: None }
}

/// It waits for time or people.
fn before_queue(full: &FullTransaction) -> Waiting {
    let wait = full.waits.as_ref().map(|(wait, _)| wait);
    let until = wait.map_or_else(|| "?".to_owned(), |wait| wait.due_at.to_string());
    let (code, detail) = if full.row.status == Status::Delayed {
        (WaitsFor::Delay, format!("it goes on at {until}, if policy still allows it"))
    } else {
        (WaitsFor::Approval, format!("people have to approve it until {until}"))
    };
    Waiting { code, detail, since: wait.map(|wait| wait.asked_at) }
}

fn queued(
    row: &TransactionRow,
    chain: &ChainRuntime,
    lane: Option<&Lane>,
    place: Place,
    now: Timestamp,
) -> Waiting {
    let wait = |code, detail: String| Waiting { code, detail, since: Some(row.new.at) };
    if let Some(reason) = lane.and_then(|lane| lane.halted.as_ref()) {
        return wait(WaitsFor::LaneHalted, format!("no nonce is given on this account: {reason}"));
    }
    if let Some(found) = &row.waits {
        let (code, detail) = match found.code.as_str() {
            Wait::BASE_FEE => {
                let cap = row.new.fee_cap.at_most(chain.settings.cap).max_fee;
                let detail = format!("its fee cap is {cap} wei per gas, and {}", found.detail);
                (WaitsFor::BaseFee, detail)
            }
            Wait::SOURCE => (WaitsFor::Source, found.detail.clone()),
            _ => (WaitsFor::Funds, found.detail.clone()),
        };
        return Waiting { code, detail, since: Some(found.since) };
    }
    if place.flying >= chain.known_in_flight_max(row.new.address, now) {
        let (flying, ahead) = (place.flying, place.ahead);
        return wait(
            WaitsFor::LaneFull,
            format!(
                "{flying} of its account are not mined, as many as may be; {ahead} are before it"
            ),
        );
    }
    if place.ahead > 0 {
        return wait(WaitsFor::Queue, format!("{} of its account are before it", place.ahead));
    }
    wait(WaitsFor::Nonce, "it is the next of its account to get a nonce".to_owned())
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
        return wait(WaitsFor::NoOp, what, Some(row.updated_at));
    };
    let number = newest.number;
    if newest.signed_at.is_none() {
        let what = format!("attempt {number} is decided, and the HSM has not signed it yet");
        return wait(WaitsFor::Hsm, what, Some(newest.decided_at));
    }
    let text = newest.answer_detail.clone().unwrap_or_default();
    let since = newest.first_sent_at;
    match state(full, newest) {
        "signed" => {
            wait(WaitsFor::Node, format!("attempt {number} was not sent yet"), newest.signed_at)
        }
        "sent" => wait(
            WaitsFor::Node,
            format!("no node is known to have attempt {number}: {text}"),
            since,
        ),
        "refused" => wait(WaitsFor::Nodes, text, newest.refused_since),
        "unfunded" => {
            wait(WaitsFor::Funds, format!("the account cannot pay for it: {text}"), since)
        }
        _ if row.waits.as_ref().is_some_and(|it| it.code == Wait::AT_CAP) => {
            let noted = row.waits.as_ref();
            let patience = span(chain.settings.pace.cap_patience_ms);
            let detail = noted.map_or("", |it| &it.detail);
            let what = format!("{detail}; others wait behind it; a no-op after {patience}");
            wait(WaitsFor::Cap, what, noted.map(|it| it.since))
        }
        _ if place.ahead > 0 => {
            let what = format!("{} lower nonces of its account are not mined", place.ahead);
            wait(WaitsFor::Lower, what, since)
        }
        _ if ends => wait(WaitsFor::NoOp, "its no-op is to be mined".to_owned(), since),
        _ => wait(WaitsFor::Block, format!("attempt {number} is to be mined: {text}"), since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_there_is_to_wait_for_is_in_the_manual_and_nothing_else() {
        let manual = include_str!("../../docs/OPERATIONS.md");
        let (_, table) = manual.split_once("| `waiting.code` |").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let rows = table.lines().skip(2).map(|row| row.split('`').nth(1).unwrap());
        assert_eq!(rows.collect::<Vec<_>>(), WaitsFor::ALL.map(WaitsFor::name));
    }

    #[test]
    fn what_is_noted_on_a_row_has_the_name_under_which_it_is_told() {
        let told = [WaitsFor::Funds, WaitsFor::BaseFee, WaitsFor::Cap, WaitsFor::Source];
        let noted = [Wait::UNFUNDED, Wait::BASE_FEE, Wait::AT_CAP, Wait::SOURCE];
        assert_eq!(told.map(WaitsFor::name), noted);
    }

    #[test]
    fn spans_are_told_in_seconds_where_they_have_any() {
        assert_eq!(
            (span(350), span(999), span(30_999)),
            ("350 ms".into(), "999 ms".into(), "30 s".into())
        );
    }
}
