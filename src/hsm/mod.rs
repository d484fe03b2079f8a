//! The PKCS#11 signer: dedicated threads, bounded queue, pinned keys, every signature verified.
//!
//! - `line` is one token: its queue and its threads; `worker` is an HSM thread with its jobs.
//! - `ladder`, `supervisor`, `watchdog` are what is done when something is lost: by the thread that meets it,
//!   by the thread that probes a token which is down, and by the one that sees calls which do not come back.
//! - `errors` says what each return value means; `condition` whether a token is up, in pure code; `standing`
//!   is that for all threads, and `news` what the audit log is to be told.
//! - `module` loads the module, and starts it again; `gate` knows who is inside; `desk` keeps sessions;
//!   `login` has the PIN.
//! - `keyring` knows which keys may sign and where they are; `object` reads and makes them.
//! - `point` and `finish` take apart what comes out of the module, and believe none of it.
//! - `diagnose` says what is wrong with a set-up, for `doctor`.
//! - `wrapping` makes and checks the key that wraps others; `unwrapped` makes, wraps, unwraps and uses these;
//!   `trial` tries out that nobody can read them.
//! - `token` initialises a new token; `pin` reads PINs; `watch` knows since when each thread is in a call.
//!
//! No private key and no PIN is ever in an error, a log line or a `Debug` text here.

mod condition;
mod desk;
mod diagnose;
mod errors;
mod fault;
mod finish;
mod gate;
mod keyring;
mod ladder;
mod line;
mod login;
mod module;
mod news;
mod object;
mod pin;
mod point;
mod standing;
mod supervisor;
mod token;
mod trial;
mod unwrapped;
mod watch;
mod watchdog;
mod worker;
mod wrapping;

pub use diagnose::{Diagnosis, diagnose, diagnose_pin_file};
pub use finish::is_signed_by;
pub use token::init_token;
pub use watch::Activity;
pub use wrapping::{
    Exceptions, MadeWrappingKey, NEEDS_EXCEPTIONS, WrappingConfig, make_wrapping_key,
};

use crate::core::id::{HsmName, KeyId};
use crate::core::key::{CkaId, Custody, KeyPlace, OperatorKey, PublicKey, WrappedKey};
use crate::core::key_report::{KeyException, KeyReport, TokenReport};
use crate::core::permit::{OpenPermit, Permit, RawSignature};
use crate::hsm::errors::Class;
use crate::hsm::fault::{class, describe};
use crate::hsm::line::Line;
use crate::hsm::login::Secret;
use crate::hsm::module::Module;
use crate::hsm::news::News;
use crate::hsm::pin::read_pin;
use crate::hsm::watchdog::Watchdog;
use crate::hsm::worker::Job;
use crate::ports::signer::{HsmEvent, Signer, SignerError};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap, HashSet};
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
    /// This token stands by for another one: it has keys of that one, with the same ids, and signs by them
    /// while the other does not.
    pub standby_for: Option<HsmName>,
    /// All sessions may write: some modules have no others.
    pub read_write_sessions: bool,
    /// Keys whose attributes may be otherwise than they should be.
    pub exceptions: Vec<KeyException>,
    /// The key that wraps others. Without one, the token has no wrapped keys.
    pub wrapping: Option<WrappingConfig>,
    /// How many unwrapped keys each session keeps; 0 to 65,536. Beyond that, the one that was not used for
    /// longest is destroyed.
    pub wrapped_cache: usize,
    /// How long is long.
    pub limits: Limits,
}

/// How long is long. `docs/OPERATIONS.md` names them; only tests use others.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A session that has done nothing for so long is used for a cheap call, so that the token does not close
    /// it and what is lost is renewed before the next job needs it.
    pub keep_alive: Duration,
    /// A thread that has been in one job for longer is stalled: told, and replaced.
    pub stalled: Duration,
    /// So long does a caller wait, in the queue and for the module.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(10),
            stalled: Duration::from_secs(5),
            answer: Duration::from_secs(15),
        }
    }
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
            standby_for: None,
            read_write_sessions: false,
            limits: Limits::default(),
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
    // It is to end first: it starts threads.
    watchdog: Watchdog,
    lines: Vec<Line>,
    /// The keys that were enrolled, or will be once their token is up.
    keys: RwLock<HashMap<KeyId, Home>>,
    /// The keys that were found not to be as they were pinned.
    unusable: RwLock<HashSet<KeyId>>,
    news: Arc<News>,
}

/// Where a key is.
#[derive(Clone)]
struct Home {
    line: usize,
    /// What is needed to enroll it in a token that was down, or that stands by.
    key: Arc<OperatorKey>,
}

impl Hsm {
    /// Loads each module once, logs in to each token once, finds all keys once, starts the threads. Blocks.
    /// No key may sign yet: each is to be enrolled. A token that is not there is down, and probed, if another
    /// one is there.
    ///
    /// # Errors
    /// When there is no token or two have one name, when a PIN file or the settings are not as [`HsmConfig`]
    /// says, when a module does not load, when no token answers, or when one refuses the PIN: there is no
    /// second try.
    pub fn open(configs: Vec<HsmConfig>) -> Result<Self, SignerError> {
        check(&configs)?;
        let news = Arc::new(News::default());
        let mut modules: HashMap<PathBuf, Arc<Module>> = HashMap::new();
        let mut secrets: HashMap<PathBuf, Arc<Secret>> = HashMap::new();
        for config in &configs {
            if !secrets.contains_key(&config.pin_file) {
                let secret = Secret::new(read_pin(&config.pin_file)?);
                secrets.insert(config.pin_file.clone(), Arc::new(secret));
            }
        }
        let is_one_of_many = configs.len() > 1;
        let mut lines: Vec<Line> = Vec::with_capacity(configs.len());
        let mut watched = Vec::with_capacity(configs.len());
        for config in &configs {
            let module = if let Some(module) = modules.get(&config.module) {
                Arc::clone(module)
            } else {
                let module = Arc::new(begin(config, is_one_of_many)?);
                modules.insert(config.module.clone(), Arc::clone(&module));
                module
            };
            let secret = secrets.get(&config.pin_file).map(Arc::clone);
            let secret = secret.ok_or_else(|| refused("no PIN was read"))?;
            let (line, watch) =
                Line::open(config, module, secret, Arc::clone(&news), is_one_of_many)?;
            lines.push(line);
            watched.push(watch);
        }
        if let (true, Some(Err(error))) =
            (lines.iter().all(|line| line.is_up().is_err()), lines.first().map(Line::is_up))
        {
            return Err(error);
        }
        let shortest = configs.iter().map(|config| config.limits.stalled).min();
        let every = shortest.unwrap_or_default().checked_div(10).unwrap_or_default();
        let watchdog = Watchdog::start(watched, every)?;
        let (keys, unusable) = (RwLock::default(), RwLock::default());
        Ok(Self { watchdog, lines, keys, unusable, news })
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
        drop(self.watchdog);
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

    /// The token that stands by for this one.
    fn standby(&self, home: &Line) -> Option<&Line> {
        let stands_by = |line: &&Line| line.shared.config.standby_for.as_ref() == Some(home.name());
        self.lines.iter().find(stands_by)
    }

    /// Has one token sign. A key that could not be enrolled in it before is enrolled first.
    async fn sign_in(
        &self,
        line: &Line,
        key: Option<&Arc<OperatorKey>>,
        permit: &Arc<OpenPermit>,
    ) -> Result<RawSignature, SignerError> {
        if line.is_barred(permit.key) {
            return Err(barred());
        }
        if let Some(key) = key.filter(|key| !line.knows(key.id)) {
            line.ask(|answer| Job::Enroll(Arc::clone(key), answer)).await?;
        }
        line.ask(|answer| Job::Sign(Arc::clone(permit), answer)).await
    }

    /// Has the token sign that stands by for one which does not answer. Whatever that one may still give is
    /// thrown away: nobody waits for it any more.
    async fn sign_in_standby(
        &self,
        home: &Line,
        key: Option<&Arc<OperatorKey>>,
        permit: &Arc<OpenPermit>,
        error: SignerError,
    ) -> Result<RawSignature, SignerError> {
        let Some(standby) = self.standby(home).filter(|standby| standby.is_up().is_ok()) else {
            return Err(error);
        };
        let signed = self.sign_in(standby, key, permit).await;
        let outcome = if signed.is_ok() { "signed" } else { "failed" };
        metrics::counter!("claviger_hsm_standby_total", "outcome" => outcome).increment(1);
        signed.map_err(|other| {
            let (hsm, key) = (standby.name(), permit.key);
            tracing::error!(%hsm, %key, error = %other, "the standby has not signed");
            error
        })
    }

    /// Nobody enrolls a wrapped key, so what it signs says whether it can be used.
    fn note_wrapped(&self, key: KeyId, signed: &Result<RawSignature, SignerError>) {
        match signed {
            Ok(_) if read(&self.unusable).contains(&key) => {
                write(&self.unusable).remove(&key);
            }
            Err(SignerError::WrongSignature) => {
                write(&self.unusable).insert(key);
            }
            _ => {}
        }
    }

    /// The line of a permit, and its key if it must be enrolled.
    fn home(&self, permit: &Permit) -> Result<(&Line, Option<Arc<OperatorKey>>), SignerError> {
        if matches!(permit.custody(), Custody::Wrapped(_)) {
            if read(&self.keys).contains_key(&permit.key()) {
                return Err(SignerError::KeyUnusable(format!(
                    "{} is a key of the token, and the database says that it is wrapped",
                    permit.key()
                )));
            }
            // It needs no enrolment: all that it takes is in the permit.
            return Ok((self.line(permit.hsm())?.1, None));
        }
        let not_enrolled = || SignerError::KeyUnusable(format!("{} is not enrolled", permit.key()));
        let home = read(&self.keys).get(&permit.key()).cloned();
        let Home { line, key } = home.ok_or_else(not_enrolled)?;
        Ok((self.lines.get(line).ok_or_else(not_enrolled)?, Some(key)))
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
        let (line, key) = self.home(&permit)?;
        let permit = Arc::new(permit.open());
        let signed = match self.sign_in(line, key.as_ref(), &permit).await {
            Err(error) if error.is_unavailable() => {
                self.sign_in_standby(line, key.as_ref(), &permit, error).await
            }
            other => other,
        };
        if matches!(permit.custody, Custody::Wrapped(_)) {
            self.note_wrapped(permit.key, &signed);
        }
        signed
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
        let key = Arc::new(key.clone());
        let enrolled = line.ask(|answer| Job::Enroll(Arc::clone(&key), answer)).await;
        if matches!(key.custody, Custody::Wrapped(_)) && line.cannot_unwrap().is_some() {
            // That says nothing about this key.
            return enrolled;
        }
        if let Err(SignerError::KeyUnusable(_) | SignerError::WrongSignature) = &enrolled {
            write(&self.unusable).insert(key.id);
            write(&self.keys).remove(&key.id);
            return enrolled;
        }
        // A token that is down now shows the key later, before it signs by it.
        write(&self.unusable).remove(&key.id);
        if matches!(key.custody, Custody::Wrapped(_)) {
            return enrolled;
        }
        let home = Home { line: index, key: Arc::clone(&key) };
        write(&self.keys).insert(key.id, home);
        if let Some(standby) = self.standby(line).filter(|standby| standby.is_up().is_ok())
            && let Err(error) = standby.ask(|answer| Job::Enroll(Arc::clone(&key), answer)).await
        {
            let hsm = standby.name();
            tracing::warn!(%hsm, key = %key.id, %error, "the standby does not stand by for this key");
        }
        enrolled
    }

    fn ready(&self, key: &OperatorKey) -> Result<(), SignerError> {
        let (_, line) = self.line(&key.hsm)?;
        if matches!(key.custody, Custody::Wrapped(_))
            && let Some(error) = line.cannot_unwrap()
        {
            return Err(error);
        }
        if read(&self.unusable).contains(&key.id) {
            return Err(SignerError::KeyUnusable(
                "it was found not to be as it was pinned".to_owned(),
            ));
        }
        if line.is_barred(key.id) {
            return Err(barred());
        }
        match (line.is_up(), self.standby(line)) {
            (Err(_), Some(standby)) if standby.is_up().is_ok() && standby.has(key) => Ok(()),
            (Ok(()), _) if !line.has_room() => Err(SignerError::Overloaded),
            (answer, _) => answer,
        }
    }

    fn is_up(&self, hsm: &HsmName) -> Result<(), SignerError> {
        self.line(hsm)?.1.is_up()
    }

    fn events(&self) -> Vec<HsmEvent> {
        self.news.list()
    }

    fn last_events(&self) -> Vec<HsmEvent> {
        self.news.list_all()
    }

    fn events_recorded(&self, up_to: u64) {
        self.news.recorded(up_to);
    }

    async fn health(&self) -> Result<String, SignerError> {
        let (mut told, mut last, mut any) = (Vec::with_capacity(self.lines.len()), None, false);
        for line in &self.lines {
            match line.health().await {
                Ok(text) => {
                    any = true;
                    told.push(format!("{}: {text}", line.name()));
                }
                // It works: as much as it can.
                Err(SignerError::Overloaded) => {
                    any = true;
                    told.push(format!("{}: busy", line.name()));
                }
                Err(error) => {
                    told.push(format!("{}: {error}", line.name()));
                    last = Some(error);
                }
            }
        }
        match (any, last, told.as_slice()) {
            (false, Some(error), [_]) => Err(error),
            (false, Some(_), _) => Err(SignerError::Unavailable(told.join("\n"))),
            // The name of the only one says nothing.
            (_, _, [one]) => Ok(one.split_once(": ").map_or(one.as_str(), |(_, it)| it).to_owned()),
            _ => Ok(told.join("\n")),
        }
    }
}

fn barred() -> SignerError {
    let why = "its signatures were wrong several times in a row: it is to be enrolled again";
    SignerError::KeyUnusable(why.to_owned())
}

fn refused(why: impl Into<String>) -> SignerError {
    SignerError::Unavailable(why.into())
}

/// What the configuration's file cannot have said wrong, but its users can.
fn check(configs: &[HsmConfig]) -> Result<(), SignerError> {
    if configs.is_empty() {
        return Err(refused("no token is configured"));
    }
    let mut names = HashSet::new();
    for config in configs {
        if !(1..=64).contains(&config.sessions) || !(1..=65_536).contains(&config.queue) {
            return Err(refused("sessions must be 1 to 64 and queue 1 to 65536"));
        }
        if !names.insert(&config.name) {
            return Err(refused(format!("two tokens are named {}", config.name)));
        }
        if let Some(home) = &config.standby_for {
            let found = configs.iter().find(|it| it.name == *home);
            let stands_alone = found.is_some_and(|it| it.standby_for.is_none());
            let others = configs.iter().filter(|it| it.standby_for.as_ref() == Some(home)).count();
            if !stands_alone || *home == config.name || others > 1 {
                return Err(refused(format!("{} cannot stand by for {home}", config.name)));
            }
        }
    }
    Ok(())
}

/// A module that does not start is started later, if there may be others.
fn begin(config: &HsmConfig, may_be_down: bool) -> Result<Module, SignerError> {
    let module = Module::load(&config.module)?;
    match module.initialize() {
        Ok(()) => Ok(module),
        Err(error) if may_be_down && class(&error) != Class::AlreadyDone => {
            tracing::error!(hsm = %config.name, error = describe(&error), "the module does not start");
            Ok(module)
        }
        Err(error) => Err(refused(describe(&error))),
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A lock that a panic elsewhere does not take away: nothing here is left half done under one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
