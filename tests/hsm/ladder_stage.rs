//! What the tests of the recovery ladder share: a module that fails when it is told to, and what is seen of it.

use crate::softhsm::{Token, in_own_process_with, permit};
use crate::support::pkcs11_faults;
use crate::support::services::tool;
use alloy::primitives::keccak256;
use claviger::core::evm::message::message_bytes;
use claviger::core::id::HsmName;
use claviger::core::key::OperatorKey;
use claviger::hsm::{Hsm, is_signed_by};
use claviger::ports::signer::{HsmEvent, HsmNews, Signer, SignerError};
use std::path::Path;
use std::time::{Duration, Instant};

/// Nobody waits for so long in a test that goes well.
pub const LIMIT: Duration = Duration::from_secs(90);

/// A child process whose module fails when `set` says so.
pub fn with_faults<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Token) -> F) {
    let envs = |dir: &Path| {
        vec![
            ("SOFTHSM_MODULE", pkcs11_faults::module().to_path_buf()),
            ("PKCS11_FAULTS_MODULE", tool("SOFTHSM_MODULE")),
            ("PKCS11_FAULTS_CONTROL", dir.join("control")),
        ]
    };
    in_own_process_with(test, envs, body);
}

/// From now on these calls fail; see `tests/pkcs11-faults`.
pub fn set(token: &Token, lines: &str) {
    let new = token.dir().join("control.new");
    std::fs::write(&new, format!("{lines}\n# {:?}\n", Instant::now())).unwrap();
    std::fs::rename(new, token.dir().join("control")).unwrap();
}

/// The functions whose calls failed, or waited, or were told, one for each call.
pub fn faulty_calls(token: &Token) -> Vec<String> {
    let log = std::fs::read_to_string(token.dir().join("control.log")).unwrap_or_default();
    assert!(!log.contains("OVERLAP"), "the module was finalised during a call");
    log.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn signs(hsm: &Hsm, key: &OperatorKey, text: &str) -> Result<(), SignerError> {
    let signature = hsm.sign(permit(key, text)).await?;
    assert!(is_signed_by(&keccak256(message_bytes(text)), &signature, &key.public_key));
    Ok(())
}

pub fn is_up(hsm: &Hsm, name: &str) -> bool {
    hsm.is_up(&HsmName::new(name)).is_ok()
}

pub fn news(hsm: &Hsm) -> Vec<&'static str> {
    let name = |event: &HsmEvent| match event.news {
        HsmNews::Down { .. } => "down",
        HsmNews::Up { .. } => "up",
        HsmNews::WrongSignature { .. } => "wrong",
    };
    hsm.events().iter().map(name).collect()
}
