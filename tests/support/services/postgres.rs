//! A private PostgreSQL cluster; each test has a database of its own in it.

use super::program::scratch;
use super::{Program, free_port, loopback, poll_until, random_word, run, tool};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// How long a start may take. A machine that compiles at the same time is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// The superuser of the cluster, with a random password: other users of this machine can reach
/// the port too.
const USER: &str = "claviger";

/// How to start a cluster.
#[derive(Clone, Copy, Debug)]
pub struct PostgresOptions {
    /// Whether a commit waits for the disk. Off by default: it decides nothing that a test sees
    /// unless the machine loses its power.
    pub fsync: bool,
    pub max_connections: u32,
    /// A port to listen on; else a free one.
    pub port: Option<u16>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { fsync: false, max_connections: 200, port: None }
    }
}

/// A running cluster. Dropping it ends it at once, as after a crash.
pub struct Postgres {
    program: Option<Program>,
    options: PostgresOptions,
    port: u16,
    password: String,
    owner: Owner,
    // Removed after the server has ended: fields are dropped in this order.
    folder: TempDir,
}

impl Postgres {
    /// The one cluster of this test process. It ends with the process.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::start(PostgresOptions::default())).await
    }

    /// A cluster for one test alone, to stop it or to fill it.
    pub async fn start(options: PostgresOptions) -> Self {
        let folder = scratch("postgres");
        let owner = Owner::find();
        let password = random_word();
        let password_file = folder.path().join("password");
        fs::write(&password_file, &password).expect("our own folder");
        fs::set_permissions(&password_file, Permissions::from_mode(0o600)).expect("our own file");
        for name in ["data", "sockets"] {
            fs::create_dir(folder.path().join(name)).expect("our own folder");
            owner.give(&folder.path().join(name));
        }
        owner.give(&password_file);
        let mut cluster = Self { program: None, options, port: 0, password, owner, folder };
        run(cluster
            .owner
            .command("initdb")
            .arg("--pgdata")
            .arg(cluster.folder.path().join("data"))
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--username", USER, "--auth", "scram-sha-256"])
            .args(["--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"]));
        for attempt in 1.. {
            cluster.port = options.port.unwrap_or_else(free_port);
            match cluster.launch().await {
                Ok(()) => break,
                // Another process was faster at this port.
                Err(output) => assert!(attempt < 5, "PostgreSQL does not start\n{output}"),
            }
        }
        cluster
    }

    /// Starts the server on `self.port`; gives its output if it ends instead.
    async fn launch(&mut self) -> Result<(), String> {
        let path = self.folder.path();
        let mut args = self.owner.prefix.clone();
        args.push(tool("PG_BIN").join("postgres").display().to_string());
        args.push("-D".to_owned());
        args.push(path.join("data").display().to_string());
        for setting in [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", path.join("sockets").display()),
            format!("fsync={}", if self.options.fsync { "on" } else { "off" }),
            format!("max_connections={}", self.options.max_connections),
            "shared_buffers=64MB".to_owned(),
            "log_timezone=UTC".to_owned(),
        ] {
            args.extend(["-c".to_owned(), setting]);
        }
        // SIGQUIT: the server ends its own children without a checkpoint.
        let ending = ("QUIT", Duration::from_secs(10));
        let bin = PathBuf::from(args.remove(0));
        let none: [(&str, &str); 0] = [];
        let mut program = Program::spawn_ending("postgres-log", &bin, args, none, ending);
        let what = format!("PostgreSQL accepts connections on port {}", self.port);
        let started = poll_until(LIMIT, &what, async || {
            if program.try_exit_status().is_some() {
                return Some(false);
            }
            // A replica says "read-only connections".
            let text = program.stderr();
            let is_ready = text.contains("ready to accept") && text.contains("connections");
            is_ready.then_some(true)
        })
        .await;
        if !started {
            return Err(program.tail());
        }
        self.program = Some(program);
        Ok(())
    }

    /// Creates an empty database and gives its URL, password included.
    pub fn create_database(&self) -> String {
        let name = format!("test_{}", random_word());
        run(self
            .owner
            .command("createdb")
            .env("PGPASSWORD", &self.password)
            .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--username", USER, &name]));
        format!("postgres://{USER}:{}@127.0.0.1:{}/{name}", self.password, self.port)
    }

    /// A physical replica as of now. It is not started: it lags from here on until it is promoted.
    pub fn replica(&self) -> Self {
        let folder = scratch("postgres-replica");
        for name in ["data", "sockets"] {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("our own folder");
            fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("our own folder");
            self.owner.give(&path);
        }
        let mut copy = self.client("pg_basebackup");
        copy.arg("--pgdata").arg(folder.path().join("data"));
        run(copy.args(["--write-recovery-conf", "--checkpoint", "fast", "--wal-method", "stream"]));
        let (owner, password) = (Owner::find(), self.password.clone());
        Self { program: None, options: self.options, port: 0, password, owner, folder }
    }

    /// Starts a replica whose primary is gone, and promotes it.
    pub async fn promote(&mut self) {
        for attempt in 1.. {
            self.port = free_port();
            match self.launch().await {
                Ok(()) => break,
                Err(output) => assert!(attempt < 5, "the replica does not start\n{output}"),
            }
        }
        let mut promote = self.owner.command("pg_ctl");
        run(promote.arg("promote").arg("--wait").arg("-D").arg(self.folder.path().join("data")));
    }

    /// The URL of a database of another cluster, in this one.
    pub fn url_of(&self, url: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{}", self.password, self.port, Self::name(url))
    }

    /// Makes a copy of a database that nobody uses, and gives its URL: a backup.
    pub fn copy_database(&self, url: &str) -> String {
        let copy = format!("copy_{}", random_word());
        self.copy(Self::name(url), &copy);
        format!("{}/{copy}", url.rsplit_once('/').expect("a URL has a path").0)
    }

    /// Puts a backup in the place of the database that it is of.
    pub fn put_back(&self, backup: &str, url: &str) {
        run(self.client("dropdb").arg("--force").arg(Self::name(url)));
        self.copy(Self::name(backup), Self::name(url));
    }

    fn copy(&self, from: &str, to: &str) {
        run(self.client("createdb").args(["--template", from, to]));
    }

    fn name(url: &str) -> &str {
        url.rsplit_once('/').expect("a URL has a path").1
    }

    /// A client program that connects to this cluster.
    fn client(&self, program: &str) -> Command {
        let mut command = self.owner.command(program);
        command.env("PGPASSWORD", &self.password);
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--username", USER]);
        command
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The id of the server's main process.
    pub fn pid(&self) -> u32 {
        self.program.as_ref().expect("PostgreSQL is stopped").pid()
    }

    /// Ends the server as a crash would; its data stay.
    pub fn stop(&mut self) {
        self.program = None;
    }

    /// Ends the server and every process of it as a power cut would; its data stay. Its children are
    /// leaders of groups of their own, so each is named.
    pub fn kill9(&mut self) {
        let Some(mut program) = self.program.take() else { return };
        let children = children_of(program.pid());
        program.kill9();
        for child in children {
            // It may have ended by itself.
            let _ = Command::new("sh")
                .args(["-c", "kill -s KILL \"$1\" 2>&-", "kill", &child])
                .status();
        }
    }

    /// Starts the server again, on the same port with the same data.
    pub async fn restart(&mut self) {
        self.stop();
        if let Err(output) = self.launch().await {
            panic!("PostgreSQL does not start again\n{output}");
        }
    }

    /// Starts the server again after [`Self::kill9`]: the system may need a moment to forget its memory.
    pub async fn start_again(&mut self) {
        for attempt in 1.. {
            match self.launch().await {
                Ok(()) => return,
                Err(output) => assert!(attempt < 50, "PostgreSQL does not start again\n{output}"),
            }
        }
    }

    /// Whether something accepts connections on its port.
    pub async fn is_reachable(&self) -> bool {
        TcpStream::connect(loopback(self.port)).await.is_ok()
    }
}

/// The ids of a process's children, as the kernel knows them.
fn children_of(pid: u32) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

/// The user as whom the server runs: it refuses to be root, so then Debian's `postgres`.
struct Owner {
    ids: Option<(u32, u32)>,
    /// What to put before a command. `setpriv` becomes the command, so that its id is the same.
    prefix: Vec<String>,
}

impl Owner {
    fn find() -> Self {
        let id = |args: &[&str]| -> u32 {
            run(Command::new("id").args(args)).trim().parse().expect("id prints a number")
        };
        if id(&["-u"]) != 0 {
            return Self { ids: None, prefix: Vec::new() };
        }
        let (user, group) = (id(&["-u", "postgres"]), id(&["-g", "postgres"]));
        let prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"];
        Self { ids: Some((user, group)), prefix: prefix.map(str::to_owned).to_vec() }
    }

    fn give(&self, path: &std::path::Path) {
        if let Some((user, group)) = self.ids {
            chown(path, Some(user), Some(group)).expect("root gives away its own file");
        }
    }

    /// One of PostgreSQL's programs, as this user.
    fn command(&self, program: &str) -> Command {
        let program = tool("PG_BIN").join(program);
        let mut command = match self.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        // A folder that this user may enter.
        command.current_dir("/");
        command
    }
}
