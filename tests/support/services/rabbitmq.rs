//! A private RabbitMQ broker with an Erlang port mapper of its own.

use super::program::scratch;
use super::{Program, free_port, loopback, poll_until, random_word};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// How long a start may take: Erlang is slow on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The script that the package's own commands end up in. Unlike those, it neither changes the user
/// nor writes to the machine's folders.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// What speaks with a running broker, likewise.
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

/// A broker with one user and the default virtual host. What is durable survives `stop` and
/// `kill9`, and is there again after `start_again`.
pub struct RabbitMq {
    broker: Option<Program>,
    /// The broker would leave one running for ever; here it is a child like any other.
    mapper: Option<Program>,
    node: String,
    password: String,
    port: u16,
    distribution_port: u16,
    mapper_port: u16,
    folder: TempDir,
}

impl RabbitMq {
    /// The one broker of this test process, for tests that neither stop nor fill it. It ends with the
    /// process.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    pub async fn start() -> Self {
        let mut output = String::new();
        for _ in 0..4 {
            let mut rabbit = Self {
                broker: None,
                mapper: None,
                node: format!("claviger-{}@localhost", random_word()),
                password: random_word(),
                port: free_port(),
                distribution_port: free_port(),
                mapper_port: free_port(),
                folder: scratch("rabbitmq"),
            };
            rabbit.configure();
            match rabbit.launch().await {
                Ok(()) => return rabbit,
                // Perhaps another process was faster at one of the ports.
                Err(error) => output = error,
            }
        }
        panic!("RabbitMQ does not start\n{output}")
    }

    fn configure(&self) {
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             default_user = claviger\n\
             default_pass = {}\n\
             vm_memory_high_watermark.absolute = 512MB\n\
             disk_free_limit.absolute = 50MB\n",
            self.port, self.password
        );
        fs::write(self.path().join("rabbitmq.conf"), config).expect("our own folder");
        fs::write(self.path().join("enabled_plugins"), "[].\n").expect("our own folder");
        // Read instead of the machine's own; empty, for the settings below to hold.
        fs::write(self.path().join("rabbitmq-env.conf"), "").expect("our own folder");
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts both processes; gives their output if one ends instead.
    async fn launch(&mut self) -> Result<(), String> {
        let none: [(&str, &str); 0] = [];
        let mapper_port = self.mapper_port.to_string();
        let mut mapper =
            Program::spawn("epmd", "epmd", ["-address", "127.0.0.1", "-port", &mapper_port], none);
        let what = "the Erlang port mapper accepts connections";
        let mapped = poll_until(LIMIT, what, async || {
            if mapper.try_exit_status().is_some() {
                return Some(false);
            }
            TcpStream::connect(loopback(self.mapper_port)).await.is_ok().then_some(true)
        })
        .await;
        if !mapped {
            return Err(mapper.tail());
        }
        let mut broker = self.spawn_broker();
        let what = format!("RabbitMQ speaks AMQP on port {}", self.port);
        let started = poll_until(LIMIT, &what, async || {
            if broker.try_exit_status().is_some() {
                return Some(false);
            }
            speaks_amqp(self.port).await.then_some(true)
        })
        .await;
        if !started {
            return Err(broker.tail());
        }
        self.mapper = Some(mapper);
        self.broker = Some(broker);
        Ok(())
    }

    /// As for `env -i`: nothing of the machine's own settings for RabbitMQ or Erlang.
    fn environment(&self) -> Vec<String> {
        let path = self.path();
        let file = |name: &str| path.join(name).display().to_string();
        let settings = [
            ("HOME", file("")),
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("LANG", "C.UTF-8".to_owned()),
            // The script then becomes the broker itself, under the same id.
            ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
            ("ERL_EPMD_PORT", self.mapper_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODENAME", self.node.clone()),
            ("RABBITMQ_DIST_PORT", self.distribution_port.to_string()),
            ("RABBITMQ_CONF_ENV_FILE", file("rabbitmq-env.conf")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_MNESIA_BASE", file("mnesia")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_PID_FILE", file("pid")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // Only loopback, and schedulers that sleep when there is nothing to do.
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
                    .to_owned(),
            ),
        ];
        let mut args = vec!["-i".to_owned()];
        args.extend(settings.map(|(name, value)| format!("{name}={value}")));
        args
    }

    fn spawn_broker(&self) -> Program {
        let mut args = self.environment();
        args.push(SERVER.to_owned());
        let none: [(&str, &str); 0] = [];
        Program::spawn("rabbitmq-log", "env", args, none)
    }

    /// The URL, user and password included, of the default virtual host.
    pub fn url(&self) -> String {
        format!("amqp://claviger:{}@127.0.0.1:{}/%2f", self.password, self.port)
    }

    /// Makes the broker believe that it is short of memory, or not any more: it then reads nothing of those who
    /// publish.
    pub fn short_of_memory(&self, short: bool) {
        let fraction = if short { "0.0000001" } else { "0.9" };
        self.control(["set_vm_memory_high_watermark", fraction]);
    }

    /// Has a queue of one process do nothing any more: like one that has lost its majority, it neither takes what
    /// is published nor refuses it.
    pub fn hang(&self, queue: &str) {
        let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)");
        let find = format!("{{ok, Q}} = rabbit_amqqueue:lookup({name})");
        self.control(["eval", &format!("{find}, sys:suspend(amqqueue:get_pid(Q)).")]);
    }

    fn control(&self, command: [&str; 2]) {
        let mut args = self.environment();
        args.extend([CONTROL, "-n", &self.node].map(str::to_owned));
        args.extend(command.map(str::to_owned));
        super::run(std::process::Command::new("env").args(args));
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The ids of the broker and of its port mapper.
    pub fn pids(&self) -> Vec<u32> {
        [&self.broker, &self.mapper].into_iter().flatten().map(Program::pid).collect()
    }

    /// Ends the broker in order; what is durable stays.
    pub fn stop(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            broker.end("TERM", Duration::from_secs(30));
        }
        self.mapper = None;
    }

    /// Ends the broker as a power cut would.
    pub fn kill9(&mut self) {
        self.broker = None;
        self.mapper = None;
    }

    /// Starts the broker again: same port, same user, same durable queues.
    pub async fn start_again(&mut self) {
        self.kill9();
        if let Err(output) = self.launch().await {
            panic!("RabbitMQ does not start again\n{output}");
        }
    }
}

/// A broker that is still starting may accept a connection, but does not answer the header.
async fn speaks_amqp(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(loopback(port)).await else {
        return false;
    };
    if stream.write_all(b"AMQP\x00\x00\x09\x01").await.is_err() {
        return false;
    }
    let mut first = [0];
    let answer = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut first));
    matches!(answer.await, Ok(Ok(_))) && first == [1]
}
