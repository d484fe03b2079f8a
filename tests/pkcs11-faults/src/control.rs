//! The control file: which call fails, how, and how often.

use crate::line::{Fault, Limit, Line};
use cryptoki_sys::CKR_GENERAL_ERROR;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// How long a call that waits sleeps between two looks at the file.
const PAUSE: Duration = Duration::from_millis(10);

/// The file as it was read last.
struct Text {
    stamp: Stamp,
    entries: Vec<Entry>,
}

/// Another file has another stamp: it is renamed into its place.
type Stamp = (u64, i64, i64, u64);

struct Entry {
    text: String,
    /// A line that cannot be read makes every call fail: a test must not pass because its fault never came.
    line: Option<Line>,
    /// How often it has said something since the file became what it is.
    times: AtomicU64,
    /// How often the module had been initialised when the line was read.
    born: u64,
}

static CURRENT: RwLock<Option<Arc<Text>>> = RwLock::new(None);
static INITIALIZED: AtomicU64 = AtomicU64::new(0);

/// A call, as lines speak of it.
pub struct Call<'a> {
    /// Its name in the standard.
    pub function: &'static str,
    /// It asks only how long the answer would be.
    pub is_question: bool,
    /// The label of its token, asked of the token if a line wants it.
    pub label: &'a dyn Fn() -> Option<String>,
}

/// What the file says of this call now. Told in the log.
pub fn found(call: &Call<'_>) -> Option<(Fault, String)> {
    let current = current()?;
    for entry in &current.entries {
        let Some(line) = &entry.line else {
            tell(call.function, &entry.text);
            return Some((Fault::Answer(CKR_GENERAL_ERROR), entry.text.clone()));
        };
        if !line.names(call.function)
            || (call.is_question && line.spares_questions())
            || line.label().is_some_and(|wanted| (call.label)().as_deref() != Some(wanted))
        {
            continue;
        }
        if entry.is_left(line.limit) {
            tell(call.function, &entry.text);
            return Some((line.fault, entry.text.clone()));
        }
    }
    None
}

impl Entry {
    fn new(text: &str) -> Self {
        let born = INITIALIZED.load(Ordering::SeqCst);
        Self { text: text.to_owned(), line: Line::read(text), times: AtomicU64::new(0), born }
    }

    /// Whether it has not said its last; counts.
    fn is_left(&self, limit: Limit) -> bool {
        match limit {
            Limit::None => true,
            Limit::UntilInitialize => INITIALIZED.load(Ordering::SeqCst) == self.born,
            Limit::Times(most) => {
                let one_more = |times: u64| (times < most).then_some(times + 1);
                self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
            }
        }
    }
}

/// The module behind was initialised.
pub fn initialized() {
    INITIALIZED.fetch_add(1, Ordering::SeqCst);
}

/// Waits until no line of the file reads so.
pub fn wait_while(text: &str) {
    while current().is_some_and(|current| current.entries.iter().any(|it| it.text == text)) {
        std::thread::sleep(PAUSE);
    }
}

fn path() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("PKCS11_FAULTS_CONTROL").map(PathBuf::from)).as_deref()
}

/// The file as it is now; read only if it is another one than at the last call.
fn current() -> Option<Arc<Text>> {
    let path = path()?;
    let now = stamp(&std::fs::metadata(path).ok()?);
    let same = |known: &Option<Arc<Text>>| known.clone().filter(|text| text.stamp == now);
    if let Some(text) = same(&CURRENT.read().unwrap_or_else(PoisonError::into_inner)) {
        return Some(text);
    }
    let mut known = CURRENT.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = same(&known) {
        return Some(text);
    }
    // Stamp and text of one file: its name may mean another one by now.
    let mut file = File::open(path).ok()?;
    let stamp = stamp(&file.metadata().ok()?);
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let entries = lines(&text).map(Entry::new).collect();
    let text = Arc::new(Text { stamp, entries });
    *known = Some(Arc::clone(&text));
    Some(text)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn stamp(file: &Metadata) -> Stamp {
    (file.ino(), file.mtime(), file.mtime_nsec(), file.len())
}

/// One line of the log: the function, a tab, what was said of it.
pub fn tell(function: &str, what: &str) {
    let Some(control) = path() else { return };
    let mut log = control.as_os_str().to_owned();
    log.push(".log");
    let opened: std::io::Result<File> = OpenOptions::new().create(true).append(true).open(log);
    if let Ok(mut log) = opened {
        // Whole, so that lines of two threads do not mix.
        let _ = log.write_all(format!("{function}\t{what}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_used_up_and_a_removal_lasts_until_the_module_is_initialised() {
        let twice = Entry::new("C_Sign CKR_DEVICE_ERROR 2");
        let left: Vec<_> = (0..4).map(|_| twice.is_left(Limit::Times(2))).collect();
        assert_eq!(left, [true, true, false, false]);
        let removed = Entry::new("* CKR_DEVICE_REMOVED UNTIL_INITIALIZE");
        assert!(removed.is_left(Limit::UntilInitialize));
        initialized();
        assert!(!removed.is_left(Limit::UntilInitialize));
        assert!(Entry::new("* CKR_DEVICE_REMOVED").is_left(Limit::UntilInitialize));
    }

    #[test]
    fn empty_lines_and_remarks_say_nothing() {
        let text = "\n# 7\n  C_Sign WAIT\n\n";
        assert_eq!(lines(text).collect::<Vec<_>>(), ["C_Sign WAIT"]);
    }
}
