//! The bundle: read, checked, hashed. A bundle that loads has no dangling name, no field that was
//! ignored, and no test case of its own that fails.

pub mod abi;
mod cases;
pub mod condition;
mod counters;
pub mod grant;
pub(super) mod grant_set;
pub mod guardrail;
pub(super) mod index;
mod read_call;
mod read_grant;
mod read_guardrail;
mod read_rule;
mod read_window;
pub mod registry;
pub mod summary;
mod syntax;
#[cfg(test)]
mod tests;

use crate::core::access::Role;
use crate::core::id::{ChainName, GroupName};
use abi::ContractAbi;
use alloy::primitives::B256;
pub use cases::CaseReport;
use grant::{Grant, SignerRef};
use guardrail::Guardrails;
use index::{GrantIndex, OfChain};
use registry::Registry;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use summary::GrantSummary;
use syntax::{AssetsFile, BookFile, BundleFile, CasesFile, GrantsFile, RawIssuer};

/// A checked policy bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    hash: B256,
    version: String,
    parent: Option<B256>,
    issuers: Vec<IssuerRule>,
    registry: Registry,
    guardrails: Guardrails,
    grants: Vec<Grant>,
    index: GrantIndex,
    cases: Vec<String>,
}

/// What one token issuer may vouch for.
#[derive(Clone, Debug)]
struct IssuerRule {
    iss: String,
    roles: BTreeSet<Role>,
    subjects: Vec<String>,
}

/// What the test cases of a bundle came to.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// SHA-256 over the bundle's files.
    pub hash: B256,
    /// What its authors call this version.
    pub version: String,
    /// Each case, in the order of the file; empty where there is none.
    pub cases: Vec<CaseReport>,
}

impl TestReport {
    /// How many cases do not hold.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.cases.iter().filter(|case| case.problem.is_some()).count()
    }
}

/// A bundle's files: path below its folder, and bytes.
type Files = BTreeMap<String, Vec<u8>>;

/// Why a bundle does not load: file, and what is wrong in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct BundleError {
    /// Which file of the bundle.
    pub file: String,
    /// What is wrong, with the line where known.
    pub problem: String,
}

/// A place in a file.
#[derive(Clone, Copy)]
struct At {
    file: &'static str,
    line: usize,
}

impl At {
    fn error(self, problem: impl Into<String>) -> BundleError {
        let problem = format!("line {}: {}", self.line, problem.into());
        BundleError { file: self.file.to_owned(), problem }
    }
}

impl Bundle {
    /// Reads a bundle from its files (path below the bundle's folder → bytes).
    ///
    /// # Errors
    /// When anything is missing, unknown, contradictory, or a test case fails.
    pub fn load(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, BundleError> {
        let (mut bundle, reports) = Self::read(files)?;
        if let Some(reports) = reports {
            if let Some(refusal) = cases::refusal(&reports) {
                return Err(refusal);
            }
            bundle.cases = reports.into_iter().map(|report| report.name).collect();
        }
        Ok(bundle)
    }

    /// Runs the test cases of a bundle and tells what each came to, also of a bundle that one of
    /// them keeps from loading.
    ///
    /// # Errors
    /// When the bundle cannot be read for another reason than its cases.
    pub fn test(files: &BTreeMap<String, Vec<u8>>) -> Result<TestReport, BundleError> {
        let (bundle, reports) = Self::read(files)?;
        let cases = reports.unwrap_or_default();
        Ok(TestReport { hash: bundle.hash, version: bundle.version, cases })
    }

    /// The bundle, and what its cases came to where it has the file. It may not decide anything
    /// before they all hold.
    fn read(files: &Files) -> Result<(Self, Option<Vec<CaseReport>>), BundleError> {
        refuse_unknown_files(files)?;
        let (head, head_text) = required::<BundleFile>(files, "bundle.toml")?;
        let book = optional::<BookFile>(files, "book.toml")?;
        let assets = optional::<AssetsFile>(files, "assets.toml")?;
        let abis = read_abis(files, &book.0)?;
        let registry = Registry::read((&book.0, book.1), (&assets.0, assets.1), &abis)?;
        let (version, parent, issuers) = read_head(&head)
            .map_err(|problem| BundleError { file: "bundle.toml".to_owned(), problem })?;
        let mut bundle = Self {
            hash: hash_files(files),
            version,
            parent,
            issuers,
            registry,
            guardrails: Guardrails::default(),
            grants: Vec::new(),
            index: GrantIndex::default(),
            cases: Vec::new(),
        };
        bundle.read_guardrails(&head, head_text)?;
        let (grants, text) = required::<GrantsFile>(files, "grants.toml")?;
        if grants.grant.is_empty() {
            return Err(At { file: "grants.toml", line: 1 }.error("there is no grant"));
        }
        for raw in &grants.grant {
            let at = At { file: "grants.toml", line: line_of(text, raw.span().start) };
            let grant = bundle
                .read_grant(raw.get_ref())
                .map_err(|problem| at.error(format!("grant `{}`: {problem}", raw.get_ref().id)))?;
            if bundle.grants.iter().any(|other| other.id == grant.id) {
                return Err(at.error(format!("grant `{}` is there twice", grant.id)));
            }
            if bundle.guardrail_ids().any(|other| *other == grant.id) {
                return Err(at.error(format!("grant `{}` has the id of a guardrail", grant.id)));
            }
            bundle.grants.push(grant);
        }
        bundle.grants.sort_by(|a, b| a.id.cmp(&b.id));
        bundle.index = GrantIndex::of(&bundle.grants);
        if !files.contains_key("cases.toml") {
            return Ok((bundle, None));
        }
        let (cases, text) = required::<CasesFile>(files, "cases.toml")?;
        let reports = cases::run(&bundle, &cases.case, text);
        Ok((bundle, Some(reports)))
    }

    /// SHA-256 over the bundle's files.
    #[must_use]
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// What its authors call this version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The hash of the bundle that it replaces, if it names one.
    #[must_use]
    pub const fn parent(&self) -> Option<B256> {
        self.parent
    }

    /// Whether this issuer may vouch that this subject has this role. Deny by default.
    #[must_use]
    pub fn issuer_allows(&self, iss: &str, role: Role, sub: &str) -> bool {
        self.issuers.iter().any(|rule| {
            rule.iss == iss
                && rule.roles.contains(&role)
                && rule.subjects.iter().any(|pattern| subject_matches(pattern, sub))
        })
    }

    /// Every issuer that is named, once.
    #[must_use]
    pub fn issuers(&self) -> BTreeSet<&str> {
        self.issuers.iter().map(|rule| rule.iss.as_str()).collect()
    }

    /// What issuers may vouch for: issuer, role, and a subject or a prefix of subjects that ends in `*`.
    pub fn vouchers(&self) -> impl Iterator<Item = (&str, Role, &str)> {
        self.issuers.iter().flat_map(|rule| {
            rule.roles.iter().flat_map(move |role| {
                rule.subjects.iter().map(move |sub| (rule.iss.as_str(), *role, sub.as_str()))
            })
        })
    }

    /// Every group that a grant names as signer.
    #[must_use]
    pub fn groups(&self) -> BTreeSet<&GroupName> {
        let signers = self.grants.iter().flat_map(|grant| &grant.signers);
        signers
            .filter_map(|signer| match signer {
                SignerRef::Group(group) => Some(group),
                SignerRef::Address(_) | SignerRef::Key(_) => None,
            })
            .collect()
    }

    /// Every chain that a grant, a guardrail, the book or the assets name.
    #[must_use]
    pub fn chains(&self) -> BTreeSet<&ChainName> {
        let grants = self.grants.iter().flat_map(Grant::chains);
        let denies = self.guardrails.denies.iter().flat_map(|deny| deny.chains.iter().flatten());
        let limits = self.guardrails.limits.iter().map(|limit| &limit.chain);
        grants.chain(denies).chain(limits).chain(self.registry.chains()).collect()
    }

    /// The grants for a listing, by id.
    #[must_use]
    pub fn grants(&self) -> Vec<GrantSummary> {
        self.grants.iter().map(GrantSummary::of).collect()
    }

    /// The names of the bundle's own test cases, all of which hold.
    #[must_use]
    pub fn cases(&self) -> &[String] {
        &self.cases
    }

    /// What names mean.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What no grant can allow, and who may change the bundle.
    #[must_use]
    pub const fn guardrails(&self) -> &Guardrails {
        &self.guardrails
    }

    /// Whether a grant lets the first use of a destination on a chain wait.
    #[must_use]
    pub fn asks_first_use(&self, chain: &ChainName) -> bool {
        self.index.chain(chain).is_some_and(OfChain::asks_first_use)
    }

    /// Which grants may concern a request.
    #[must_use]
    pub(super) const fn index(&self) -> &GrantIndex {
        &self.index
    }

    /// The grants as checked, by id.
    #[must_use]
    pub fn rules(&self) -> &[Grant] {
        &self.grants
    }
}

fn subject_matches(pattern: &str, sub: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => sub.starts_with(prefix),
        None => pattern == sub,
    }
}

fn refuse_unknown_files(files: &BTreeMap<String, Vec<u8>>) -> Result<(), BundleError> {
    const KNOWN: [&str; 5] =
        ["bundle.toml", "grants.toml", "book.toml", "assets.toml", "cases.toml"];
    for path in files.keys() {
        let abi = path.strip_prefix("abi/").is_some_and(|name| {
            !name.contains('/') && name.strip_suffix(".json").is_some_and(|stem| !stem.is_empty())
        });
        if !abi && !KNOWN.contains(&path.as_str()) {
            let problem = "not a file of a bundle".to_owned();
            return Err(BundleError { file: path.clone(), problem });
        }
    }
    Ok(())
}

/// SHA-256 over a fixed word and, in the order of paths, each path and content, every part with its
/// length before it: no two sets of files are hashed as the same bytes.
fn hash_files(files: &BTreeMap<String, Vec<u8>>) -> B256 {
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(bytes);
    };
    part(b"claviger/bundle/v1");
    for (path, bytes) in files {
        part(path.as_bytes());
        part(bytes);
    }
    B256::from_slice(&hasher.finalize())
}

/// 1-based line of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1)
}

fn parse<'a, T: DeserializeOwned>(
    file: &'static str,
    bytes: &'a [u8],
) -> Result<(T, &'a str), BundleError> {
    let text = std::str::from_utf8(bytes).map_err(|_| At { file, line: 1 }.error("not UTF-8"))?;
    let value = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        At { file, line }.error(error.message())
    })?;
    Ok((value, text))
}

fn required<'a, T: DeserializeOwned>(
    files: &'a BTreeMap<String, Vec<u8>>,
    file: &'static str,
) -> Result<(T, &'a str), BundleError> {
    match files.get(file) {
        Some(bytes) => parse(file, bytes),
        None => Err(BundleError { file: file.to_owned(), problem: "missing".to_owned() }),
    }
}

fn optional<'a, T: DeserializeOwned + Default>(
    files: &'a BTreeMap<String, Vec<u8>>,
    file: &'static str,
) -> Result<(T, &'a str), BundleError> {
    match files.get(file) {
        Some(bytes) => parse(file, bytes),
        None => Ok((T::default(), "")),
    }
}

fn read_abis(
    files: &BTreeMap<String, Vec<u8>>,
    book: &BookFile,
) -> Result<BTreeMap<String, ContractAbi>, BundleError> {
    let mut abis = BTreeMap::new();
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("abi/")) {
        let error = |problem| BundleError { file: path.clone(), problem };
        let used = |abi: &Option<String>| abi.as_deref() == Some(path.as_str());
        if !book.contract.iter().any(|contract| used(&contract.get_ref().abi)) {
            return Err(error("no contract of the book uses it".to_owned()));
        }
        abis.insert(path.clone(), ContractAbi::read(bytes).map_err(error)?);
    }
    Ok(abis)
}

type Head = (String, Option<B256>, Vec<IssuerRule>);

fn read_head(head: &BundleFile) -> Result<Head, String> {
    if head.schema != 1 {
        return Err(format!("schema {} is not supported by this version", head.schema));
    }
    if head.version.trim().is_empty() {
        return Err("version is empty".to_owned());
    }
    let parent = match &head.parent {
        None => None,
        Some(text) => {
            let bytes = condition::read_hex(&format!("0x{}", text.trim_start_matches("0x")))?;
            let bytes: [u8; 32] =
                bytes.try_into().map_err(|_| "parent is not a hash of 32 bytes".to_owned())?;
            Some(B256::from(bytes))
        }
    };
    let issuers = head.issuer.iter().map(read_issuer).collect::<Result<Vec<_>, _>>()?;
    if issuers.is_empty() {
        return Err("there is no issuer: nobody could ever call".to_owned());
    }
    Ok((head.version.clone(), parent, issuers))
}

fn read_issuer(raw: &RawIssuer) -> Result<IssuerRule, String> {
    let iss = raw.iss.clone();
    let wrong = |what: String| format!("issuer `{iss}`: {what}");
    if iss.trim().is_empty() {
        return Err("an issuer without `iss`".to_owned());
    }
    let roles = raw
        .roles
        .iter()
        .map(|role| role.parse::<Role>())
        .collect::<Result<BTreeSet<_>, _>>()
        .map_err(wrong)?;
    if roles.is_empty() || raw.subjects.is_empty() {
        return Err(wrong("roles and subjects must not be empty".to_owned()));
    }
    for pattern in &raw.subjects {
        let exact = pattern.strip_suffix('*').unwrap_or(pattern);
        if exact.is_empty() || exact.contains('*') {
            return Err(wrong(format!(
                "subject `{pattern}` must be exact, or a prefix that ends in `*`"
            )));
        }
    }
    Ok(IssuerRule { iss: raw.iss.clone(), roles, subjects: raw.subjects.clone() })
}

/// Names are 1 to 64 letters, digits and `._:-`, so that nothing looks alike or hides in a log.
fn check_name(field: &str, text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
        return Err(format!("{field}: `{text}` is not a name (1 to 64 of A-Z a-z 0-9 . _ : -)"));
    }
    Ok(text.to_owned())
}
