//! `claviger policy check DIR`

use crate::cli::{Failure, load, print};
use serde_json::json;
use std::path::Path;

/// Loads a bundle, which runs its cases, and prints what it grants.
///
/// # Errors
/// When it does not load.
pub fn check(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let bundle = load::bundle(dir)?;
    if as_json {
        let grants: Vec<_> = bundle.grants().into_iter().map(|grant| json!(grant)).collect();
        print::json(&json!({
            "version": bundle.version(),
            "hash": format!("{:#x}", bundle.hash()),
            "cases": bundle.cases().len(),
            "grants": grants,
        }));
        return Ok(());
    }
    print::line(&format!("bundle {} {:#x}", bundle.version(), bundle.hash()));
    print::line(&format!("{} case(s) pass", bundle.cases().len()));
    let mut rows =
        vec![["GRANT", "ACTION", "PRINCIPALS", "SIGNERS", "EXPIRES"].map(str::to_owned).to_vec()];
    rows.extend(bundle.grants().into_iter().map(|grant| {
        vec![
            grant.id,
            grant.action.to_owned(),
            grant.principals.join(","),
            grant.signers.join(","),
            grant.expires,
        ]
    }));
    print::table(&rows);
    Ok(())
}
