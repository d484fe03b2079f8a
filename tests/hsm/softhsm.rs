//! A SoftHSM token of one's own, in a process of one's own.

#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use alloy::primitives::keccak256;
use claviger::core::evm::message::message_bytes;
use claviger::core::id::{HsmName, KeyId, RequestId};
use claviger::core::key::{CkaId, Custody, KeyPlace, KeyState, NonceMode, OperatorKey, PublicKey};
use claviger::core::permit::{DecisionRecord, PayloadKind, Permit};
use claviger::core::time::Timestamp;
use claviger::hsm::{Hsm, HsmConfig, MadeWrappingKey, init_token, make_wrapping_key};
use claviger::ports::signer::{Signer, SignerError};
use cryptoki::context::Pkcs11;
use cryptoki::session::Session;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A test that hangs is ended, and told.
const LIMIT: Duration = Duration::from_secs(400);
const MARK: &str = "CLAVIGER_TEST_PROCESS";
const PIN: &str = "user-4711";
pub const SO_PIN: &str = "officer-4711";
pub const LABEL: &str = "claviger test";

/// Where the module is: `SOFTHSM_MODULE`, or where Debian puts it.
fn module() -> PathBuf {
    let debian =
        ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"];
    std::env::var_os("SOFTHSM_MODULE")
        .map(PathBuf::from)
        .into_iter()
        .chain(debian.map(PathBuf::from))
        .find(|path| path.exists())
        .expect("SoftHSM is not installed (Debian: softhsm2), and SOFTHSM_MODULE names no file")
}

/// Runs `body` in a child process. The module takes its token directory from an environment variable,
/// which a process cannot safely set for itself, and it must start afresh anyway.
pub fn in_own_process<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Token) -> F) {
    in_own_process_with(test, |_| Vec::new(), body);
}

/// As [`in_own_process`], with more in the child's environment, made from its folder.
pub fn in_own_process_with<F: Future<Output = ()>>(
    test: &str,
    envs: impl FnOnce(&Path) -> Vec<(&'static str, PathBuf)>,
    body: impl FnOnce(Token) -> F,
) {
    if std::env::var(MARK).is_ok_and(|mark| mark == test) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body(Token::new()));
    }
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let conf = dir.path().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    fs::write(&conf, text).unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .env("SOFTHSM2_CONF", &conf)
        .envs(envs(dir.path()))
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let limit = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let (out, err) = (text(&out), text(&err));
    assert!(status.is_some(), "{test} does not end:\n{out}\n{err}");
    println!("{out}");
    assert!(
        status.is_some_and(|it| it.success()) && out.contains("1 passed"),
        "{test} failed:\n{out}\n{err}"
    );
}

/// A fresh token and its PIN file.
pub struct Token {
    dir: PathBuf,
    pub pin_file: PathBuf,
    metrics: PrometheusHandle,
}

impl Token {
    fn new() -> Self {
        let conf = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").unwrap());
        let dir = conf.parent().unwrap().to_owned();
        let metrics = PrometheusBuilder::new().install_recorder().unwrap();
        let pin_file = secret_file(&dir, "pin", PIN);
        let token = Self { dir, pin_file, metrics };
        token.init(LABEL).unwrap();
        token
    }

    pub fn init(&self, label: &str) -> Result<(), SignerError> {
        let so_pin_file = secret_file(&self.dir, "so-pin", SO_PIN);
        init_token(&module(), label, &so_pin_file, &self.pin_file)
    }

    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        secret_file(&self.dir, name, content)
    }

    /// The folder of all that is this test's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> HsmConfig {
        HsmConfig::new(module(), LABEL, &self.pin_file)
    }

    /// Makes a wrapping key with this id.
    #[allow(dead_code, reason = "for the tests of wrapped keys")]
    pub fn wrapping_key(&self, id: &CkaId) -> MadeWrappingKey {
        make_wrapping_key(&module(), LABEL, &self.pin_file, id, "wrapping").unwrap()
    }

    pub fn open(&self, sessions: usize, queue: usize) -> Hsm {
        Hsm::open(vec![HsmConfig { sessions, queue, ..self.config() }]).unwrap()
    }

    /// The value of a counter or gauge; 0 if it was never touched.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|read| read.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The whole exposition.
    pub fn metrics(&self) -> String {
        self.metrics.render()
    }
}

fn secret_file(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("{content}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The same module in the same process, beside the server's back: what another tool, or a fault, does
/// to the application's state in the module.
pub struct Outsider(pub Pkcs11);

impl Outsider {
    pub fn new() -> Self {
        Self(Pkcs11::new(module()).unwrap())
    }

    pub fn session(&self) -> Session {
        self.session_of(LABEL)
    }

    pub fn session_of(&self, label: &str) -> Session {
        let slots = self.0.get_slots_with_initialized_token().unwrap();
        let ours =
            |slot: &cryptoki::slot::Slot| self.0.get_token_info(*slot).unwrap().label() == label;
        self.0.open_rw_session(slots.into_iter().find(ours).unwrap()).unwrap()
    }

    pub fn change_pin(session: &Session) {
        session.set_pin(&PIN.to_owned().into(), &"another-4711".to_owned().into()).unwrap();
    }
}

/// Creates and enrolls a key.
pub async fn new_key(hsm: &Hsm, number: u8) -> OperatorKey {
    let cka_id = CkaId::new(vec![number; 16]);
    let public_key = hsm.create_key(&place(&cka_id), &format!("key {number}")).await.unwrap();
    let key = operator_key(cka_id, number, public_key);
    hsm.enroll(&key).await.unwrap();
    key
}

/// Where a key of the one token is.
pub fn place(cka_id: &CkaId) -> KeyPlace {
    KeyPlace { hsm: HsmName::default(), cka_id: cka_id.clone() }
}

/// A key as the database would pin it.
pub fn operator_key(cka_id: CkaId, number: u8, public_key: PublicKey) -> OperatorKey {
    OperatorKey {
        id: KeyId::new(Uuid::from_u128(u128::from(number))),
        hsm: HsmName::default(),
        cka_id,
        custody: Custody::Token,
        label: format!("key {number}"),
        group: None,
        mode: NonceMode::Managed,
        public_key,
        address: public_key.address(),
        state: KeyState::Active,
        created_at: Timestamp::from_millis(0),
    }
}

/// A permit for a message that nobody else signs.
pub fn permit(key: &OperatorKey, text: &str) -> Permit {
    let bytes = message_bytes(text);
    Permit::mint(DecisionRecord {
        request: RequestId::new(Uuid::from_u128(1)),
        attempt: 1,
        key: key.id,
        public_key: key.public_key,
        hsm: key.hsm.clone(),
        custody: key.custody.clone(),
        kind: PayloadKind::Message,
        digest: keccak256(&bytes),
        bytes,
    })
    .unwrap()
}
