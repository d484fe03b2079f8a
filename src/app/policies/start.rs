//! Which bundle a process begins with, and how it follows what others put in force.

use super::{Change, keep, load, put, stored};
use crate::app::record::{self, By};
use crate::app::{App, AppError};
use crate::core::policy::Bundle;
use crate::core::policy::change::{Standing, standing};
use crate::core::policy::diff::diff;
use crate::core::principal::Principal;
use crate::ports::store::{Activation, BundleRow, End, StoreError, look, unit};
use alloy::primitives::B256;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often another process may be faster.
const TRIES: usize = 8;

/// What a start came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The folder's bundle was in force already.
    Same,
    /// The folder's bundle was put in force.
    Folder,
    /// Another bundle is in force, which only people may replace: the folder's is not looked at.
    Kept {
        /// That one.
        in_force: B256,
    },
}

/// Begins with the folder's bundle, or with the one in force where people must have a say.
///
/// # Errors
/// When the bundle in force does not load, or the store does not answer.
pub async fn begin(app: &App, files: &BTreeMap<String, Vec<u8>>) -> Result<Begun, AppError> {
    let folder = Bundle::load(files).map_err(AppError::internal)?;
    let folder = Arc::new(folder);
    for _ in 0..TRIES {
        let active = look(&*app.store, "active_bundle", |unit| {
            Box::pin(async move { unit.active_bundle().await })
        })
        .await?;
        let before = match &active {
            None => None,
            Some(active) if active.bundle == folder.hash() => {
                app.policy.follow(folder, active.serial);
                return Ok(Begun::Same);
            }
            Some(active) => {
                let (_, in_force) = stored(app, active.bundle).await?;
                if in_force.guardrails().change.is_some() {
                    let hash = in_force.hash();
                    app.policy.follow(in_force, active.serial);
                    return Ok(Begun::Kept { in_force: hash });
                }
                Some(in_force)
            }
        };
        let serial = active.map_or(0, |active| active.serial);
        if from_folder(app, files, &folder, before, serial).await? {
            return Ok(Begun::Folder);
        }
    }
    Err(StoreError::Contended.into())
}

async fn from_folder(
    app: &App,
    files: &BTreeMap<String, Vec<u8>>,
    folder: &Arc<Bundle>,
    before: Option<Arc<Bundle>>,
    serial: i64,
) -> Result<bool, AppError> {
    let text = |(path, bytes): (&String, &Vec<u8>)| {
        String::from_utf8(bytes.clone()).map(|text| (path.clone(), text))
    };
    let files: BTreeMap<String, String> =
        files.iter().map(text).collect::<Result<_, _>>().map_err(AppError::internal)?;
    let at = app.clock.now();
    let row = BundleRow {
        hash: folder.hash(),
        version: folder.version().to_owned(),
        files_json: serde_json::to_string(&files).map_err(AppError::internal)?,
        author: Principal { iss: String::new(), sub: String::new() },
        at,
    };
    let serial = serial.checked_add(1).ok_or_else(|| AppError::internal("serial"))?;
    let activation = Activation { serial, bundle: row.hash, way: "folder".to_owned(), at };
    let changes = before.as_ref().map(|before| diff(before, folder));
    let leaf = record::bundle_activated(
        (row.hash, &row.version),
        before.as_ref().map(|before| before.hash()),
        By::Folder,
        changes.as_ref(),
        at,
    )?;
    let event = record::policy_event(
        (row.hash, &row.version),
        before.as_ref().map(|before| before.hash()),
        ("folder", serial),
        app.entropy.uuid().to_string(),
        at,
    );
    let work = Arc::new((row, activation, leaf, event));
    let done = unit(&*app.store, "activate_folder", move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move {
            let (row, activation, leaf, event) = &*work;
            keep(unit, row).await?;
            if !unit.activate_bundle(activation).await? {
                return Ok(End::Rollback(false));
            }
            unit.append_leaf(leaf).await?;
            unit.append_event(event).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    if done {
        app.policy.follow(Arc::clone(folder), serial);
    }
    Ok(done)
}

/// Follows what is in force in the database, and puts in force what has waited long enough.
///
/// # Errors
/// When the store does not answer, or what is in force does not load here: then nothing is decided here.
pub async fn follow(app: &App) -> Result<(), AppError> {
    catch_up(app).await?;
    let (in_force, serial) = app.policy.numbered();
    let wanted = look(&*app.store, "wanted_bundles", move |unit| {
        Box::pin(async move { unit.wanted_bundles(serial).await })
    })
    .await?;
    for hash in wanted {
        // One that cannot be put in force keeps no other.
        if let Err(error) = put_if_due(app, (&in_force, serial), hash).await {
            tracing::warn!(%hash, %error, "a bundle that waits could not be put in force, and is looked at again");
        }
    }
    Ok(())
}

/// Puts a bundle in force that has its people and has waited long enough.
async fn put_if_due(
    app: &App,
    (in_force, serial): (&Arc<Bundle>, i64),
    hash: B256,
) -> Result<(), AppError> {
    let (row, voices) = look(&*app.store, "wanted_bundle", move |unit| {
        Box::pin(async move { Ok((unit.bundle(hash).await?, unit.voices(hash, serial).await?)) })
    })
    .await?;
    let row = row.ok_or(AppError::NotFound)?;
    let (rules, author, now) = (in_force.guardrails(), &row.author.sub, app.clock.now());
    // As if it only tightened: what has not its people needs not be loaded.
    if standing(rules, author, &voices, false, now) != Standing::Ready {
        return Ok(());
    }
    let loaded = app.policy.loaded(hash, || load(&row.files_json));
    let bundle = loaded.map_err(AppError::Internal)?;
    if bundle.parent() != Some(in_force.hash()) || !app.policy.against(&bundle).is_empty() {
        return Ok(());
    }
    let change = Change::new(in_force, serial, row.author.sub, &bundle, now);
    let is_looser = change.diff.is_looser();
    if standing(in_force.guardrails(), &change.author, &voices, is_looser, now) == Standing::Ready {
        put(app, change, None).await?;
    }
    Ok(())
}

/// Takes over what is in force in the database, if that is not known here yet.
///
/// # Errors
/// When the store does not answer, or what is in force does not load here: then nothing is decided here.
pub(crate) async fn catch_up(app: &App) -> Result<(), AppError> {
    let active = look(&*app.store, "active_bundle", |unit| {
        Box::pin(async move { unit.active_bundle().await })
    })
    .await?;
    let serial = app.policy.numbered().1;
    let Some(active) = active.filter(|active| active.serial > serial) else {
        return Ok(());
    };
    let hash = active.bundle;
    let row =
        look(&*app.store, "bundle", move |unit| Box::pin(async move { unit.bundle(hash).await }))
            .await?;
    let row = row.ok_or_else(|| AppError::internal("the bundle in force is not kept"))?;
    match app.policy.loaded(hash, || load(&row.files_json)) {
        Ok(bundle) => {
            for problem in app.policy.against(&bundle) {
                // Its grants for what is not configured here match nothing.
                tracing::error!(%hash, problem, "the bundle in force does not fit this configuration");
            }
            let version = bundle.version();
            tracing::info!(version, %hash, serial = active.serial, "policy bundle followed");
            app.policy.follow(bundle, active.serial);
            Ok(())
        }
        Err(problem) => {
            // It was put in force by a newer version of the program. What it forbids is not known, so nothing
            // is decided; and nothing ends, since another process can judge it.
            if app.policy.must_be_readable().is_ok() {
                tracing::error!(%hash, problem, "the bundle in force does not load here");
            }
            app.policy.close(hash, problem);
            app.policy.must_be_readable()
        }
    }
}
