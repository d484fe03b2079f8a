//! `claviger init`: a working development set-up, in one new folder.

use crate::{audit, softhsm};
use claviger::cli::args::{InitArgs, InitTokenArgs};
use claviger::cli::{Failure, load, print};
use claviger::core::key::CkaId;
use claviger::ports::clock::Entropy;
use claviger::ports::signer::SignerError;
use claviger::store::{self, OpenMode};
use claviger::system::SystemEntropy;
use claviger::{hsm, issuer};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const TOKEN_LABEL: &str = "claviger";
/// The `CKA_ID` of the wrapping key: any that no other key has.
const WRAPPING_KEY: &str = "77726170";

/// What SoftHSM's wrapping keys lack; the configuration below has the exceptions.
const KNOWN_TO_LACK: [&str; 1] = ["not-trusted"];

/// Where Debian and others put SoftHSM.
const MODULES: [&str; 6] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// The example bundle.
const BUNDLE: [(&str, &str); 6] = [
    ("bundle.toml", include_str!("../../../policies/payments/bundle.toml")),
    ("grants.toml", include_str!("../../../policies/payments/grants.toml")),
    ("book.toml", include_str!("../../../policies/payments/book.toml")),
    ("assets.toml", include_str!("../../../policies/payments/assets.toml")),
    ("cases.toml", include_str!("../../../policies/payments/cases.toml")),
    (
        "abi/PaymentProcessor.json",
        include_str!("../../../policies/payments/abi/PaymentProcessor.json"),
    ),
];

/// Makes everything, or says what is in the way. An existing set-up is refused.
///
/// # Errors
/// When the folder is not empty, or something cannot be made.
pub async fn run(args: &InitArgs) -> Result<(), Failure> {
    let dir = std::path::absolute(&args.dir).map_err(|e| Failure::of("--dir", e))?;
    let module = module(args.module.as_ref())?;
    make_dir(&dir)?;
    write(&dir, "claviger.toml", &config_text(args, &module), 0o600)?;
    for (name, text) in BUNDLE {
        write(&dir.join("policies"), name, text, 0o644)?;
    }
    issuer::create(&dir).map_err(|e| Failure::of("token issuer", e))?;
    make_token(&dir, &module)?;
    let url = args
        .store_url
        .clone()
        .unwrap_or_else(|| format!("sqlite:{}", dir.join("claviger.db").display()));
    store::open(&url, OpenMode::Create).await.map_err(|e| Failure::of("database", e))?;
    let file = dir.join("claviger.toml");
    let (config, _) = load::both(&file)?;
    audit::create_key(&config, &audit::random_origin())?;
    print::line(&format!("A development set-up is in {}.", dir.display()));
    print::line("The audit log's public key, for those who verify it, is audit.vkey.");
    print::line("The token in it is SoftHSM's: keys in files, for development only.");
    print::line("");
    print::line(&format!("  claviger serve --config {}", file.display()));
    Ok(())
}

fn module(given: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(module) = given {
        return Ok(module.clone());
    }
    MODULES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        Failure::new(
            "SoftHSM's module is not in its usual places; install softhsm2 or give --module",
        )
    })
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    let failed = |e| Failure::of(&dir.display().to_string(), e);
    if dir.exists() && fs::read_dir(dir).map_err(failed)?.next().is_some() {
        return Err(Failure::new(format!("{} is not empty; nothing was changed", dir.display())));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    fs::DirBuilder::new().mode(0o700).create(dir.join("tokens")).map_err(failed)
}

fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), Failure> {
    let path = dir.join(name);
    let failed = |e| Failure::of(&path.display().to_string(), e);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

/// The token is initialised by a child, because the module reads its environment once.
fn make_token(dir: &Path, module: &Path) -> Result<(), Failure> {
    let conf = dir.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n\
         slots.removable = false\n",
        dir.join("tokens").display()
    );
    write(dir, "softhsm2.conf", &text, 0o600)?;
    let pin = || hex::encode(SystemEntropy.bytes16());
    write(dir, "pin", &pin(), 0o600)?;
    write(dir, "so-pin", &pin(), 0o600)?;
    let program = std::env::current_exe().map_err(|e| Failure::of("own path", e))?;
    let made = Command::new(program)
        .env(softhsm::VARIABLE, &conf)
        .arg("init-token")
        .arg("--module")
        .arg(module)
        .args(["--label", TOKEN_LABEL])
        .arg("--so-pin-file")
        .arg(dir.join("so-pin"))
        .arg("--pin-file")
        .arg(dir.join("pin"))
        .args(["--wrapping-key", WRAPPING_KEY])
        .output()
        .map_err(|e| Failure::of("token", e))?;
    if made.status.success() {
        return Ok(());
    }
    Err(Failure::of("token", String::from_utf8_lossy(&made.stderr).trim()))
}

/// The child's part.
///
/// # Errors
/// When the module refuses.
pub fn token(args: &InitTokenArgs) -> Result<(), Failure> {
    let told = |error: SignerError| Failure::new(error.to_string());
    hsm::init_token(&args.module, &args.label, &args.so_pin_file, &args.pin_file).map_err(told)?;
    let Some(id) = &args.wrapping_key else {
        return Ok(());
    };
    let id = hex::decode(id).map_err(|e| Failure::of("--wrapping-key", e))?;
    let (id, label) = (CkaId::new(id), "claviger wrapping key");
    let made = hsm::make_wrapping_key(&args.module, &args.label, &args.pin_file, &id, label);
    let lacks: Vec<_> = made
        .map_err(told)?
        .lacks
        .into_iter()
        .filter(|name| !KNOWN_TO_LACK.contains(name))
        .collect();
    if lacks.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "this module's wrapping keys are {}, which no SoftHSM that is known to us makes; use another version",
        lacks.join(", ")
    )))
}

fn config_text(args: &InitArgs, module: &Path) -> String {
    let store = args.store_url.as_deref().unwrap_or("sqlite:claviger.db");
    format!(
        r#"# A development set-up: SoftHSM, a token issuer with its private key beside it, a local chain.
# Relative paths are relative to this file. CLAVIGER__SECTION__KEY overrides a value.

[server]
listen = "{listen}"
admin_listen = "{admin}"
metrics_listen = "{metrics}"
# tls = {{ cert_file = "server.pem", key_file = "server.key" }}

[store]
url = "{store}"

[hsm]
module = "{module}"
token_label = "{TOKEN_LABEL}"
pin_file = "pin"
sessions = 2
softhsm_conf = "softhsm2.conf"
# Keys may be kept wrapped in the database: `claviger key create --custody wrapped`.
wrapping_key = "{WRAPPING_KEY}"

[[hsm.exception]]
cka_id = "{WRAPPING_KEY}"
allows = ["not-trusted"]
reason = "SoftHSM's officer can make trusted keys only where everybody can use them"

[[auth.issuer]]
iss = "claviger-dev"
audience = "claviger"
jwks = "jwks.json"
algorithms = ["EdDSA"]

# The private half of the issuer above, for `claviger token issue`. Never in production.
[auth.development]
iss = "claviger-dev"
key_file = "issuer.p8"

[[chain]]
name = "local"
chain_id = {chain_id}
rpc = ["{rpc}"]
finality = "finalized"
resend_after = "30s"
rebroadcast_after = "10s"
poll_every = "1s"
max_fee_gwei = "150"
max_tip_gwei = "5"

[policies]
dir = "policies"

[[group]]
name = "payments"

# The log's public key, for those who verify it, is beside its key: audit.vkey.
[audit]
sequence_every = "100ms"
key_file = "audit.key"
checkpoint_every = "1s"
"#,
        listen = args.listen,
        admin = args.admin_listen,
        metrics = args.metrics_listen,
        module = module.display(),
        chain_id = args.chain_id,
        rpc = args.rpc,
    )
}
