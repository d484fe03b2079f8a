//! No test signer in a release build, and no fail point: what is shipped can sign with a key of a chain only
//! through PKCS#11. Shown from the sources, from the packages, from the compiler and from the built program.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    dead_code,
    reason = "a test fails by panicking; it uses a part of the scan"
)]

#[path = "architecture/source.rs"]
mod source;

use source::{Source, files, line_of, places, root, shipped};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

fn told(found: &[String]) {
    assert!(found.is_empty(), "{} broken rule(s):\n{}", found.len(), found.join("\n"));
}

/// The files that implement the port, with their lines.
fn signers(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for at in places(&source.code, "Signer for") {
            found.push(format!("{}:{}", source.path, line_of(&source.code, at)));
        }
    }
    found
}

#[test]
fn only_the_hsm_room_implements_the_port_of_the_signer() {
    let found = signers(&shipped());
    assert!(
        matches!(found.as_slice(), [one] if one.starts_with("src/hsm/")),
        "a signer beside the HSM: {found:?}"
    );
    let soft = "impl crate::ports::signer::Signer for SoftSigner {}";
    assert_eq!(signers(&[Source::new("src/app/x.rs", soft)]), ["src/app/x.rs:1"]);
    let jwt = "impl JwtSigner for X {} #[cfg(test)] mod tests { impl Signer for Y {} }";
    assert!(signers(&[Source::new("src/http/x.rs", jwt)]).is_empty());
}

/// How a private key of secp256k1, or of a chain, is called in the libraries that are linked, and how they
/// sign with one. (Ed25519 is another matter: the audit log's key signs checkpoints, and no chain knows it.)
const SOFTWARE_SIGNING: &[&str] = &[
    // secp256k1
    "SecretKey",
    "Keypair",
    "sign_ecdsa",
    "sign_ecdsa_recoverable",
    "sign_schnorr",
    // aws-lc-rs
    "EcdsaKeyPair",
    "EcdsaSigningAlgorithm",
    "ECDSA_P256K1_SHA256_FIXED_SIGNING",
    "ECDSA_P256K1_SHA256_ASN1_SIGNING",
    "ECDSA_P256K1_SHA3_256_FIXED_SIGNING",
    "ECDSA_P256K1_SHA3_256_ASN1_SIGNING",
    // k256, alloy
    "k256",
    "sign_prehash",
    "sign_prehash_recoverable",
    "LocalSigner",
    "PrivateKeySigner",
    "ethers_core",
];

fn signing_words(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for word in SOFTWARE_SIGNING {
        for at in places(&source.code, word) {
            let line = line_of(&source.code, at);
            found.push(format!("{}:{line}: `{word}`: keys are in the HSM", source.path));
        }
    }
    found
}

#[test]
fn no_private_key_of_a_chain_is_named_outside_tests() {
    told(&shipped().iter().flat_map(signing_words).collect::<Vec<_>>());
    let soft = "use secp256k1::SecretKey;\nfn f() { SECP256K1.sign_ecdsa(m, &k) }";
    assert_eq!(signing_words(&Source::new("src/hsm/x.rs", soft)).len(), 2);
}

/// The packages that a build of these features links.
fn linked(features: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = ["tree", "--offline", "--locked", "-e", "normal", "--prefix", "none"];
    let run = Command::new(cargo).args(tree).args(features).current_dir(root()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let text = String::from_utf8(run.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn signs_in_software(package: &str) -> bool {
    let known = ["k256", "p256", "ecdsa", "elliptic-curve", "libsecp256k1", "bip32", "bip39"];
    let families = ["alloy-signer", "ethers", "coins-", "eth-keystore"];
    known.contains(&package) || families.iter().any(|family| package.starts_with(family))
}

#[test]
fn no_package_that_signs_for_a_chain_in_software_is_linked() {
    for features in [&["--no-default-features", "--features", "server"][..], &[]] {
        let packages = linked(features);
        assert!(packages.contains("cryptoki") && packages.contains("secp256k1"), "{packages:?}");
        let found: Vec<_> = packages.iter().filter(|name| signs_in_software(name)).collect();
        assert!(found.is_empty(), "cargo tree {features:?} -e normal: {found:?}");
    }
    assert!(signs_in_software("alloy-signer-local") && signs_in_software("k256"));
}

/// Symbols of libsecp256k1 in a program: `rustsecp256k1_v0_14_ecdsa_recover` and so on, without the version.
fn symbols_of_secp256k1(program: &[u8]) -> BTreeSet<String> {
    const PREFIX: &[u8] = b"rustsecp256k1_v";
    let starts = program.windows(PREFIX.len()).enumerate().filter(|(_, at)| *at == PREFIX);
    let name = |start: usize| {
        let rest = &program[start + PREFIX.len()..];
        let end = rest.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
        String::from_utf8_lossy(&rest[..end.unwrap_or(rest.len())]).into_owned()
    };
    let names = starts.map(|(start, _)| name(start));
    names
        .map(|name| name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_').to_owned())
        .collect()
}

/// What signs, and what a private key is needed for.
fn needs_a_private_key(symbol: &str) -> bool {
    ["ecdsa_sign", "schnorrsig_sign", "ec_seckey", "ec_pubkey_create", "keypair", "ecdh", "musig"]
        .iter()
        .any(|beginning| symbol.starts_with(beginning))
        && !symbol.starts_with("ecdsa_signature")
}

#[test]
fn the_built_program_has_the_code_that_recovers_keys_and_none_that_signs() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_claviger")).unwrap();
    let symbols = symbols_of_secp256k1(&program);
    // Each function of that library is linked only if something calls it.
    assert!(symbols.contains("ecdsa_recover"), "stripped, or another version: {symbols:?}");
    let found: Vec<_> = symbols.iter().filter(|name| needs_a_private_key(name)).collect();
    assert!(found.is_empty(), "the program can sign in software: {found:?}");
    let soft =
        symbols_of_secp256k1(b"\0rustsecp256k1_v0_14_ecdsa_sign\0rustsecp256k1_v0_14_ecmult\0");
    assert_eq!(soft.iter().filter(|name| needs_a_private_key(name)).count(), 1, "{soft:?}");
}

/// The sibling of the cargo that runs this test.
fn rustc() -> PathBuf {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from);
    let beside = cargo.and_then(|cargo| Some(cargo.parent()?.join("rustc")));
    beside.filter(|rustc| rustc.is_file()).unwrap_or_else(|| "rustc".into())
}

fn compiled(file: &str, debug_assertions: &str, more: &[&str]) -> Output {
    let out = tempfile::tempdir().unwrap();
    let mut rustc = Command::new(rustc());
    rustc.args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata"]);
    rustc
        .args(["--crate-name", "failpoint", "-C"])
        .arg(format!("debug-assertions={debug_assertions}"));
    rustc.args(more).arg("--out-dir").arg(out.path()).arg(root().join(file));
    rustc.output().unwrap()
}

#[test]
fn a_release_build_with_fail_points_does_not_compile() {
    let with = ["--cfg", "feature=\"failpoints\""];
    let file = "src/failpoint.rs";
    let refused = compiled(file, "off", &with);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("a release build must not have it"), "{why}");
    // With both it wants the library's dependencies, and with neither nothing at all.
    let tested = compiled(file, "on", &with);
    assert!(!String::from_utf8_lossy(&tested.stderr).contains("must not have it"));
    for debug_assertions in ["on", "off"] {
        let shipped = compiled(file, debug_assertions, &[]);
        assert!(shipped.status.success(), "{}", String::from_utf8_lossy(&shipped.stderr));
    }
    // The file is always a part of the library, and no profile for release has debug assertions.
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let before = lib.split_once("mod failpoint;").unwrap().0;
    assert!(!before.lines().next_back().unwrap_or_default().contains("cfg"), "mod failpoint");
    assert!(!before.trim_end_matches("pub ").trim_end().ends_with(']'), "mod failpoint has a cfg");
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("debug-assertions"), "Cargo.toml sets debug-assertions");
    let features: toml::Table = toml::from_str(&manifest).unwrap();
    let features: BTreeSet<&str> =
        features["features"].as_table().unwrap().keys().map(String::as_str).collect();
    assert_eq!(features, BTreeSet::from(["default", "failpoints", "server", "watcher"]));
    let default = &manifest[manifest.find("default = [").unwrap()..];
    assert!(!default.lines().next().unwrap().contains("failpoints"));
}

/// What code may depend on: which program it is in, or either (the core alone is built for fuzzing), and tests.
const CONDITIONS: &[&str] = &[
    "#[cfg(test)]",
    "#[cfg(feature = \"server\")]",
    "#[cfg(feature = \"watcher\")]",
    "#[cfg(any(feature = \"server\", feature = \"watcher\"))]",
];
/// And in one file only.
const OF_FAIL_POINTS: &[&str] = &[
    "#[cfg(feature = \"failpoints\")]",
    "#[cfg(all(feature = \"failpoints\", not(debug_assertions)))]",
];

/// Lines with another condition.
fn conditions(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (number, (line, code)) in source.text.lines().zip(source.code_and_tests.lines()).enumerate()
    {
        if places(code, "cfg").is_empty() && places(code, "cfg_attr").is_empty() {
            continue;
        }
        let line = line.trim();
        let known = CONDITIONS.contains(&line)
            || (source.path == "src/failpoint.rs" && OF_FAIL_POINTS.contains(&line));
        if !known {
            found.push(format!(
                "{}:{}: `{line}`: a build that is not tested",
                source.path,
                number + 1
            ));
        }
    }
    found
}

#[test]
fn nothing_is_compiled_in_tests_only_or_in_debug_builds_only_but_what_is_known() {
    told(&files("src").iter().flat_map(conditions).collect::<Vec<_>>());
    for text in
        ["#[cfg(debug_assertions)]", "if cfg!(debug_assertions) {", "#[cfg(feature = \"soft\")]"]
    {
        assert_eq!(conditions(&Source::new("src/hsm/x.rs", text)).len(), 1, "{text}");
    }
}
