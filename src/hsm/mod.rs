//! The PKCS#11 signer: dedicated threads, bounded queue, pinned keys, every signature verified.
//!
//! - `line` is one token: its queue and its threads.
//! - `module` loads the module, finds the token, holds the login.
//! - `worker` is an HSM thread: jobs, and the first rungs of the recovery ladder.
//! - `keyring` knows which keys may sign and where they are; `object` reads and makes them.
//! - `point` and `finish` take apart what comes out of the module, and believe none of it.
//! - `diagnose` says what is wrong with a set-up, for `doctor`.
//! - `wrapping` makes and checks the key that wraps others; `unwrapped` makes, wraps, unwraps and uses these.
//! - `token` initialises a new token; `pin` reads PINs; `watch` sees a stuck call.
//!
//! No private key and no PIN is ever in an error, a log line or a `Debug` text here.

mod diagnose;
mod fault;
mod finish;
mod keyring;
mod line;
mod module;
mod object;
mod pin;
mod point;
mod token;
mod unwrapped;
mod watch;
mod worker;
mod wrapping;

pub use diagnose::{Diagnosis, diagnose, diagnose_pin_file};
pub use finish::is_signed_by;
pub use token::init_token;
pub use watch::Activity;
pub use wrapping::{
    Exceptions, MAY_BE_EXCEPTED, MadeWrappingKey, WrappingConfig, make_wrapping_key,
};

use crate::core::id::{HsmName, KeyId};
use crate::core::key::{CkaId, Custody, KeyPlace, OperatorKey, PublicKey, WrappedKey};
use crate::core::key_report::{KeyException, KeyReport, TokenReport};
use crate::core::permit::{Permit, RawSignature};
use crate::hsm::line::Line;
use crate::hsm::module::Module;
use crate::hsm::pin::read_pin;
use crate::hsm::worker::Job;
use crate::ports::signer::{Signer, SignerError};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// Where the token is, and how much is asked of it at once.
#[derive(Clone, Debug)]
pub struct HsmConfig {
    /// What the configuration calls this token.
    pub name: HsmName,
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// The label of the one token to use.
    pub token_label: String,
    /// A file with the user's PIN, one trailing newline allowed, that group and others cannot use.
    pub pin_file: PathBuf,
    /// How many HSM threads, each with a session of its own; 1 to 64.
    pub sessions: usize,
    /// How many jobs may wait; 1 to 65,536. Beyond that callers are told to come again.
    pub queue: usize,
    /// Keys whose attributes may be otherwise than they should be.
    pub exceptions: Vec<KeyException>,
    /// The key that wraps others. Without one, the token has no wrapped keys.
    pub wrapping: Option<WrappingConfig>,
    /// How many unwrapped keys each session keeps; 0 to 65,536. Beyond that, the one that was not used for
    /// longest is destroyed.
    pub wrapped_cache: usize,
}

impl HsmConfig {
    /// Named `default`, with two sessions and a queue of 64.
    #[must_use]
    pub fn new(
        module: impl Into<PathBuf>,
        token_label: impl Into<String>,
        pin_file: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: HsmName::default(),
            module: module.into(),
            token_label: token_label.into(),
            pin_file: pin_file.into(),
            sessions: 2,
            queue: 64,
            exceptions: Vec::new(),
            wrapping: None,
            wrapped_cache: 64,
        }
    }
}

/// The HSMs: one token or several, of one module or several. One per process.
///
/// Dropping it takes no more work, does what was taken, closes the sessions and finalises the modules,
/// and waits for that (five seconds for each token at most): a process that exits while a thread is still
/// inside a module can crash there. [`Self::close`] says whether it was enough.
pub struct Hsm {
    lines: Vec<Line>,
    /// The line of each key that has been enrolled.
    homes: RwLock<HashMap<KeyId, usize>>,
}

impl Hsm {
    /// Loads each module once, logs in to each token once, finds all keys once, starts the threads. Blocks.
    /// No key may sign yet: each is to be enrolled.
    ///
    /// # Errors
    /// When there is no token or two have one name, when a PIN file or the settings are not as [`HsmConfig`]
    /// says, or a module, a token or a login is not there. After a wrong PIN there is no second try.
    pub fn open(configs: Vec<HsmConfig>) -> Result<Self, SignerError> {
        let refuse = |why: String| Err(SignerError::Unavailable(why));
        if configs.is_empty() {
            return refuse("no token is configured".to_owned());
        }
        let mut modules: HashMap<PathBuf, Arc<Module>> = HashMap::new();
        let mut lines: Vec<Line> = Vec::with_capacity(configs.len());
        for config in configs {
            if !(1..=64).contains(&config.sessions) || !(1..=65_536).contains(&config.queue) {
                return refuse("sessions must be 1 to 64 and queue 1 to 65536".to_owned());
            }
            if lines.iter().any(|line| *line.name() == config.name) {
                return refuse(format!("two tokens are named {}", config.name));
            }
            let pin = read_pin(&config.pin_file)?;
            let module = match modules.get(&config.module) {
                Some(module) => Arc::clone(module),
                None => Arc::new(Module::start(&config.module)?),
            };
            modules.insert(config.module.clone(), Arc::clone(&module));
            lines.push(Line::open(&config, module, pin)?);
        }
        Ok(Self { lines, homes: RwLock::default() })
    }

    /// What each thread is doing, token by token. A call into a module cannot be cancelled; one that hangs
    /// is seen here.
    #[must_use]
    pub fn activities(&self) -> Vec<Activity> {
        self.lines.iter().flat_map(Line::activities).collect()
    }

    /// Ends as dropping does, within `limit` for each token; answers whether that was enough. Blocks.
    #[must_use]
    pub fn close(self, limit: Duration) -> bool {
        let ended: Vec<bool> = self.lines.into_iter().map(|line| line.close(limit)).collect();
        ended.into_iter().all(|in_time| in_time)
    }

    /// Makes a wrapping key in a token. The login must be one that may write.
    ///
    /// # Errors
    /// When something has this id, or the token does not make it.
    pub async fn make_wrapping_key(
        &self,
        place: &KeyPlace,
        label: &str,
    ) -> Result<MadeWrappingKey, SignerError> {
        let (_, line) = self.line(&place.hsm)?;
        let (id, label) = (place.cka_id.clone(), label.to_owned());
        line.ask(|answer| Job::MakeWrapping(id, label, answer)).await
    }

    /// What the token tells of a wrapping key, by the standard's names: `true`, `false` or `unknown`. `None` if
    /// it has none with this id.
    ///
    /// # Errors
    /// When the token does not answer.
    pub async fn describe_wrapping_key(
        &self,
        place: &KeyPlace,
    ) -> Result<Option<BTreeMap<String, String>>, SignerError> {
        let (_, line) = self.line(&place.hsm)?;
        line.ask(|answer| Job::DescribeWrapping(place.cka_id.clone(), answer)).await
    }

    /// Whether the configured wrapping key of a token is there and as it must be, tried out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check_wrapping_key(&self, hsm: &HsmName) -> Result<(), SignerError> {
        let (_, line) = self.line(hsm)?;
        line.ask(Job::CheckWrapping).await
    }

    fn line(&self, hsm: &HsmName) -> Result<(usize, &Line), SignerError> {
        let found = self.lines.iter().enumerate().find(|(_, line)| line.name() == hsm);
        found.ok_or_else(|| SignerError::KeyUnusable(format!("no token is configured as `{hsm}`")))
    }

    fn home(&self, key: KeyId) -> Option<&Line> {
        let homes = self.homes.read().unwrap_or_else(PoisonError::into_inner);
        self.lines.get(*homes.get(&key)?)
    }
}

#[async_trait]
impl Signer for Hsm {
    fn hsms(&self) -> Vec<HsmName> {
        self.lines.iter().map(|line| line.name().clone()).collect()
    }

    fn wrapping_key(&self, hsm: &HsmName) -> Option<CkaId> {
        self.line(hsm).ok()?.1.wrapping_key()
    }

    async fn sign(&self, permit: Permit) -> Result<RawSignature, SignerError> {
        if matches!(permit.custody(), Custody::Wrapped(_)) {
            // It needs no enrolment: all that it takes is in the permit.
            let (_, line) = self.line(permit.hsm())?;
            return line.ask(|answer| Job::Sign(permit, answer)).await;
        }
        let not_enrolled = || SignerError::KeyUnusable(format!("{} is not enrolled", permit.key()));
        let line = self.home(permit.key()).ok_or_else(not_enrolled)?;
        line.ask(|answer| Job::Sign(permit, answer)).await
    }

    async fn create_key(&self, place: &KeyPlace, label: &str) -> Result<PublicKey, SignerError> {
        let (_, line) = self.line(&place.hsm)?;
        line.ask(|answer| Job::Create(place.cka_id.clone(), label.to_owned(), answer)).await
    }

    async fn create_wrapped(&self, hsm: &HsmName) -> Result<(PublicKey, WrappedKey), SignerError> {
        let (_, line) = self.line(hsm)?;
        line.ask(Job::CreateWrapped).await
    }

    async fn find_key(&self, place: &KeyPlace) -> Result<Option<PublicKey>, SignerError> {
        let (_, line) = self.line(&place.hsm)?;
        line.ask(|answer| Job::Find(place.cka_id.clone(), answer)).await
    }

    async fn describe_key(&self, place: &KeyPlace) -> Result<Option<KeyReport>, SignerError> {
        let (_, line) = self.line(&place.hsm)?;
        line.ask(|answer| Job::Describe(place.cka_id.clone(), answer)).await
    }

    async fn describe_token(&self, hsm: &HsmName) -> Result<TokenReport, SignerError> {
        let (_, line) = self.line(hsm)?;
        line.ask(Job::Survey).await
    }

    async fn enroll(&self, key: &OperatorKey) -> Result<(), SignerError> {
        let (index, line) = self.line(&key.hsm)?;
        line.ask(|answer| Job::Enroll(key.clone(), answer)).await?;
        if matches!(key.custody, Custody::Wrapped(_)) {
            return Ok(());
        }
        let mut homes = self.homes.write().unwrap_or_else(PoisonError::into_inner);
        homes.insert(key.id, index);
        Ok(())
    }

    async fn health(&self) -> Result<String, SignerError> {
        let mut told = Vec::with_capacity(self.lines.len());
        for line in &self.lines {
            told.push(line.health().await?);
        }
        Ok(told.join("; "))
    }
}

/// A lock that a panic elsewhere does not take away: nothing here is left half done under one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
