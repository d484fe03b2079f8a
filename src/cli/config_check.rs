//! `claviger config check FILE`

use crate::cli::{Failure, load, print};
use std::path::Path;

/// Reads the configuration and its bundle, and says that they are fine.
///
/// # Errors
/// When they are not.
pub fn run(file: &Path) -> Result<(), Failure> {
    let (config, bundle) = load::both(file)?;
    print::line(&format!(
        "ok: {} chain(s), {} issuer(s), {} group(s); bundle {} ({:#x})",
        config.chains.len(),
        config.auth.issuers.len(),
        config.groups.len(),
        bundle.version(),
        bundle.hash(),
    ));
    Ok(())
}
