//! The PKCS#11 signer: dedicated threads, bounded queue, pinned keys, every signature verified.
//!
//! - `module` loads the module, finds the token, holds the login.
//! - `worker` is an HSM thread: jobs, and the first rungs of the recovery ladder.
//! - `keyring` knows which keys may sign and where they are; `object` reads and makes them.
//! - `point` and `finish` take apart what comes out of the module, and believe none of it.
//! - `token` initialises a new token; `pin` reads PINs; `watch` sees a stuck call.
//!
//! No private key and no PIN is ever in an error, a log line or a `Debug` text here.

mod fault;
mod finish;
mod keyring;
mod module;
mod object;
mod pin;
mod point;
mod token;
mod watch;
mod worker;

pub use finish::is_signed_by;
pub use token::init_token;
pub use watch::Activity;

use crate::core::key::{CkaId, OperatorKey, PublicKey};
use crate::core::permit::{Permit, RawSignature};
use crate::hsm::fault::unavailable;
use crate::hsm::module::{Login, Module};
use crate::hsm::object::enumerate;
use crate::hsm::pin::read_pin;
use crate::hsm::watch::{SLOW, STUCK, Watch};
use crate::hsm::worker::{Answer, Job, Shared, Worker};
use crate::ports::signer::{Signer, SignerError};
use async_trait::async_trait;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a caller waits for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long dropping an [`Hsm`] waits for its threads.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// Where the token is, and how much is asked of it at once.
#[derive(Clone, Debug)]
pub struct HsmConfig {
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
}

impl HsmConfig {
    /// Two sessions and a queue of 64.
    #[must_use]
    pub fn new(
        module: impl Into<PathBuf>,
        token_label: impl Into<String>,
        pin_file: impl Into<PathBuf>,
    ) -> Self {
        Self {
            module: module.into(),
            token_label: token_label.into(),
            pin_file: pin_file.into(),
            sessions: 2,
            queue: 64,
        }
    }
}

/// The HSM. One per process and module.
///
/// Dropping it takes no more work, does what was taken, closes the sessions and finalises the module,
/// and waits for that (five seconds at most): a process that exits while a thread is still inside the
/// module can crash there. [`Self::close`] says whether it was enough.
pub struct Hsm {
    /// `None` once it has ended.
    queue: Option<Sender<Job>>,
    watch: Arc<Watch>,
    ended: Receiver<Infallible>,
    threads: Vec<JoinHandle<()>>,
}

impl Hsm {
    /// Loads the module, logs in once, finds all keys once, starts the threads. Blocks. No key may
    /// sign yet: each is to be enrolled.
    ///
    /// # Errors
    /// When the PIN file or the settings are not as [`HsmConfig`] says, or the module, the token or
    /// the login is not there. After a wrong PIN there is no second try.
    pub fn open(config: HsmConfig) -> Result<Self, SignerError> {
        if !(1..=64).contains(&config.sessions) || !(1..=65_536).contains(&config.queue) {
            let why = "sessions must be 1 to 64 and queue 1 to 65536";
            return Err(SignerError::Unavailable(why.to_owned()));
        }
        let login = Login::new(read_pin(&config.pin_file)?);
        let module = Module::start(&config.module)?;
        let slot = module.slot_of(&config.token_label)?;
        let shared = Arc::new(Shared::new(module, slot, login, config.sessions));
        let told = |error| unavailable(&error);
        let first = shared.module.open(slot).map_err(told)?;
        shared.login.ensure(&shared.module, slot, first.get())?;
        shared.keyring.replace(enumerate(first.get()).map_err(told)?);
        let mut sessions = vec![first];
        for _ in 1..config.sessions {
            sessions.push(shared.module.open(slot).map_err(told)?);
        }
        let (queue, jobs) = bounded(config.queue);
        let (running, ended) = bounded(1);
        let mut threads = Vec::with_capacity(config.sessions);
        for (index, session) in sessions.into_iter().enumerate() {
            let worker = Worker::new(session, Arc::clone(&shared), index, running.clone());
            let jobs = jobs.clone();
            let thread = std::thread::Builder::new()
                .name(format!("hsm-{index}"))
                .spawn(move || worker.run(&jobs))
                .map_err(|error| SignerError::Unavailable(format!("no HSM thread: {error}")))?;
            threads.push(thread);
        }
        Ok(Self { queue: Some(queue), watch: Arc::clone(&shared.watch), ended, threads })
    }

    /// What each HSM thread is doing. A call into a module cannot be cancelled; one that hangs is
    /// seen here.
    #[must_use]
    pub fn activities(&self) -> Vec<Activity> {
        self.watch.activities()
    }

    /// Ends as dropping does, within `limit`; answers whether that was enough. Blocks.
    #[must_use]
    pub fn close(mut self, limit: Duration) -> bool {
        self.end(limit)
    }

    fn end(&mut self, limit: Duration) -> bool {
        self.queue = None;
        let in_time = self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected);
        if in_time {
            // They have left the module for good; only what the system keeps per thread is left.
            for thread in self.threads.drain(..) {
                drop(thread.join());
            }
        }
        in_time
    }

    async fn ask<T: Send>(
        &self,
        job: impl FnOnce(Answer<T>) -> Job + Send,
    ) -> Result<T, SignerError> {
        if self.watch.all_busy_for(STUCK) {
            return Err(self.stuck());
        }
        let (answer, answered) = oneshot::channel();
        let Some(queue) = &self.queue else {
            return Err(self.stuck());
        };
        queue.try_send(job(answer)).map_err(|error| match error {
            TrySendError::Full(_) => SignerError::Overloaded,
            TrySendError::Disconnected(_) => self.stuck(),
        })?;
        let ended = || SignerError::Unavailable("the HSM thread ended".to_owned());
        // The call itself cannot be cancelled; its caller need not wait for ever. A signature that
        // comes too late is thrown away.
        match tokio::time::timeout(ANSWER_LIMIT, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(ended())),
            Err(_) => Err(SignerError::Unavailable("the HSM has not answered in time".to_owned())),
        }
    }

    fn stuck(&self) -> SignerError {
        let threads = self.activities();
        SignerError::Unavailable(format!("no HSM thread comes back: {threads:?}"))
    }
}

impl Drop for Hsm {
    fn drop(&mut self) {
        if self.queue.is_some() && !self.end(DROP_LIMIT) {
            tracing::error!(threads = ?self.activities(), "HSM threads did not end");
        }
    }
}

#[async_trait]
impl Signer for Hsm {
    async fn sign(&self, permit: Permit) -> Result<RawSignature, SignerError> {
        self.ask(|answer| Job::Sign(permit, answer)).await
    }

    async fn create_key(&self, cka_id: &CkaId, label: &str) -> Result<PublicKey, SignerError> {
        self.ask(|answer| Job::Create(cka_id.clone(), label.to_owned(), answer)).await
    }

    async fn find_key(&self, cka_id: &CkaId) -> Result<Option<PublicKey>, SignerError> {
        self.ask(|answer| Job::Find(cka_id.clone(), answer)).await
    }

    async fn enroll(&self, key: &OperatorKey) -> Result<(), SignerError> {
        self.ask(|answer| Job::Enroll(key.clone(), answer)).await
    }

    async fn health(&self) -> Result<String, SignerError> {
        if self.watch.all_busy_for(SLOW) {
            return Err(self.stuck());
        }
        let token = self.ask(Job::Health).await?;
        let waiting = self.queue.as_ref().map_or(0, Sender::len);
        let threads = self.activities();
        let gone = threads.iter().filter(|thread| **thread == Activity::Gone).count();
        let running = threads.len().saturating_sub(gone);
        Ok(format!("{token}; {running} of {} threads run, {waiting} jobs wait", threads.len()))
    }
}

/// A lock that a panic elsewhere does not take away: nothing here is left half done under one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
