//! Judge what was decided before by another bundle: what would have come out differently.
//!
//! How full the windows were then is not part of a decision's record: a request that fits a window alone is
//! taken to fit it. Everything else is as it was: request, facts, time.

use crate::app::record::read::{Recorded, Unreadable, recorded};
use crate::app::{App, AppError};
use crate::core::audit::LeafKind;
use crate::core::audit::read::ReadLeaf;
use crate::core::policy::{Bundle, Outcome, Reason, evaluate};
use crate::core::time::Timestamp;
use crate::ports::store::{LogLeaf, Store, StoreError, look};
use alloy::primitives::B256;
use serde_json::{Value, json};

/// How many leaves are read at once.
pub const CHUNK: i64 = 256;

/// How many decisions are judged for one call.
pub const DECISIONS_MAX: u64 = 5_000;

/// A decision that would come out differently.
#[derive(Debug, Clone)]
pub struct Flip {
    /// The leaf's index in the log.
    pub index: u64,
    /// The request's id.
    pub id: String,
    /// For when it was judged.
    pub at: Timestamp,
    /// Who asked.
    pub sub: String,
    /// What was decided.
    pub was: Outcome,
    /// By which bundle.
    pub was_by: B256,
    /// Which grants covered it.
    pub was_grants: Vec<String>,
    /// What would be decided.
    pub is: Outcome,
    /// Which grants would cover it.
    pub grants: Vec<String>,
    /// Why not, if it would be denied.
    pub reasons: Vec<Reason>,
}

impl Flip {
    /// For the API and `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "index": self.index.to_string(),
            "id": self.id,
            "at": self.at.to_string(),
            "sub": self.sub,
            "was": { "outcome": self.was.name(), "bundle": format!("{:#x}", self.was_by),
                     "grants": self.was_grants },
            "is": { "outcome": self.is.name(), "grants": self.grants, "reasons": self.reasons },
        })
    }
}

/// What replaying came to.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// Decisions that were judged again.
    pub judged: u64,
    /// Those that would come out differently, in the order of the log.
    pub flips: Vec<Flip>,
    /// Decisions that cannot be judged again.
    pub unreadable: u64,
    /// Why not, for the first of them.
    pub why_unreadable: Option<String>,
    /// Whether older decisions were left out.
    pub is_cut: bool,
}

impl Replayed {
    /// For the API and `--json`.
    #[must_use]
    pub fn json(&self, hash: B256) -> Value {
        json!({
            "bundle": format!("{hash:#x}"),
            "judged": self.judged.to_string(),
            "flips": self.flips.iter().map(Flip::json).collect::<Vec<_>>(),
            "unreadable": self.unreadable.to_string(),
            "unreadable_because": self.why_unreadable,
            "older_left_out": self.is_cut,
        })
    }

    /// Judges the decision of a leaf again; leaves without one are passed over.
    fn take(&mut self, bundle: &Bundle, leaf: &LogLeaf, decision: &Decision) {
        let recorded = match decision {
            Decision::None => return,
            Decision::Text(text, at) => recorded(text, *at),
            Decision::NotKept => Err(Unreadable::Field("it was too long to be kept".to_owned())),
        };
        match recorded {
            Ok(it) => {
                self.judged = self.judged.saturating_add(1);
                self.flips.extend(flip(bundle, leaf, &it));
            }
            Err(Unreadable::NoRequest) => {}
            Err(why) => {
                self.unreadable = self.unreadable.saturating_add(1);
                self.why_unreadable.get_or_insert_with(|| format!("leaf {}: {why}", leaf.index));
            }
        }
    }
}

fn flip(bundle: &Bundle, leaf: &LogLeaf, it: &Recorded) -> Option<Flip> {
    let verdict = evaluate(bundle, &it.request, it.now);
    if verdict.outcome == it.outcome {
        return None;
    }
    let names = |grants: &[crate::core::id::GrantId]| -> Vec<String> {
        grants.iter().map(ToString::to_string).collect()
    };
    Some(Flip {
        index: leaf.index,
        id: leaf.subject.clone(),
        at: it.now,
        sub: it.request.principal.sub.clone(),
        was: it.outcome,
        was_by: it.bundle,
        was_grants: names(&it.grants),
        is: verdict.outcome,
        grants: names(&verdict.grants),
        reasons: verdict.reasons,
    })
}

enum Decision {
    /// The leaf has none, or repeats that of the request's first attempt.
    None,
    Text(String, Timestamp),
    NotKept,
}

/// Judges the decisions of up to [`CHUNK`] leaves from an index on. Answers how many leaves there were.
///
/// # Errors
/// When the store does not answer, or a leaf is none.
pub async fn chunk(
    store: &dyn Store,
    bundle: &Bundle,
    (from, most): (u64, i64),
    since: Option<Timestamp>,
    found: &mut Replayed,
) -> Result<u64, StoreError> {
    let leaves = look(store, "replay", move |unit| {
        Box::pin(async move {
            let mut read = Vec::new();
            for leaf in unit.log_leaves(from, most).await? {
                let decision = match wanted(&leaf)? {
                    None => Decision::None,
                    Some((at, _)) if since.is_some_and(|since| at < since) => Decision::None,
                    Some((at, Told::Text(text))) => Decision::Text(text, at),
                    Some((at, Told::Named(hash))) => {
                        let text = unit.long_text(&hash).await?;
                        let text = text.and_then(|text| String::from_utf8(text).ok());
                        text.map_or(Decision::NotKept, |text| Decision::Text(text, at))
                    }
                };
                read.push((leaf, decision));
            }
            Ok(read)
        })
    })
    .await?;
    for (leaf, decision) in &leaves {
        found.take(bundle, leaf, decision);
    }
    Ok(u64::try_from(leaves.len()).unwrap_or(u64::MAX))
}

enum Told {
    Text(String),
    Named([u8; 32]),
}

fn wanted(leaf: &LogLeaf) -> Result<Option<(Timestamp, Told)>, StoreError> {
    let is_decision = [LeafKind::Decided, LeafKind::Denied].map(LeafKind::name);
    if !is_decision.contains(&leaf.kind.as_str()) {
        return Ok(None);
    }
    let wrong = |what: &str| StoreError::Corrupt(format!("leaf {}: {what}", leaf.index));
    let read = ReadLeaf::parse(&leaf.bytes).map_err(|error| wrong(&error.to_string()))?;
    // A replacement carries the decision of the request, which the first attempt has told.
    if read.text("attempt").is_some_and(|attempt| attempt != "1") {
        return Ok(None);
    }
    let at = read.text("at").and_then(Timestamp::parse_rfc3339).ok_or_else(|| wrong("at"))?;
    let decision = read.text("decision").ok_or_else(|| wrong("decision"))?;
    let named = decision.strip_prefix("sha256:").and_then(|rest| rest.split_once(':'));
    let Some((digits, _)) = named else {
        return Ok(Some((at, Told::Text(decision.to_owned()))));
    };
    let hash = hex::decode(digits).ok().and_then(|hash| hash.try_into().ok());
    Ok(Some((at, Told::Named(hash.ok_or_else(|| wrong("decision"))?))))
}

/// The index of the first leaf that may be of this time or later: leaves are in order of their times but for
/// the spread of several servers' clocks, so it begins a minute before.
///
/// # Errors
/// When the store does not answer, or a leaf is none.
pub async fn first_since(
    store: &dyn Store,
    size: u64,
    since: Timestamp,
) -> Result<u64, StoreError> {
    let since = since.plus_millis(-60_000);
    let (mut low, mut high) = (0_u64, size);
    while low < high {
        let middle = low.midpoint(high);
        let leaf = look(store, "leaf_time", move |unit| {
            Box::pin(async move { unit.log_leaves(middle, 1).await })
        })
        .await?;
        let at = leaf.first().and_then(|leaf| ReadLeaf::parse(&leaf.bytes).ok());
        let at = at.and_then(|leaf| leaf.text("at").and_then(Timestamp::parse_rfc3339));
        let at = at.ok_or_else(|| StoreError::Corrupt(format!("leaf {middle} cannot be read")))?;
        if at < since {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Judges the newest decisions by a bundle that is kept: at most [`DECISIONS_MAX`], none before `since`.
///
/// # Errors
/// When there is no such bundle, it does not load, or the store does not answer.
pub async fn newest(
    app: &App,
    hash: B256,
    since: Option<Timestamp>,
    most: u64,
) -> Result<Replayed, AppError> {
    let (_, bundle) = super::stored(app, hash).await?;
    let head = look(&*app.store, "log_head", |unit| Box::pin(async move { unit.log_head().await }))
        .await?;
    let first = match since {
        Some(since) => first_since(&*app.store, head.size, since).await?,
        None => 0,
    };
    let mut found = Replayed::default();
    let mut below = head.size;
    let step = u64::try_from(CHUNK).unwrap_or(1);
    // From the end backwards, so that the newest are judged whatever there is.
    while below > first && found.judged.saturating_add(found.unreadable) < most {
        let from = below.saturating_sub(step).max(first);
        let count = i64::try_from(below.saturating_sub(from)).unwrap_or(CHUNK);
        chunk(&*app.store, &bundle, (from, count), since, &mut found).await?;
        below = from;
    }
    found.is_cut = below > first;
    found.flips.sort_by_key(|flip| flip.index);
    Ok(found)
}
