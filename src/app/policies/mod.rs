//! Policy bundles: proposed, compared with the one in force, put in force by others than their author.
//!
//! The database says which bundle is in force: the activation with the highest number. Every process over it
//! follows. A change drops no request: whoever has begun to judge ends with the bundle that it began with.

mod reject;
pub mod replay;
mod start;

pub use reject::reject;
pub(crate) use start::catch_up;
pub use start::{Begun, begin, follow};

use crate::app::record::{self, By};
use crate::app::{App, AppError, clock_watch};
use crate::core::policy::Bundle;
use crate::core::policy::change::{Standing, Voice, standing};
use crate::core::policy::diff::{Diff, diff};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{
    Activation, BundleRejection, BundleRow, End, NewEvent, NewVoice, StoreError, Unit, look, unit,
};
use alloy::primitives::B256;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A bundle's files: path below its folder, and text.
pub type Files = BTreeMap<String, String>;

/// How many bundles and activations a listing has.
const LIST_MAX: i64 = 200;

/// The longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 1_000;

/// How often another activation may come between reading and writing.
const TRIES: usize = 8;

/// All bundles, and which of them is in force.
#[derive(Debug, Clone)]
pub struct Listing {
    /// What is in force.
    pub active: Option<Activation>,
    /// Bundles without their files, newest first.
    pub bundles: Vec<BundleRow>,
    /// What was in force, newest first.
    pub activations: Vec<Activation>,
}

/// One bundle.
#[derive(Debug, Clone)]
pub struct Shown {
    /// It, with its files.
    pub row: BundleRow,
    /// As it loads here, or why it does not.
    pub bundle: Result<Arc<Bundle>, String>,
    /// Whether it is in force.
    pub is_active: bool,
    /// Who said that it may be put in force in the place of the one that is.
    pub voices: Vec<Voice>,
    /// What keeps it from being put in force; `None` if it is, or does not load.
    pub standing: Option<Standing>,
    /// Who rejected it, if somebody has.
    pub rejection: Option<BundleRejection>,
}

/// What came of somebody's word.
#[derive(Debug, Clone)]
pub struct Activated {
    /// Whether the bundle is in force now.
    pub is_active: bool,
    /// What it waits for, if it is not.
    pub standing: Standing,
    /// What it newly permits and refuses.
    pub diff: Diff,
}

/// Reads a bundle from the files that are kept, which runs its cases.
///
/// # Errors
/// When it does not load in this version.
pub fn load(files_json: &str) -> Result<Bundle, String> {
    let files: Files = serde_json::from_str(files_json).map_err(|error| error.to_string())?;
    let files = files.into_iter().map(|(path, text)| (path, text.into_bytes())).collect();
    Bundle::load(&files).map_err(|error| error.to_string())
}

/// Keeps a bundle that somebody proposes. It changes nothing before it is put in force.
///
/// # Errors
/// When it does not load, one of its cases does not hold, the configuration does not fit, or its parent is not
/// the bundle in force.
pub async fn propose(app: &App, who: Principal, files: Files) -> Result<B256, AppError> {
    let files_json = serde_json::to_string(&files).map_err(AppError::internal)?;
    let bundle = load(&files_json).map_err(|problem| AppError::invalid("files", problem))?;
    start::catch_up(app).await?;
    let in_force = app.bundle();
    if bundle.hash() != in_force.hash() {
        must_continue(&bundle, &in_force)?;
    }
    must_fit(app, &bundle)?;
    let at = app.clock.now();
    let row = BundleRow {
        hash: bundle.hash(),
        version: bundle.version().to_owned(),
        files_json,
        author: who,
        at,
    };
    let hash = row.hash;
    if let Some(found) = rejection(app, hash).await? {
        return Err(rejected(&found.who.sub));
    }
    let row = Arc::new(row);
    unit(&*app.store, "propose_bundle", move |unit| {
        let row = Arc::clone(&row);
        Box::pin(async move { Ok(End::Commit(keep(unit, &row).await?)) })
    })
    .await?;
    Ok(hash)
}

async fn rejection(app: &App, hash: B256) -> Result<Option<BundleRejection>, AppError> {
    let found = look(&*app.store, "bundle_rejection", move |unit| {
        Box::pin(async move { unit.bundle_rejection(hash).await })
    })
    .await?;
    Ok(found)
}

fn rejected(by: &str) -> AppError {
    let by = by.to_owned();
    AppError::Conflict { detail: Standing::Rejected { by }.to_string(), request: None }
}

fn check_reason(reason: &str) -> Result<(), AppError> {
    if reason.trim().is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        let problem = format!("must have 1 to {REASON_CHARS_MAX} characters");
        return Err(AppError::invalid("reason", problem));
    }
    Ok(())
}

/// Keeps it with its leaf, unless it is kept already: then its author stays who it was. A folder's bundle has
/// none, and gets the first person who proposes it.
async fn keep(unit: &mut dyn Unit, row: &BundleRow) -> Result<(), StoreError> {
    if unit.keep_bundle(row).await? {
        let (hash, version, files) = (row.hash, &row.version, &row.files_json);
        let leaf = record::bundle_proposed(hash, version, files, &row.author, row.at)?;
        unit.append_leaf(&leaf).await?;
    }
    Ok(())
}

fn must_continue(bundle: &Bundle, in_force: &Bundle) -> Result<(), AppError> {
    let expected = in_force.hash();
    if bundle.parent() == Some(expected) {
        return Ok(());
    }
    let named = bundle.parent().map_or_else(|| "none".to_owned(), |hash| format!("{hash:#x}"));
    Err(AppError::Conflict {
        detail: format!(
            "the bundle names {named} as its parent, and {expected:#x} is in force: compare it with that one, \
             then say so in its bundle.toml (parent = \"{expected:#x}\")"
        ),
        request: None,
    })
}

fn must_fit(app: &App, bundle: &Bundle) -> Result<(), AppError> {
    let against = app.policy.against(bundle);
    if against.is_empty() {
        return Ok(());
    }
    Err(AppError::Conflict {
        detail: format!("it does not fit the configuration: {}", against.join("; ")),
        request: None,
    })
}

/// All bundles.
///
/// # Errors
/// When the store does not answer.
pub async fn list(app: &App) -> Result<Listing, AppError> {
    let found = look(&*app.store, "bundles", |unit| {
        Box::pin(async move {
            Ok(Listing {
                active: unit.active_bundle().await?,
                bundles: unit.bundles(LIST_MAX).await?,
                activations: unit.activations(LIST_MAX).await?,
            })
        })
    })
    .await?;
    Ok(found)
}

/// One bundle.
///
/// # Errors
/// When there is none, or the store does not answer.
pub async fn read(app: &App, hash: B256) -> Result<Shown, AppError> {
    start::catch_up(app).await?;
    let (in_force, serial) = app.policy.numbered();
    let (row, voices, rejection) = look(&*app.store, "bundle", move |unit| {
        Box::pin(async move {
            let row = unit.bundle(hash).await?;
            let voices = unit.voices(hash, serial).await?;
            Ok((row, voices, unit.bundle_rejection(hash).await?))
        })
    })
    .await?;
    let row = row.ok_or(AppError::NotFound)?;
    let bundle = load(&row.files_json).map(Arc::new);
    let is_active = in_force.hash() == hash;
    let now = app.clock.now();
    let standing = bundle.as_ref().ok().filter(|_| !is_active).map(|bundle| {
        let is_looser = diff(&in_force, bundle).is_looser();
        match &rejection {
            Some(found) => Standing::Rejected { by: found.who.sub.clone() },
            None => standing(in_force.guardrails(), &row.author.sub, &voices, is_looser, now),
        }
    });
    Ok(Shown { row, bundle, is_active, voices, standing, rejection })
}

/// What a bundle newly permits and refuses, against the one in force, whose hash is the second part.
///
/// # Errors
/// When there is none, it does not load, or the store does not answer.
pub async fn diff_of(app: &App, hash: B256) -> Result<(Diff, B256), AppError> {
    start::catch_up(app).await?;
    let bundle = stored(app, hash).await?.1;
    let in_force = app.bundle();
    Ok((diff(&in_force, &bundle), in_force.hash()))
}

/// A bundle that is kept, as it loads here.
async fn stored(app: &App, hash: B256) -> Result<(BundleRow, Arc<Bundle>), AppError> {
    let row =
        look(&*app.store, "bundle", move |unit| Box::pin(async move { unit.bundle(hash).await }))
            .await?
            .ok_or(AppError::NotFound)?;
    let bundle = load(&row.files_json).map_err(|problem| AppError::Conflict {
        detail: format!("the bundle does not load in this version: {problem}"),
        request: None,
    })?;
    Ok((row, Arc::new(bundle)))
}

/// Somebody says that a bundle may be put in force. It is as soon as the bundle in force lets it.
///
/// # Errors
/// When its author says so, its parent is not in force, the configuration does not fit, or the store does not
/// answer.
pub async fn activate(
    app: &App,
    hash: B256,
    who: Principal,
    reason: String,
) -> Result<Activated, AppError> {
    check_reason(&reason)?;
    let (row, bundle) = stored(app, hash).await?;
    if row.author.sub.is_empty() && app.bundle().hash() != hash {
        // Two people put a bundle in force, also one that came from a folder once.
        return Err(AppError::Conflict {
            detail: "it has no author: it came from a folder. Somebody must propose it, and somebody else put \
                     it in force"
                .to_owned(),
            request: None,
        });
    }
    if row.author.sub == who.sub {
        return Err(AppError::Conflict {
            detail: "its author cannot put it in force: somebody else must".to_owned(),
            request: None,
        });
    }
    for _ in 0..TRIES {
        start::catch_up(app).await?;
        let (in_force, serial) = app.policy.numbered();
        if in_force.hash() == hash {
            let (standing, diff) = (Standing::Ready, Diff::default());
            return Ok(Activated { is_active: true, standing, diff });
        }
        must_continue(&bundle, &in_force)?;
        must_fit(app, &bundle)?;
        let voice = NewVoice {
            bundle: hash,
            serial,
            who: who.clone(),
            reason: reason.clone(),
            at: app.clock.now(),
        };
        let change = Change::new(&in_force, serial, row.author.sub.clone(), &bundle, voice.at);
        let diff = change.diff.clone();
        if let Some(standing) = put(app, change, Some(voice)).await? {
            if let Standing::Rejected { by } = &standing {
                return Err(rejected(by));
            }
            let is_active = standing == Standing::Ready;
            return Ok(Activated { is_active, standing, diff });
        }
    }
    Err(StoreError::Contended.into())
}

/// A bundle that may come into the place of another.
struct Change {
    in_force: Arc<Bundle>,
    serial: i64,
    author: String,
    bundle: Arc<Bundle>,
    diff: Diff,
    at: Timestamp,
}

impl Change {
    fn new(
        in_force: &Arc<Bundle>,
        serial: i64,
        author: String,
        bundle: &Arc<Bundle>,
        at: Timestamp,
    ) -> Self {
        let diff = diff(in_force, bundle);
        let (in_force, bundle) = (Arc::clone(in_force), Arc::clone(bundle));
        Self { in_force, serial, author, bundle, diff, at }
    }
}

/// One unit: the word, and the activation if nothing more is needed. `None` if another bundle came into force
/// meanwhile.
async fn put(
    app: &App,
    change: Change,
    voice: Option<NewVoice>,
) -> Result<Option<Standing>, AppError> {
    let waits = change.in_force.guardrails().change.as_ref().is_some_and(|it| it.delay_ms > 0);
    if waits && change.diff.is_looser() {
        // A clock that jumped must not end the wait. What tightens needs no clock.
        clock_watch::believed(app).await?;
    }
    let bundle = Arc::clone(&change.bundle);
    let next = change.serial.checked_add(1).ok_or_else(|| AppError::internal("serial"))?;
    let event = record::policy_event(
        (bundle.hash(), bundle.version()),
        Some(change.in_force.hash()),
        ("people", next),
        app.entropy.uuid().to_string(),
        change.at,
    );
    let work = Arc::new((change, voice, event));
    let found = unit(&*app.store, "activate_bundle", move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move { put_in(unit, &work.0, work.1.as_ref(), (next, &work.2)).await })
    })
    .await?;
    if found == Some(Standing::Ready) {
        app.policy.follow(Arc::clone(&bundle), next);
        let (version, hash) = (bundle.version(), bundle.hash());
        tracing::info!(version, %hash, serial = next, "policy bundle in force");
    }
    Ok(found)
}

async fn put_in(
    unit: &mut dyn Unit,
    change: &Change,
    voice: Option<&NewVoice>,
    (next, event): (i64, &NewEvent),
) -> Result<End<Option<Standing>>, StoreError> {
    let active = unit.active_bundle().await?;
    if active.map(|active| active.serial) != Some(change.serial) {
        return Ok(End::Rollback(None));
    }
    let (hash, in_force) = (change.bundle.hash(), change.in_force.hash());
    if let Some(found) = unit.bundle_rejection(hash).await? {
        return Ok(End::Rollback(Some(Standing::Rejected { by: found.who.sub })));
    }
    if let Some(voice) = voice
        && unit.add_voice(voice).await?
    {
        let leaf = record::bundle_voice(hash, in_force, &voice.who, &voice.reason, voice.at)?;
        unit.append_leaf(&leaf).await?;
    }
    let voices = unit.voices(hash, change.serial).await?;
    let is_looser = change.diff.is_looser();
    let rules = change.in_force.guardrails();
    let standing = standing(rules, &change.author, &voices, is_looser, change.at);
    if standing == Standing::Ready {
        let way = "people".to_owned();
        let activation = Activation { serial: next, bundle: hash, way, at: change.at };
        if !unit.activate_bundle(&activation).await? {
            return Ok(End::Rollback(None));
        }
        let named = (hash, change.bundle.version());
        let diff = Some(&change.diff);
        let leaf = record::bundle_activated(named, Some(in_force), By::People, diff, change.at)?;
        unit.append_leaf(&leaf).await?;
        unit.append_event(event).await?;
    }
    Ok(End::Commit(Some(standing)))
}
