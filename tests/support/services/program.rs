//! Child processes that cannot outlive the test process.
//!
//! A guardian, one small shell for each test process, holds the other end of a pipe of ours and
//! is told of every child before that child may begin. When the pipe closes, because we ended in
//! whatever way (also by SIGKILL), it ends the children that are left, by id, and removes our
//! folder. So neither a failed test nor an interrupted run leaves anything behind.

use super::POLL_INTERVAL;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `$1` is the folder to remove. A child is known by its id and its start time: an id alone could
/// belong to another process by then.
const GUARDIAN: &str = r#"
started() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    set -- ${stat##*) }
    [ "$1" = Z ] || echo "${20}"
}
alive() {
    id=${1%%:*}
    rest=${1#*:}
    [ -n "${rest%%:*}" ] && [ "$(started "$id")" = "${rest%%:*}" ]
}
children=
while read -r verb id signal; do
    case $verb in
        watch) children="$children $id:$(started "$id"):$signal" ;;
        forget)
            kept=
            for child in $children; do
                [ "${child%%:*}" = "$id" ] || kept="$kept $child"
            done
            children=$kept
            ;;
    esac
done
for child in $children; do
    if alive "$child"; then kill -s "${child##*:}" "${child%%:*}"; fi
done
tries=0
while [ $tries -lt 50 ]; do
    left=
    for child in $children; do
        if alive "$child"; then left=yes; fi
    done
    [ -n "$left" ] || break
    sleep 0.1
    tries=$((tries + 1))
done
for child in $children; do
    if alive "$child"; then kill -s KILL "${child%%:*}"; fi
done
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"#;

struct Guardian {
    pipe: Mutex<ChildStdin>,
    folder: PathBuf,
    /// Never awaited: it ends after us.
    _shell: Child,
}

impl Guardian {
    fn get() -> &'static Self {
        static GUARDIAN: OnceLock<Guardian> = OnceLock::new();
        GUARDIAN.get_or_init(Self::start)
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("claviger-tests-")
            .disable_cleanup(true)
            .tempdir()
            .expect("no folder for temporary files")
            .path()
            .to_owned();
        // PostgreSQL refuses to run as root, so another user must be able to pass through.
        fs::set_permissions(&folder, Permissions::from_mode(0o711)).expect("our own folder");
        let mut shell = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // An interrupt from the terminal ends us, and must not end the guardian.
            .process_group(0)
            .spawn()
            .expect("sh does not run");
        let pipe = Mutex::new(shell.stdin.take().expect("stdin is a pipe"));
        Self { pipe, folder, _shell: shell }
    }

    fn tell(&self, line: &str) {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.write_all(format!("{line}\n").as_bytes()).expect("the guardian has ended");
    }
}

/// A folder that is removed when it is dropped, or else when the test process ends.
pub(super) fn scratch(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .permissions(Permissions::from_mode(0o711))
        .tempdir_in(&Guardian::get().folder)
        .expect("no folder for temporary files")
}

/// A running program. It is ended and awaited when dropped.
pub struct Program {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    /// The signal that ends it in order when dropped, and how long that may take before SIGKILL.
    ending: (&'static str, Duration),
    folder: TempDir,
}

impl Program {
    /// Starts a program in this process's environment with `envs` added. What it prints goes to
    /// files; its standard input is empty.
    pub fn spawn<A, E, K, V>(name: &str, bin: impl AsRef<Path>, args: A, envs: E) -> Self
    where
        A: IntoIterator<Item: AsRef<OsStr>>,
        E: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        Self::spawn_ending(name, bin.as_ref(), args, envs, ("KILL", Duration::from_secs(5)))
    }

    /// The same, for a program that must be ended by `ending.0`, within `ending.1`.
    pub(super) fn spawn_ending<A, E, K, V>(
        name: &str,
        bin: &Path,
        args: A,
        envs: E,
        ending: (&'static str, Duration),
    ) -> Self
    where
        A: IntoIterator<Item: AsRef<OsStr>>,
        E: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let folder = scratch(name);
        let log = |file: &str| File::create(folder.path().join(file)).expect("a log file");
        // The shell becomes the program, under the same id, once the guardian knows that id.
        let mut child = Command::new("sh")
            .args(["-c", "read -r go && exec \"$@\" </dev/null", name])
            .arg(bin)
            .args(args)
            .envs(envs)
            .stdin(Stdio::piped())
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .process_group(0)
            .spawn()
            .expect("sh does not run");
        Guardian::get().tell(&format!("watch {} {}", child.id(), ending.0));
        let mut gate = child.stdin.take().expect("stdin is a pipe");
        gate.write_all(b"go\n").expect("the new process waits for this line");
        Self { name: name.to_owned(), child, status: None, ending, folder }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with what it printed on standard output.
    pub fn stdout_path(&self) -> PathBuf {
        self.folder.path().join("stdout")
    }

    /// The file with what it printed on standard error.
    pub fn stderr_path(&self) -> PathBuf {
        self.folder.path().join("stderr")
    }

    /// What it printed so far on standard output.
    pub fn stdout(&self) -> String {
        read(&self.stdout_path())
    }

    /// What it printed so far on standard error.
    pub fn stderr(&self) -> String {
        read(&self.stderr_path())
    }

    /// The last lines of both outputs, for messages.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for (title, output) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let lines: Vec<&str> = output.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            text.push_str(&format!("--- {} {title}\n{}\n", self.name, last.join("\n")));
        }
        text
    }

    /// The first complete line, of either output, that contains `pattern`. Panics with the output
    /// if there is none in time, or if the program ends without one.
    pub async fn wait_for_line(&mut self, pattern: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            // Asked before reading: what is printed before the end is seen after it.
            let status = self.try_exit_status();
            if let Some(line) = self.line_with(pattern) {
                return line;
            }
            if let Some(status) = status {
                panic!("{} ended ({status}) without `{pattern}`\n{}", self.name, self.tail());
            }
            assert!(
                Instant::now() < deadline,
                "{}: no `{pattern}` within {limit:?}\n{}",
                self.name,
                self.tail()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn line_with(&self, pattern: &str) -> Option<String> {
        [self.stdout(), self.stderr()].iter().find_map(|output| {
            let complete = output.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            complete.map(str::trim_end).find(|line| line.contains(pattern)).map(str::to_owned)
        })
    }

    /// Its status if it has ended.
    pub fn try_exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("our own child");
            if self.status.is_some() {
                Guardian::get().tell(&format!("forget {}", self.child.id()));
            }
        }
        self.status
    }

    /// Its status once it ends by itself. Panics with its output if it does not in time.
    pub async fn exit_status(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_exit_status() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} has not ended within {limit:?}\n{}",
                self.name,
                self.tail()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a signal (`TERM`, `STOP`, `CONT`, …) unless it has ended.
    pub fn signal(&mut self, name: &str) {
        if self.try_exit_status().is_none() {
            // `kill` is built into the shell: no further program is needed.
            super::run(Command::new("sh").args([
                "-c",
                "kill -s \"$1\" \"$2\"",
                "kill",
                name,
                &self.pid().to_string(),
            ]));
        }
    }

    /// Ends it as a power cut would, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.end("KILL", Duration::from_secs(5));
    }

    /// Ends it by a signal, by SIGKILL if that takes longer than `grace`, and waits.
    pub(super) fn end(&mut self, signal: &str, grace: Duration) {
        if self.try_exit_status().is_some() {
            return;
        }
        self.signal(signal);
        let deadline = Instant::now() + grace;
        while self.try_exit_status().is_none() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        if self.try_exit_status().is_none() {
            self.child.kill().expect("our own child");
            self.status = Some(self.child.wait().expect("our own child"));
            Guardian::get().tell(&format!("forget {}", self.child.id()));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        let (signal, grace) = self.ending;
        self.end(signal, grace);
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
