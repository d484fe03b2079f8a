//! `claviger policy replay`: recorded decisions, judged by another bundle.

use crate::audit::reader;
use claviger::app::policies::replay::{CHUNK, Flip, Replayed, chunk, first_since};
use claviger::cli::args::ReplayArgs;
use claviger::cli::audit::Bar;
use claviger::cli::{Failure, load, print};
use claviger::core::time::Timestamp;
use claviger::ports::store::look;

/// Judges every recorded decision by the bundle in the folder and prints what would come out differently.
///
/// # Errors
/// When anything would, or it cannot be found out.
pub async fn replay(args: &ReplayArgs) -> Result<(), Failure> {
    let config = load::config(&args.config)?;
    let bundle = load::bundle(&args.dir)?;
    let since = match &args.from {
        None => None,
        Some(text) => Some(read_time(text)?),
    };
    let store = reader(&config).await?;
    let head = look(&*store, "log_head", |unit| Box::pin(async move { unit.log_head().await }));
    let size = head.await?.size;
    let first = match since {
        Some(since) => first_since(&*store, size, since).await?,
        None => 0,
    };
    let mut found = Replayed::default();
    let bar = Bar::leaves("replaying");
    let all = size.saturating_sub(first);
    let mut at = first;
    while at < size {
        let taken = chunk(&*store, &bundle, (at, CHUNK), since, &mut found).await?;
        if taken == 0 {
            break;
        }
        at = at.saturating_add(taken);
        bar.at(at.saturating_sub(first).min(all), all);
    }
    drop(bar);
    if args.json {
        print::json(&found.json(bundle.hash()));
    } else {
        tell(&found);
    }
    match found.flips.len() {
        0 => Ok(()),
        flips => {
            let judged = found.judged;
            Err(Failure::new(format!("{flips} of {judged} decision(s) would come out differently")))
        }
    }
}

/// RFC 3339, or a day.
fn read_time(text: &str) -> Result<Timestamp, Failure> {
    let whole = Timestamp::parse_rfc3339(text);
    let day = || Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z"));
    whole.or_else(day).ok_or_else(|| {
        Failure::new(format!("--from: `{text}` is neither a day nor a time, such as 2026-12-31"))
    })
}

fn tell(found: &Replayed) {
    if !found.flips.is_empty() {
        let head = ["LEAF", "AT", "REQUEST", "WHO", "WAS", "WOULD BE", "WHY"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(found.flips.iter().map(row));
        print::table(&rows);
    }
    print::line(&format!(
        "{} decision(s) judged again, {} would come out differently",
        found.judged,
        found.flips.len()
    ));
    if let Some(why) = &found.why_unreadable {
        let count = found.unreadable;
        print::note(&format!("{count} decision(s) could not be judged again; the first: {why}"));
    }
}

fn row(flip: &Flip) -> Vec<String> {
    let why = match flip.reasons.first() {
        Some(reason) => {
            let grant = reason.grant.as_ref().map_or_else(String::new, |id| format!("{id}: "));
            format!("{grant}{} expected {}, is {}", reason.field, reason.expected, reason.actual)
        }
        None => flip.grants.join(", "),
    };
    vec![
        flip.index.to_string(),
        flip.at.to_string(),
        flip.id.clone(),
        flip.sub.clone(),
        flip.was.name().to_owned(),
        flip.is.name().to_owned(),
        why,
    ]
}
