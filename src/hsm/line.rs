//! One token with its queue and its threads.

use crate::core::id::{HsmName, KeyId};
use crate::core::key::{CkaId, Custody, OperatorKey};
use crate::hsm::HsmConfig;
use crate::hsm::errors::Class;
use crate::hsm::fault::{Fault, class, describe};
use crate::hsm::ladder::renew;
use crate::hsm::lock;
use crate::hsm::login::{Secret, may_be_the_pin};
use crate::hsm::module::Module;
use crate::hsm::news::News;
use crate::hsm::supervisor;
use crate::hsm::watch::{Activity, Found};
use crate::hsm::worker::{Answer, Job, Shared, Worker};
use crate::ports::signer::SignerError;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use std::convert::Infallible;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// A step of a probe may take so much longer than a job: it may start the module.
const PROBE_STEPS: u32 = 4;
/// How long dropping an [`crate::hsm::Hsm`] waits for its threads.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// The threads of one token, and the queue before them.
///
/// Dropping it takes no more work, does what was taken, closes the sessions, and waits for that (five seconds
/// at most). [`Self::close`] says whether it was enough.
pub(super) struct Line {
    pub(super) shared: Arc<Shared>,
    /// `None` once it has ended.
    queue: Option<Sender<Job>>,
    ended: Receiver<Infallible>,
    threads: Vec<JoinHandle<()>>,
}

/// What the watchdog needs to look after a line.
pub(super) struct Watched {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    running: Sender<Infallible>,
}

impl Line {
    /// Logs in once, finds all keys once, starts the threads. Blocks. No key may sign yet: each is to be
    /// enrolled. A token that is not there is down, and probed, if `may_be_down`.
    ///
    /// # Errors
    /// When the token is not there and must be, or refuses the PIN, or no thread can be started.
    pub(super) fn open(
        config: &HsmConfig,
        module: Arc<Module>,
        secret: Arc<Secret>,
        news: Arc<News>,
        may_be_down: bool,
    ) -> Result<(Self, Watched), SignerError> {
        let shared = Arc::new(Shared::new(config.clone(), module, secret, news));
        match begin(&shared) {
            Ok(()) => {}
            Err(Fault::Refused(error @ SignerError::Condemned(_))) => return Err(error),
            Err(Fault::Module(error)) if may_be_the_pin(&error) => {
                return Err(SignerError::Condemned(describe(&error)));
            }
            Err(fault) => {
                let module_gone =
                    matches!(&fault, Fault::Module(it) if class(it) == Class::ModuleGone);
                let error = SignerError::from(fault);
                if !may_be_down {
                    return Err(error);
                }
                shared.standing.fell(&error.to_string(), module_gone);
            }
        }
        let (queue, jobs) = bounded(config.queue);
        let (running, ended) = bounded(1);
        let watched = Watched { shared: Arc::clone(&shared), jobs, running };
        let mut threads = Vec::with_capacity(config.sessions.saturating_add(1));
        for seat in 0..config.sessions {
            threads.push(watched.start(seat)?);
        }
        threads.push(watched.start_probing(0)?);
        Ok((Self { shared, queue: Some(queue), ended, threads }, watched))
    }

    /// What the configuration calls the token.
    pub(super) fn name(&self) -> &HsmName {
        self.shared.standing.name()
    }

    /// Whether the token is not known to be down.
    ///
    /// # Errors
    /// Why it is.
    pub(super) fn is_up(&self) -> Result<(), SignerError> {
        self.shared.standing.admit()
    }

    /// Whether one more job would find room in the queue, as it is now.
    pub(super) fn has_room(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.is_full())
    }

    /// Whether a key has given so many wrong signatures that it is not asked any more.
    pub(super) fn is_barred(&self, key: KeyId) -> bool {
        self.shared.keyring.is_barred(key)
    }

    /// Whether a key may sign here.
    pub(super) fn knows(&self, key: KeyId) -> bool {
        self.shared.keyring.knows(key)
    }

    /// The id of the key that wraps others, if one is configured.
    pub(super) fn wrapping_key(&self) -> Option<CkaId> {
        self.shared.wrapping.id().cloned()
    }

    /// Why wrapped keys cannot sign here, as far as is known. Where that may have changed, it is looked again.
    pub(super) fn cannot_unwrap(&self) -> Option<SignerError> {
        let look = |answer| {
            if let Some(queue) = &self.queue {
                drop(queue.try_send(Job::CheckWrapping(answer)));
            }
        };
        let error = self.shared.wrapping.trouble(look)?;
        Some(SignerError::Unavailable(format!("wrapped keys cannot be used: {error}")))
    }

    /// Whether a key may sign here: it is enrolled, or wrapped under a key with the id of the one here.
    pub(super) fn has(&self, key: &OperatorKey) -> bool {
        match &key.custody {
            Custody::Token => self.knows(key.id),
            Custody::Wrapped(wrapped) => self.shared.wrapping.id() == Some(&wrapped.under),
        }
    }

    /// What each HSM thread is doing. A call into a module cannot be cancelled; one that hangs is
    /// seen here.
    pub(super) fn activities(&self) -> Vec<Activity> {
        self.shared.watch.activities()
    }

    /// Ends as dropping does, within `limit`; answers whether that was enough. Blocks.
    pub(super) fn close(mut self, limit: Duration) -> bool {
        self.end(limit)
    }

    fn end(&mut self, limit: Duration) -> bool {
        self.queue = None;
        self.shared.standing.end();
        let in_time = self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected);
        if in_time {
            // They have left the module for good; only what the system keeps per thread is left.
            for thread in self.threads.drain(..) {
                drop(thread.join());
            }
        }
        in_time
    }

    /// Has an HSM thread do a job. At once an error where the token is down or the queue is full.
    pub(super) async fn ask<T: Send>(
        &self,
        job: impl FnOnce(Answer<T>) -> Job + Send,
    ) -> Result<T, SignerError> {
        self.is_up()?;
        let (answer, answered) = oneshot::channel();
        let ended = || SignerError::Unavailable("the HSM threads have ended".to_owned());
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.try_send(job(answer)).map_err(|error| match error {
            TrySendError::Full(_) => SignerError::Overloaded,
            TrySendError::Disconnected(_) => ended(),
        })?;
        // The call itself cannot be cancelled; its caller need not wait for ever. A signature that
        // comes too late is thrown away.
        match tokio::time::timeout(self.shared.config.limits.answer, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(ended())),
            Err(_) => Err(SignerError::Unavailable("the HSM has not answered in time".to_owned())),
        }
    }

    /// Whether the token answers now, in a sentence.
    pub(super) async fn health(&self) -> Result<String, SignerError> {
        let token = self.ask(Job::Health).await?;
        let waiting = self.queue.as_ref().map_or(0, Sender::len);
        let threads = self.activities();
        let runs = |it: &&Activity| !matches!(it, Activity::Gone | Activity::Replaced(_));
        let running = threads.iter().filter(runs).count();
        let all = self.shared.config.sessions;
        Ok(format!("{token}; {running} of {all} threads run, {waiting} jobs wait"))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.queue.is_some() && !self.end(DROP_LIMIT) {
            tracing::error!(threads = ?self.activities(), "HSM threads did not end");
        }
    }
}

/// The first login and the first look at the keys; one session for each thread.
fn begin(shared: &Shared) -> Result<(), Fault> {
    *lock(&shared.slot) = Some(shared.module.slot_of(&shared.config.token_label)?);
    for seat in 0..shared.config.sessions {
        let session = renew(shared, seat == 0, &|| {})?;
        if seat == 0 && shared.config.wrapping.is_some() {
            // Told in an alarm; the token's other keys serve.
            drop(shared.wrapping.usable(&session, shared.keyring.generation()));
        }
        shared.desk.put(seat, session);
    }
    Ok(())
}

impl Watched {
    /// Starts the thread of a seat.
    fn start(&self, seat: usize) -> Result<JoinHandle<()>, SignerError> {
        let worker = Worker::new(Arc::clone(&self.shared), seat, self.running.clone());
        let jobs = self.jobs.clone();
        spawn(format!("hsm-{}-{seat}", self.shared.config.name), move || worker.run(&jobs))
    }

    /// Starts the thread that probes.
    fn start_probing(&self, seat: usize) -> Result<JoinHandle<()>, SignerError> {
        let (shared, running) = (Arc::clone(&self.shared), self.running.clone());
        spawn(format!("hsm-{}-probe-{seat}", self.shared.config.name), move || {
            supervisor::run(&shared, seat, &running);
        })
    }

    /// As [`Self::look`], for the thread that probes. Answers how many do not come back.
    fn look_at_probing(&self) -> usize {
        let shared = &self.shared;
        let hsm = &shared.config.name;
        let limit = shared.config.limits.stalled.saturating_mul(PROBE_STEPS);
        let Found { stalled, stalled_now, vacant, .. } = shared.probing.look(limit);
        for thread in stalled {
            tracing::error!(%hsm, thread, "the thread that probes does not come back from the module");
        }
        for seat in vacant {
            match self.start_probing(seat) {
                Ok(_) => tracing::warn!(%hsm, seat, "another thread probes"),
                Err(error) => {
                    shared.probing.gone(seat);
                    tracing::error!(%hsm, %error, "no other thread that probes could be started");
                }
            }
        }
        stalled_now
    }

    /// Looks for threads that do not come back, and has others take their places. Where none is left, the
    /// token is down, and nobody waits for it. Calls no module, so it always comes back.
    pub(super) fn look(&self) {
        let (shared, limit) = (&self.shared, self.shared.config.limits.stalled);
        let hsm = &shared.config.name;
        let Found { stalled, stalled_now, vacant, none_free } = shared.watch.look(limit);
        for thread in stalled {
            tracing::error!(%hsm, thread, "an HSM thread does not come back from the module");
        }
        let stalled_now = stalled_now.saturating_add(self.look_at_probing());
        let count = u32::try_from(stalled_now).unwrap_or(u32::MAX);
        metrics::gauge!("claviger_hsm_stalled_threads", "hsm" => hsm.to_string())
            .set(f64::from(count));
        for seat in vacant {
            match self.start(seat) {
                Ok(_) => tracing::warn!(%hsm, seat, "another HSM thread was started"),
                Err(error) => {
                    shared.watch.gone(seat);
                    tracing::error!(%hsm, %error, "no other HSM thread could be started");
                }
            }
        }
        if none_free {
            shared.standing.fell("no HSM thread comes back from the module", false);
        }
        // Whoever closed it is in a call that ends sessions, or the module, and no token of it can be asked.
        if shared.module.gate.closed_for() > limit {
            shared
                .standing
                .fell("the module is closed, and a call that ends sessions hangs", false);
        }
        // Threads do this too, if one of them comes back.
        while let Err(error) = shared.standing.admit()
            && let Ok(job) = self.jobs.try_recv()
        {
            job.refuse(error);
        }
    }
}

fn spawn(
    name: String,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, SignerError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(work)
        .map_err(|error| SignerError::Unavailable(format!("no HSM thread: {error}")))
}
