//! The tokens and the keys in them: a line each, and one for what a fault keeps from being checked.

use super::Findings;
use crate::ceremony::open_ceremony;
use crate::world;
use claviger::app::ceremony::interrupted;
use claviger::config::server::ServerConfig;
use claviger::core::id::HsmName;
use claviger::core::key::{CkaId, Custody, KeyPlace, OperatorKey};
use claviger::core::key_report::{KeyException, KeyFlag, KeyReport};
use claviger::hsm::{
    Diagnosis, Hsm, HsmConfig, NEEDS_EXCEPTIONS, WrappingConfig, diagnose, diagnose_pin_file,
};
use claviger::ports::signer::{Signer, SignerError};
use claviger::ports::store::{KeyFilter, Store, Wrapped, look};

/// Checks every configured token, and every key of the database in its token.
pub async fn check(config: &ServerConfig, store: Option<&dyn Store>, findings: &mut Findings) {
    let known = match store {
        Some(store) => known(store, findings).await,
        None => None,
    };
    let (keys, wrapped) = known.unzip();
    let configs = world::hsm_configs(config);
    // The lines of the keys come after those of all tokens.
    let mut of_keys = Findings::default();
    for config in &configs {
        // A standby has the keys of the token that it stands by for.
        let home = config.standby_for.as_ref().unwrap_or(&config.name);
        let here = |key: &OperatorKey| OperatorKey { hsm: config.name.clone(), ..key.clone() };
        let ours = keys.iter().flatten().filter(|key| key.hsm == *home).map(here).collect();
        let ours = Ours {
            keys: ours,
            wrapped: wrapped.iter().flatten().filter(|under| under.hsm == config.name).collect(),
            oldest: oldest_wrapped(store, &config.name).await,
        };
        token(config, &ours, findings, &mut of_keys).await;
    }
    for key in keys.iter().flatten() {
        if configs.iter().all(|config| config.name != key.hsm) {
            let wrong = Diagnosis {
                what: format!("no token is configured as `{}`", key.hsm),
                advice: "put its `[[hsm]]` back, with that name: a key stays in its token"
                    .to_owned(),
            };
            of_keys.wrong(format!("key {}", key.label), wrong);
        }
    }
    findings.0.append(&mut of_keys.0);
    if let Some(store) = store {
        let open = open_ceremony(store).await;
        match open {
            Ok(None) => findings.add("key ceremonies", Ok("none is open".to_owned())),
            Ok(Some(open)) => findings.wrong("key ceremonies", Diagnosis {
                what: interrupted(&open),
                advice: "`claviger key ceremony --end-interrupted REASON` ends it, and records what was made"
                    .to_owned(),
            }),
            Err(error) => findings.add("key ceremonies", Err(error.to_string())),
        }
    }
}

/// The keys of the tokens, and how many are wrapped: there may be very many.
async fn known(
    store: &dyn Store,
    findings: &mut Findings,
) -> Option<(Vec<OperatorKey>, Vec<Wrapped>)> {
    let known = look(store, "token_keys", |unit| {
        Box::pin(async move { Ok((unit.token_keys().await?, unit.wrapped_under().await?)) })
    })
    .await;
    match known {
        Ok((keys, wrapped)) => {
            if keys.is_empty() && wrapped.is_empty() {
                let text = "none yet; make one with `claviger key create` while the server runs";
                findings.add("keys", Ok(text.to_owned()));
            }
            Some((keys, wrapped))
        }
        Err(error) => {
            findings.add("keys", Err(error.to_string()));
            None
        }
    }
}

/// One wrapped key stands for all of its token: each is verified when it signs.
async fn oldest_wrapped(store: Option<&dyn Store>, hsm: &HsmName) -> Option<OperatorKey> {
    let filter = KeyFilter {
        after: None,
        group: None,
        hsm: Some(hsm.clone()),
        state: None,
        is_wrapped: Some(true),
        limit: 1,
    };
    let found = look(store?, "keys_page", move |unit| {
        let filter = filter.clone();
        Box::pin(async move { unit.keys_page(&filter).await })
    });
    found.await.ok()?.into_iter().next()
}

/// What the database has of one token.
struct Ours<'a> {
    keys: Vec<OperatorKey>,
    wrapped: Vec<&'a Wrapped>,
    oldest: Option<OperatorKey>,
}

impl Ours<'_> {
    fn count(&self) -> i64 {
        let keys = i64::try_from(self.keys.len()).unwrap_or(i64::MAX);
        self.wrapped.iter().fold(keys, |sum, under| sum.saturating_add(under.keys))
    }
}

/// One token. The module is finalised again before the next token is looked at, which may be of the same.
async fn token(
    config: &HsmConfig,
    ours: &Ours<'_>,
    findings: &mut Findings,
    of_keys: &mut Findings,
) {
    let name = &config.name;
    let (pin, hsm) = (format!("PIN file of {name}"), format!("HSM {name}"));
    let count = ours.count();
    let mut skip_keys = |why: &str| {
        if count > 0 {
            of_keys.not_checked(format!("keys in {name}"), format!("{why}; {count} key(s)"));
        }
    };
    if let Err(wrong) = diagnose_pin_file(&config.pin_file) {
        findings.wrong(pin, wrong);
        findings.not_checked(hsm, "there is no PIN to log in with");
        return skip_keys("there is no PIN to log in with");
    }
    findings.add(pin, Ok(config.pin_file.display().to_string()));
    let opened = {
        let config = config.clone();
        let open = move || {
            diagnose(&config)?;
            // It is looked at alone, whatever it stands by for.
            let opened = Hsm::open(vec![HsmConfig { standby_for: None, ..config }]);
            opened.map_err(|error| Diagnosis {
                what: error.to_string(),
                advice: "start the server, and see what its log says".to_owned(),
            })
        };
        tokio::task::spawn_blocking(open).await
    };
    let opened = opened.unwrap_or_else(|error| {
        Err(Diagnosis { what: error.to_string(), advice: "see the module's log".to_owned() })
    });
    let open = match opened {
        Ok(open) => open,
        Err(wrong) => {
            findings.wrong(hsm, wrong);
            return skip_keys("the token cannot be used");
        }
    };
    findings.add(hsm, open.health().await.map_err(|error| error.to_string()));
    if let Some(wrapping) = &config.wrapping {
        let what = format!("wrapping key {}", hex::encode(wrapping.key.as_bytes()));
        match wraps(&open, config, wrapping).await {
            Ok(text) => findings.add(what, Ok(text)),
            Err(wrong) => findings.wrong(what, wrong),
        }
    }
    for under in &ours.wrapped {
        let what = format!("{} keys wrapped by {}", under.keys, under.hsm);
        match unwraps(&open, under, ours.oldest.as_ref()).await {
            Ok(text) => of_keys.add(what, Ok(text)),
            Err(wrong) => of_keys.wrong(what, wrong),
        }
    }
    for key in &ours.keys {
        let what = match &config.standby_for {
            None => format!("key {}", key.label),
            Some(_) => format!("key {} in {name}", key.label),
        };
        match proof(&open, key, config.standby_for.as_ref()).await {
            Ok(text) => of_keys.add(what, Ok(text)),
            Err(wrong) => of_keys.wrong(what, wrong),
        }
    }
    for exception in &config.exceptions {
        let what = format!("exception {}", hex::encode(exception.cka_id.as_bytes()));
        match needed(&open, config, &ours.keys, exception).await {
            Ok(text) => of_keys.add(what, Ok(text)),
            Err(wrong) => of_keys.wrong(what, wrong),
        }
    }
    // A thread that is still inside the module when the process ends can crash there.
    let _ = tokio::task::spawn_blocking(move || drop(open)).await;
}

/// Whether a token's wrapping key is there and as it must be.
async fn wraps(
    hsm: &Hsm,
    config: &HsmConfig,
    wrapping: &WrappingConfig,
) -> Result<String, Diagnosis> {
    let checked = hsm.check_wrapping_key(&config.name).await;
    if checked.is_ok() {
        let place = KeyPlace { hsm: config.name.clone(), cka_id: wrapping.key.clone() };
        let told = hsm.describe_wrapping_key(&place).await.ok().flatten().unwrap_or_default();
        let needs = told.get(NEEDS_EXCEPTIONS).map_or("", String::as_str);
        let needs: Vec<_> = needs.split_whitespace().collect();
        let names = wrapping.exceptions.keys().filter(|name| !needs.contains(&name.as_str()));
        let unneeded: Vec<_> = names.cloned().collect();
        if !unneeded.is_empty() {
            return Err(Diagnosis {
                what: format!("it does not need {}", unneeded.join(", ")),
                advice: "take that out of `allows` of its `[[hsm.exception]]`: it would hide a change for the \
                         worse"
                    .to_owned(),
            });
        }
    }
    match checked {
        Ok(()) if wrapping.exceptions.is_empty() => Ok("wraps, unwraps, and does nothing else".to_owned()),
        Ok(()) => {
            let lacks = wrapping.exceptions.iter().map(|(name, why)| format!("{name}: {why}"));
            let lacks: Vec<_> = lacks.collect();
            Ok(format!("wraps and unwraps; by exception {}", lacks.join("; ")))
        }
        Err(error @ SignerError::KeyUnusable(_)) => Err(Diagnosis {
            what: error.to_string(),
            advice: "no wrapped key of this token can sign: put it back from the HSM's backup, or put \
                     `wrapping_key` right. What it lacks is allowed by `[[hsm.exception]]` only, with a \
                     reason"
                .to_owned(),
        }),
        Err(error) => Err(unusable(&error)),
    }
}

/// Whether the keys under a wrapping key can be used, and the oldest signs.
async fn unwraps(
    hsm: &Hsm,
    under: &Wrapped,
    oldest: Option<&OperatorKey>,
) -> Result<String, Diagnosis> {
    let id = hex::encode(under.under.as_bytes());
    if hsm.wrapping_key(&under.hsm).as_ref() != Some(&under.under) {
        return Err(Diagnosis {
            what: format!("they are under {id}, which is not this token's wrapping_key"),
            advice: "put `wrapping_key` of its `[[hsm]]` back: no other key unwraps them"
                .to_owned(),
        });
    }
    let wraps_it = |key: &&OperatorKey| matches!(&key.custody, Custody::Wrapped(wrapped) if wrapped.under == under.under);
    let Some(oldest) = oldest.filter(wraps_it) else {
        return Ok(format!("under {id}"));
    };
    hsm.enroll(oldest).await.map_err(|error| unusable(&error))?;
    Ok(format!("under {id}; the oldest, {:#x}, signs and verifies", oldest.address))
}

/// Whether a key is the one that was pinned, as it must be, and signs.
async fn proof(
    hsm: &Hsm,
    key: &OperatorKey,
    standby_for: Option<&HsmName>,
) -> Result<String, Diagnosis> {
    if key.custody == Custody::Token {
        let report = hsm.describe_key(&key.place()).await.map_err(|error| unusable(&error))?;
        let id = hex::encode(key.cka_id.as_bytes());
        let Some(report) = report else {
            if let Some(home) = standby_for {
                return Err(Diagnosis {
                    what: format!("the standby has no key with CKA_ID {id}"),
                    advice: format!(
                        "copy it from `{home}` by the HSM's own means; until then nothing signs with it \
                         while `{home}` is down"
                    ),
                });
            }
            return Err(Diagnosis {
                what: format!("the token has no key with CKA_ID {id}: it is missing"),
                advice: "look whether this is the right token, and put the key back from the HSM's backup; \
                         until then it signs nothing, and its account waits"
                    .to_owned(),
            });
        };
        judge(key, &report)?;
    }
    hsm.enroll(key).await.map_err(|error| unusable(&error))?;
    Ok(format!("{:#x} signs and verifies", key.address))
}

fn judge(key: &OperatorKey, report: &KeyReport) -> Result<(), Diagnosis> {
    if report.public_key != key.public_key {
        return Err(Diagnosis {
            what: format!(
                "its public key in the token is not the pinned one: there it is {:#x}, pinned is {:#x}",
                report.public_key.address(),
                key.address
            ),
            advice: "another key is in its place: find out who put it there, and put the right one back \
                     from the HSM's backup. Nothing is signed with the wrong one"
                .to_owned(),
        });
    }
    let refused = report.refused();
    if refused.is_empty() {
        return Ok(());
    }
    Err(Diagnosis {
        what: format!("its attributes are wrong: {}", report.tell(&refused)),
        advice: "it may have been copied, or could be used for more than signing: make a new key and move \
                 the funds to it; or say in `[[hsm.exception]]` why it may be used"
            .to_owned(),
    })
}

fn unusable(error: &SignerError) -> Diagnosis {
    let advice = match error {
        SignerError::KeyUnusable(_) => {
            "find out who changed the token; put the key back from the HSM's backup"
        }
        SignerError::WrongSignature => {
            "the device or its module is broken: stop using it, and ask its vendor"
        }
        _ => "look at the device, and at the module's log",
    };
    Diagnosis { what: error.to_string(), advice: advice.to_owned() }
}

/// Whether an exception is of a key, and of what is wrong with it.
async fn needed(
    hsm: &Hsm,
    config: &HsmConfig,
    keys: &[OperatorKey],
    exception: &KeyException,
) -> Result<String, Diagnosis> {
    let known = keys.iter().find(|key| key.cka_id == exception.cka_id);
    let Some(key) = known else {
        let advice = if is_there(hsm, config, &exception.cka_id).await {
            "import the key with `claviger key import`, or take the exception out"
        } else {
            "take it out of the configuration, or put its `cka_id` right"
        };
        let what = "it is of no key of the database".to_owned();
        return Err(Diagnosis { what, advice: advice.to_owned() });
    };
    let report = hsm.describe_key(&key.place()).await.ok().flatten();
    let unneeded = report.map(|report| report.unneeded()).unwrap_or_default();
    if unneeded.is_empty() {
        let allows = exception.names().join(", ");
        return Ok(format!("key {} may be {allows}: {}", key.label, exception.reason));
    }
    let names: Vec<_> = unneeded.iter().filter_map(|flag: &KeyFlag| flag.exception()).collect();
    Err(Diagnosis {
        what: format!("key {} does not need {}", key.label, names.join(", ")),
        advice: "take that out of `allows`: it would hide a change for the worse".to_owned(),
    })
}

async fn is_there(hsm: &Hsm, config: &HsmConfig, id: &CkaId) -> bool {
    let place = KeyPlace { hsm: config.name.clone(), cka_id: id.clone() };
    !matches!(hsm.describe_key(&place).await, Ok(None))
}
