//! `claviger token issue`

use crate::cli::args::TokenArgs;
use crate::cli::{Failure, load, print};
use crate::config::server::{ServerConfig, roles};
use crate::core::access::Role;
use crate::core::time::{Timestamp, duration_ms};
use crate::issuer::{Grant, issue};
use crate::ports::clock::{Clock, Entropy};
use serde_json::json;

/// Issues a token and prints it.
///
/// # Errors
/// When there is no development issuer, or a role is unknown.
pub fn run(args: &TokenArgs, clock: &dyn Clock, entropy: &dyn Entropy) -> Result<(), Failure> {
    let config = load::config(&args.config)?;
    let roles = roles(&args.roles).map_err(Failure::new)?;
    let ttl_ms = duration_ms(&args.ttl)
        .ok_or_else(|| Failure::new("--ttl must be a duration such as 15m"))?;
    let ttl_s = ttl_ms.checked_div(1000).unwrap_or(0);
    let token = development(&config, &args.sub, &roles, ttl_s, clock.now(), entropy)?;
    if args.json {
        let expires = clock.now().plus_millis(ttl_s.saturating_mul(1000)).to_string();
        print::json(&json!({ "token": token, "sub": args.sub, "expires_at": expires }));
    } else {
        print::line(&token);
    }
    Ok(())
}

/// A token of the development issuer.
///
/// # Errors
/// When there is none configured, or its key cannot be read.
pub fn development(
    config: &ServerConfig,
    sub: &str,
    roles: &[Role],
    ttl_s: i64,
    now: Timestamp,
    entropy: &dyn Entropy,
) -> Result<String, Failure> {
    let Some(development) = &config.auth.development else {
        return Err(Failure::new(
            "there is no [auth.development] issuer in this configuration; give --token-file",
        ));
    };
    let issuer = config.auth.issuers.iter().find(|issuer| issuer.iss == development.iss);
    let Some(issuer) = issuer else {
        return Err(Failure::new("[auth.development] iss is not an [[auth.issuer]]"));
    };
    let jti = entropy.uuid().to_string();
    let grant =
        Grant { iss: &development.iss, aud: &issuer.audience, sub, roles, ttl_s, jti: &jti };
    issue(&development.key_file, &grant, now).map_err(|e| Failure::of("token", e))
}
