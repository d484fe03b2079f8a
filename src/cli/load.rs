//! Reads a configuration with its bundle and says everything that is wrong with them together.

use crate::cli::Failure;
use crate::config::file;
use crate::config::policies::read_dir;
use crate::config::server::ServerConfig;
use crate::core::policy::Bundle;
use crate::core::policy::bundle::TestReport;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A configuration with its paths made absolute.
///
/// # Errors
/// When it cannot be read, or has findings.
pub fn config(path: &Path) -> Result<ServerConfig, Failure> {
    let mut config: ServerConfig = file::read(path).map_err(|e| Failure::new(e.to_string()))?;
    let absolute = std::path::absolute(path).map_err(|e| Failure::of("config", e))?;
    config.resolve(absolute.parent().unwrap_or(Path::new("/")));
    let findings = config.findings();
    if findings.is_empty() {
        return Ok(config);
    }
    Err(Failure::new(format!("{}:\n  {}", path.display(), findings.join("\n  "))))
}

/// The files of the bundle in a folder.
///
/// # Errors
/// When they cannot be read.
pub fn files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    read_dir(dir).map_err(|e| Failure::of("policies", e))
}

/// The bundle in a folder.
///
/// # Errors
/// When it cannot be read or does not load.
pub fn bundle(dir: &Path) -> Result<Bundle, Failure> {
    let files = files(dir)?;
    Bundle::load(&files).map_err(|e| Failure::new(format!("{}/{e}", dir.display())))
}

/// What the test cases of the bundle in a folder come to.
///
/// # Errors
/// When it cannot be read, or does not load for another reason than its cases.
pub fn bundle_cases(dir: &Path) -> Result<TestReport, Failure> {
    let files = files(dir)?;
    Bundle::test(&files).map_err(|e| Failure::new(format!("{}/{e}", dir.display())))
}

/// What the bundle and the configuration say differently: issuers, groups, chains that one of them does not
/// know. Any of it stops the start.
#[must_use]
pub fn differences(config: &ServerConfig, bundle: &Bundle) -> Vec<String> {
    let mut found = Vec::new();
    let configured: BTreeSet<&str> =
        config.auth.issuers.iter().map(|issuer| issuer.iss.as_str()).collect();
    let vouched = bundle.issuers();
    for iss in configured.difference(&vouched) {
        found.push(format!("the bundle does not know the configured issuer `{iss}`"));
    }
    for iss in vouched.difference(&configured) {
        found.push(format!("the bundle's issuer `{iss}` is not configured"));
    }
    let groups: BTreeSet<&str> = config.groups.iter().map(|group| group.name.as_str()).collect();
    for group in bundle.groups() {
        if !groups.contains(group.as_str()) {
            found.push(format!("the bundle's group `{group}` is not configured"));
        }
    }
    let chains: BTreeSet<&str> = config.chains.iter().map(|chain| chain.name.as_str()).collect();
    for chain in bundle.chains() {
        if !chains.contains(chain.as_str()) {
            found.push(format!("the bundle's chain `{chain}` is not configured"));
        }
    }
    found
}

/// Configuration and bundle, agreeing with each other.
///
/// # Errors
/// When they do not.
pub fn both(path: &Path) -> Result<(ServerConfig, Bundle), Failure> {
    let config = config(path)?;
    let bundle = bundle(&config.policies.dir)?;
    let differences = differences(&config, &bundle);
    if differences.is_empty() {
        return Ok((config, bundle));
    }
    Err(Failure::new(differences.join("\n")))
}
