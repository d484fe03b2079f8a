//! Calling the server, for commands.

use crate::cli::args::RemoteArgs;
use crate::cli::{Failure, load, token};
use crate::config::server::ServerConfig;
use crate::core::access::Role;
use crate::ports::clock::{Clock, Entropy};
use reqwest::{Client, Method};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `/v1`
    Client,
    /// `/admin/v1`
    Admin,
}

/// A server to call, with the token to call it with.
#[derive(Debug)]
pub struct Remote {
    client: Client,
    config: ServerConfig,
    token: String,
}

impl Remote {
    /// Reads addresses from the configuration, and the token from its file or from the development issuer.
    ///
    /// # Errors
    /// When there is no token to be had.
    pub fn new(
        args: &RemoteArgs,
        role: Role,
        clock: &dyn Clock,
        entropy: &dyn Entropy,
    ) -> Result<Self, Failure> {
        let config = load::config(&args.config)?;
        let token = match &args.token_file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|e| Failure::of(&file.display().to_string(), e))?
                .trim()
                .to_owned(),
            None => token::development(&config, "dev:cli", &[role], 60, clock.now(), entropy)?,
        };
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| Failure::of("client", e))?;
        Ok(Self { client, config, token })
    }

    /// Calls and reads the answer.
    ///
    /// # Errors
    /// When the server is not reached, or refuses: the problem's title, detail and reasons.
    pub async fn call(
        &self,
        door: Door,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let address = match door {
            Door::Client => self.config.server.listen,
            Door::Admin => self.config.server.admin_listen,
        };
        let scheme = if self.config.server.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", reachable(address));
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request
            .send()
            .await
            .map_err(|e| Failure::new(format!("the server at {address} does not answer: {e}")))?;
        let status = answer.status();
        let value: Value = answer.json().await.map_err(|e| Failure::of("answer", e))?;
        if status.is_success() {
            return Ok(value);
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let reasons = value.get("reasons").map(|r| format!("\n{r:#}")).unwrap_or_default();
        Err(Failure::new(format!(
            "{} {}: {} ({}){reasons}",
            status.as_u16(),
            text("code"),
            text("detail"),
            text("request_id"),
        )))
    }
}

/// A listener on all addresses is called on the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
