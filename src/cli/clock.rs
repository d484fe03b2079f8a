//! `claviger clock confirm`

use crate::cli::args::ClockCommand;
use crate::cli::client::{Door, Remote};
use crate::cli::{Failure, print};
use crate::core::access::Role;
use crate::ports::clock::{Clock, Entropy};
use reqwest::Method;
use serde_json::{Value, json};

/// Runs a clock command.
///
/// # Errors
/// When the server is not reached or refuses.
pub async fn run(
    command: &ClockCommand,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    let ClockCommand::Confirm { remote, reason } = command;
    let server = Remote::new(remote, Role::Operator, clock, entropy)?;
    let body = json!({ "reason": reason });
    let path = "/admin/v1/clock/confirm";
    let done = server.call(Door::Admin, Method::POST, path, Some(&body)).await?;
    if remote.json {
        print::json(&done);
    } else {
        let at = done.get("confirmed_at").and_then(Value::as_str).unwrap_or("-");
        print::line(&format!("the server's clock says {at}, and windows go by it"));
    }
    Ok(())
}
