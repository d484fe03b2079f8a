//! A key ceremony: what stands in its way, its beginning in the log, its keys, its end in the log.
//!
//! Its keys are made by the use case that makes every key, so a crash leaves nothing that the next start does
//! not finish. The ceremony itself stays open then, and is seen: by `doctor`, at each start, and in the log,
//! which has its beginning and not its end.

use crate::app::create_key::{self, CreateKey};
use crate::app::{App, AppError};
use crate::core::audit::read::ReadLeaf;
use crate::core::audit::{Leaf, LeafKind};
use crate::core::ceremony::{
    Plan, PlannedCustody, PlannedKey, RecordedKey, RecordedToken, principal,
};
use crate::core::id::HsmName;
use crate::core::key::{Custody, OperatorKey};
use crate::core::key_report::{TokenReport, token_label};
use crate::ports::store::{End, OpenCeremony, look, unit};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The tokens that a plan uses, as they tell themselves.
///
/// # Errors
/// When one is not configured or does not answer.
pub async fn tokens(app: &App, plan: &Plan) -> Result<Vec<(HsmName, TokenReport)>, AppError> {
    let mut found = Vec::new();
    for hsm in plan.tokens() {
        if !app.signer.hsms().contains(hsm) {
            return Err(AppError::invalid("hsm", format!("`{hsm}` is not configured here")));
        }
        found.push((hsm.clone(), app.signer.describe_token(hsm).await?));
    }
    Ok(found)
}

/// Everything that stands in the way of a plan, a sentence each: an open ceremony, groups that are not
/// configured, and names and ids that the tokens or the database know already.
///
/// # Errors
/// When a token or the store does not answer.
pub async fn obstacles(
    app: &App,
    plan: &Plan,
    tokens: &[(HsmName, TokenReport)],
) -> Result<Vec<String>, AppError> {
    let (open, names) = look(&*app.store, "key_names", |unit| {
        Box::pin(async move { Ok((unit.open_ceremony().await?, unit.key_names().await?)) })
    })
    .await?;
    let names: BTreeSet<String> = names.into_iter().collect();
    let mut found = Vec::new();
    if let Some(open) = open {
        found.push(interrupted(&open));
    }
    let token = |hsm: &HsmName| tokens.iter().find(|(name, _)| name == hsm).map(|(_, told)| told);
    for key in &plan.wrapping_keys {
        let Some(told) = token(&key.hsm) else { continue };
        if told.labels.contains(&key.label) {
            found.push(format!("token `{}` has an object labelled `{}`", key.hsm, key.label));
        }
        if key.cka_id.as_ref().is_some_and(|id| told.ids.contains(id.as_bytes())) {
            found.push(format!("token `{}` has an object with the id of `{}`", key.hsm, key.label));
        }
    }
    for key in &plan.keys {
        let PlannedKey { label, group, hsm, .. } = key;
        if group.as_ref().is_some_and(|group| !app.groups.contains(group)) {
            found.push(format!("the group of `{label}` is not configured"));
        }
        if names.contains(label) {
            found.push(format!("the database has a key `{label}`"));
        }
        if key.custody == PlannedCustody::Wrapped {
            found.extend(cannot_wrap(app, plan, hsm, token(hsm)));
        }
        let labels = token(hsm).map(|told| &told.labels);
        for name in [label.clone(), token_label(label)] {
            if labels.is_some_and(|labels| labels.contains(&name)) {
                found.push(format!("token `{hsm}` has an object labelled `{name}`"));
            }
        }
    }
    Ok(found)
}

/// Why no key can be kept wrapped by a token: it needs a configured wrapping key that is there, or is made first.
fn cannot_wrap(
    app: &App,
    plan: &Plan,
    hsm: &HsmName,
    token: Option<&TokenReport>,
) -> Option<String> {
    let Some(id) = app.signer.wrapping_key(hsm) else {
        return Some(format!("token `{hsm}` has no `wrapping_key` in the configuration"));
    };
    let is_made =
        plan.wrapping_keys.iter().any(|key| key.hsm == *hsm && key.cka_id.as_ref() == Some(&id));
    let is_there = token.is_some_and(|token| token.ids.contains(id.as_bytes()));
    let named = hex::encode(id.as_bytes());
    (!is_made && !is_there).then(|| {
        format!("the wrapping key {named} of token `{hsm}` is not there, and not in the plan")
    })
}

/// What is said of a ceremony that was begun and has not ended.
#[must_use]
pub fn interrupted(open: &OpenCeremony) -> String {
    let OpenCeremony { id, title, begun_at, .. } = open;
    format!("the ceremony `{title}` ({id}) was begun at {begun_at} and has not ended")
}

/// Notes in database and log that it begins. From here on it is open until [`end`].
///
/// # Errors
/// When one is open already, or the store does not answer.
pub async fn begin(app: &App, plan: &Plan) -> Result<OpenCeremony, AppError> {
    let open = OpenCeremony {
        id: app.entropy.uuid(),
        title: plan.title.clone(),
        plan: plan.text.clone(),
        begun_at: app.clock.now(),
    };
    let leaf = Leaf::new(LeafKind::KeyCeremony, open.id, open.begun_at)
        .with("action", "begun")
        .with("plan_sha256", plan.sha256())
        .with("plan", &plan.text)
        .encode()
        .map_err(AppError::internal)?;
    let all = Arc::new((open.clone(), leaf));
    let begun = unit(&*app.store, "begin_ceremony", move |unit| {
        let all = all.clone();
        Box::pin(async move {
            if !unit.begin_ceremony(&all.0).await? {
                return Ok(End::Rollback(false));
            }
            unit.append_leaf(&all.1).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    crate::failpoint!("ceremony.after_begin");
    if begun {
        return Ok(open);
    }
    let detail = "another ceremony is open".to_owned();
    Err(AppError::Conflict { detail, request: None })
}

/// Makes one of its keys.
///
/// # Errors
/// As [`create_key::create`]. The ceremony stays open.
pub async fn make_key(
    app: &App,
    open: &OpenCeremony,
    key: &PlannedKey,
) -> Result<OperatorKey, AppError> {
    let command = CreateKey {
        principal: principal(open.id),
        label: key.label.clone(),
        group: key.group.clone(),
        mode: key.mode,
        hsm: key.hsm.clone(),
        is_wrapped: key.custody == PlannedCustody::Wrapped,
    };
    create_key::create(app, command).await
}

/// Whether the plan of an open ceremony is the one with which it was begun, as the log has it.
///
/// # Errors
/// When it is not, or the store does not answer.
pub async fn must_be_as_begun(app: &App, open: &OpenCeremony) -> Result<(), AppError> {
    let id = open.id.to_string();
    let leaves = look(&*app.store, "leaves_about", move |unit| {
        let id = id.clone();
        Box::pin(async move { unit.leaves_about(&id).await })
    })
    .await?;
    let hash = hex::encode(Sha256::digest(&open.plan));
    let is_beginning = |leaf: &ReadLeaf| {
        leaf.kind == LeafKind::KeyCeremony && leaf.text("action") == Some("begun")
    };
    let begun = leaves.iter().filter_map(|bytes| ReadLeaf::parse(bytes).ok()).find(is_beginning);
    if begun.is_some_and(|leaf| leaf.text("plan_sha256") == Some(hash.as_str())) {
        return Ok(());
    }
    Err(AppError::internal(
        "the plan in the database is not the one that the log says the ceremony was begun with",
    ))
}

/// What a record calls the proof that the HSM has a key's private half.
const PROOF: &str = "proof_of_possession";

/// The keys that were made, from the database, each proved, with what their tokens tell of them now. What the
/// HSM does not have as the database says is an error; or, unless all `must_prove`, is recorded as it is.
///
/// # Errors
/// When a token or the store does not answer.
pub async fn made(
    app: &App,
    open: &OpenCeremony,
    must_prove: bool,
) -> Result<Vec<RecordedKey>, AppError> {
    let who = Arc::new(principal(open.id));
    let keys = look(&*app.store, "keys_of", move |unit| {
        let who = who.clone();
        Box::pin(async move { unit.keys_of(&who).await })
    })
    .await?;
    let mut made = Vec::new();
    for key in keys {
        let (custody, report) = match &key.custody {
            Custody::Token => (PlannedCustody::Token, app.signer.describe_key(&key.place()).await?),
            Custody::Wrapped(_) => (PlannedCustody::Wrapped, None),
        };
        let is_other = report.as_ref().is_some_and(|report| report.public_key != key.public_key);
        let proof = match app.signer.enroll(&key).await {
            Ok(()) if is_other => "its public key in the token is another".to_owned(),
            Ok(()) => "signed and verified".to_owned(),
            Err(error) if error.is_unavailable() || must_prove => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        if is_other && must_prove {
            return Err(AppError::internal(format!("{}: {proof}", key.label)));
        }
        let mut attributes: BTreeMap<String, String> = report
            .iter()
            .flat_map(|report| report.values())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        attributes.insert(PROOF.to_owned(), proof);
        made.push(RecordedKey {
            id: key.id.to_string(),
            group: key.group.as_ref().map_or("", |group| group.as_str()).to_owned(),
            mode: key.mode.name().to_owned(),
            hsm: key.hsm.to_string(),
            cka_id: hex::encode(key.cka_id.as_bytes()),
            custody: custody.name().to_owned(),
            token_label: report.and_then(|report| report.label),
            public_key: format!("0x{}", hex::encode(key.public_key.as_bytes())),
            address: format!("{:#x}", key.address),
            label: key.label,
            attributes,
        });
    }
    Ok(made)
}

/// What is recorded of tokens.
#[must_use]
pub fn recorded(tokens: &[(HsmName, TokenReport)]) -> Vec<RecordedToken> {
    tokens.iter().map(|(hsm, told)| RecordedToken::of(hsm, told)).collect()
}

/// Puts the signed record of so many keys into the log; the ceremony has ended.
///
/// # Errors
/// When it is not open any more, has begun or made other keys meanwhile, or the store does not answer.
pub async fn end(
    app: &App,
    open: &OpenCeremony,
    outcome: &str,
    (record, keys): (&str, usize),
) -> Result<(), AppError> {
    let at = app.clock.now();
    let leaf = Leaf::new(LeafKind::KeyCeremony, open.id, at)
        .with("action", "ended")
        .with("outcome", outcome)
        .with("record", record)
        .encode()
        .map_err(AppError::internal)?;
    let (id, leaf, who) = (open.id, Arc::new(leaf), Arc::new(principal(open.id)));
    let ended = unit(&*app.store, "end_ceremony", move |unit| {
        let (leaf, who) = (leaf.clone(), who.clone());
        Box::pin(async move {
            if !unit.end_ceremony(id, at).await? {
                return Ok(End::Rollback(Err("the ceremony is not open any more")));
            }
            // From here on it makes no keys; what it has made is what the record says.
            let begun = unit.unfinished_keys().await?;
            if begun.iter().any(|key| key.principal == *who)
                || unit.keys_of(&who).await?.len() != keys
            {
                return Ok(End::Rollback(Err(
                    "the ceremony is making keys this moment: it is running",
                )));
            }
            unit.append_leaf(&leaf).await?;
            Ok(End::Commit(Ok(())))
        })
    })
    .await?;
    crate::failpoint!("ceremony.after_end");
    ended.map_err(|detail| AppError::Conflict { detail: detail.to_owned(), request: None })
}
