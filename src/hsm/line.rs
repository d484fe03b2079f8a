//! One token with its queue and its threads.

use crate::core::id::HsmName;
use crate::core::key::CkaId;
use crate::hsm::HsmConfig;
use crate::hsm::fault::unavailable;
use crate::hsm::module::{Login, Module};
use crate::hsm::object::enumerate;
use crate::hsm::watch::{Activity, SLOW, STUCK, Watch};
use crate::hsm::worker::{Answer, Job, Shared, Worker};
use crate::hsm::wrapping::Wrapping;
use crate::ports::signer::SignerError;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use secrecy::SecretString;
use std::convert::Infallible;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a caller waits for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long dropping an [`Hsm`] waits for its threads.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// The threads of one token, and the queue before them.
///
/// Dropping it takes no more work, does what was taken, closes the sessions, and waits for that (five seconds
/// at most). [`Self::close`] says whether it was enough.
pub(super) struct Line {
    name: HsmName,
    wrapping_key: Option<CkaId>,
    /// `None` once it has ended.
    queue: Option<Sender<Job>>,
    watch: Arc<Watch>,
    ended: Receiver<Infallible>,
    threads: Vec<JoinHandle<()>>,
}

impl Line {
    /// Logs in once, finds all keys once, starts the threads. Blocks. No key may sign yet: each is to be
    /// enrolled.
    ///
    /// # Errors
    /// When the token or the login is not there. After a wrong PIN there is no second try.
    pub(super) fn open(
        config: &HsmConfig,
        module: Arc<Module>,
        pin: SecretString,
    ) -> Result<Self, SignerError> {
        let login = Login::new(pin);
        let slot = module.slot_of(&config.token_label)?;
        let exceptions = config.exceptions.clone();
        let mut shared = Shared::new(module, slot, login, config.sessions, exceptions);
        shared.wrapping = Wrapping::new(config.wrapping.clone());
        shared.wrapped_cache = config.wrapped_cache;
        let shared = Arc::new(shared);
        let told = |error| unavailable(&error);
        let first = shared.module.open(slot).map_err(told)?;
        shared.login.ensure(&shared.module, slot, first.get())?;
        shared.keyring.replace(enumerate(first.get()).map_err(told)?);
        if config.wrapping.is_some() {
            // Told in an alarm; the token's other keys serve.
            drop(shared.wrapping.usable(first.get(), shared.keyring.generation()));
        }
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
                .name(format!("hsm-{}-{index}", config.name))
                .spawn(move || worker.run(&jobs))
                .map_err(|error| SignerError::Unavailable(format!("no HSM thread: {error}")))?;
            threads.push(thread);
        }
        Ok(Self {
            name: config.name.clone(),
            wrapping_key: config.wrapping.as_ref().map(|wrapping| wrapping.key.clone()),
            queue: Some(queue),
            watch: Arc::clone(&shared.watch),
            ended,
            threads,
        })
    }

    /// What the configuration calls the token.
    pub(super) const fn name(&self) -> &HsmName {
        &self.name
    }

    /// The id of the key that wraps others, if one is configured.
    pub(super) fn wrapping_key(&self) -> Option<CkaId> {
        self.wrapping_key.clone()
    }

    /// What each HSM thread is doing. A call into a module cannot be cancelled; one that hangs is
    /// seen here.
    pub(super) fn activities(&self) -> Vec<Activity> {
        self.watch.activities()
    }

    /// Ends as dropping does, within `limit`; answers whether that was enough. Blocks.
    pub(super) fn close(mut self, limit: Duration) -> bool {
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

    pub(super) async fn ask<T: Send>(
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

    /// Whether the token answers now, in a sentence.
    pub(super) async fn health(&self) -> Result<String, SignerError> {
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

    fn stuck(&self) -> SignerError {
        let threads = self.activities();
        SignerError::Unavailable(format!("no HSM thread comes back: {threads:?}"))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.queue.is_some() && !self.end(DROP_LIMIT) {
            tracing::error!(threads = ?self.activities(), "HSM threads did not end");
        }
    }
}
