//! The use cases in this process, with a clock that stands still until it is moved.

use async_trait::async_trait;
use claviger::app::clock_watch::ClockWatch;
use claviger::app::key_scopes::KeyScopes;
use claviger::app::lease::Leases;
use claviger::app::tell::{self, Telling};
use claviger::app::{App, PolicyInForce};
use claviger::cli::load;
use claviger::core::id::{HolderId, HsmName};
use claviger::core::key::{CkaId, KeyPlace, OperatorKey, PublicKey, WrappedKey};
use claviger::core::key_report::{KeyReport, TokenReport};
use claviger::core::permit::{Permit, RawSignature};
use claviger::core::time::Timestamp;
use claviger::ports::bus::Sink;
use claviger::ports::clock::{Clock, Entropy};
use claviger::ports::signer::{HsmEvent, Signer, SignerError};
use claviger::ports::store::{End, KindFilter, NewEvent, Store, Subscription, unit};
use claviger::store::{self, OpenMode};
use claviger::system::SystemEntropy;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A signer that has no token: telling needs none.
struct NoSigner;

fn none<T>() -> Result<T, SignerError> {
    panic!("telling asks no token")
}

#[async_trait]
impl Signer for NoSigner {
    fn hsms(&self) -> Vec<HsmName> {
        Vec::new()
    }
    async fn sign(&self, _: Permit) -> Result<RawSignature, SignerError> {
        none()
    }
    async fn create_key(&self, _: &KeyPlace, _: &str) -> Result<PublicKey, SignerError> {
        none()
    }
    fn wrapping_key(&self, _: &HsmName) -> Option<CkaId> {
        None
    }
    async fn create_wrapped(&self, _: &HsmName) -> Result<(PublicKey, WrappedKey), SignerError> {
        none()
    }
    async fn find_key(&self, _: &KeyPlace) -> Result<Option<PublicKey>, SignerError> {
        none()
    }
    async fn describe_key(&self, _: &KeyPlace) -> Result<Option<KeyReport>, SignerError> {
        none()
    }
    async fn describe_token(&self, _: &HsmName) -> Result<TokenReport, SignerError> {
        none()
    }
    async fn enroll(&self, _: &OperatorKey) -> Result<(), SignerError> {
        none()
    }
    fn ready(&self, _: &OperatorKey) -> Result<(), SignerError> {
        none()
    }
    fn is_up(&self, _: &HsmName) -> Result<(), SignerError> {
        none()
    }
    fn events(&self) -> Vec<HsmEvent> {
        Vec::new()
    }
    fn last_events(&self) -> Vec<HsmEvent> {
        Vec::new()
    }
    fn events_recorded(&self, _: u64) {}
    async fn health(&self) -> Result<String, SignerError> {
        none()
    }
}

/// The use cases over a database of their own.
pub struct Still {
    pub app: Arc<App>,
    pub clock: Arc<TestClock>,
    pub dir: tempfile::TempDir,
}

impl Still {
    pub async fn new() -> Self {
        Self::over(|store| store).await
    }

    /// Over what a test makes of the database.
    pub async fn over(made: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("claviger.db").display());
        let clock = Arc::new(TestClock(AtomicI64::new(1_800_000_000_000)));
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/payments");
        let bundle = load::bundle(&policies).unwrap();
        let app = App {
            store: made(store::open(&url, OpenMode::Create).await.unwrap()),
            signer: Arc::new(NoSigner),
            clock: Arc::<TestClock>::clone(&clock),
            entropy: Arc::new(SystemEntropy),
            chains: BTreeMap::new(),
            groups: BTreeSet::new(),
            policy: Arc::new(PolicyInForce::new(Arc::new(bundle))),
            signing: Mutex::default(),
            turn: AtomicUsize::new(0),
            changes: tokio::sync::broadcast::Sender::new(16),
            leases: Leases::new(HolderId::new(SystemEntropy.uuid()), 15_000),
            clock_watch: ClockWatch::new(300_000),
            max_waiting: 100,
            crowded: Mutex::default(),
            key_scopes: KeyScopes::new(&[]),
            telling: Telling::new(16, CancellationToken::new()),
        };
        Self { app: Arc::new(app), clock, dir }
    }

    /// Something happened to a subject, and is placed for this sink.
    pub async fn happens(&self, sink: &dyn Sink, subject: &str, status: &str) {
        let event = NewEvent {
            id: SystemEntropy.uuid().to_string(),
            kind: format!("claviger.transaction.{status}"),
            subject: subject.to_owned(),
            data_json: format!("{{\"status\":\"{status}\"}}"),
            at: self.clock.now(),
        };
        let kinds = vec![KindFilter::parse("*").unwrap()];
        let wants = Subscription { consumer: sink.name().to_owned(), kinds };
        unit(&*self.app.store, "test", move |unit| {
            let (event, wants) = (event.clone(), wants.clone());
            Box::pin(async move {
                unit.set_consumer(&wants).await?;
                Ok(End::Commit(unit.append_event(&event).await?))
            })
        })
        .await
        .unwrap();
        assert_eq!(tell::place(&self.app).await.unwrap(), 1);
    }

    /// Tells all that is due now; how many were tried.
    pub async fn tell(&self, sink: &dyn Sink) -> usize {
        let mut tried = 0;
        while tell::step(&self.app, sink).await.unwrap() {
            tried += 1;
        }
        tried
    }
}
