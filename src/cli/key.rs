//! `claviger key create|import|list`

use crate::cli::args::KeyCommand;
use crate::cli::client::{Door, Remote};
use crate::cli::{Failure, print};
use crate::core::access::Role;
use crate::ports::clock::{Clock, Entropy};
use reqwest::Method;
use serde_json::{Value, json};

/// Runs a key command.
///
/// # Errors
/// When the server is not reached or refuses.
pub async fn run(
    command: &KeyCommand,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { remote, label, group, mode, hsm } => {
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let body = json!({ "label": label, "group": group, "mode": mode, "hsm": hsm });
            let key = server.call(Door::Admin, Method::POST, "/admin/v1/keys", Some(&body)).await?;
            show(&[key], remote.json);
        }
        KeyCommand::Import { remote, cka_id, label, group, mode, hsm } => {
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let body = json!({
                "cka_id": cka_id, "label": label, "group": group, "mode": mode, "hsm": hsm,
            });
            let path = "/admin/v1/keys/import";
            let key = server.call(Door::Admin, Method::POST, path, Some(&body)).await?;
            show(&[key], remote.json);
        }
        // The program does these: they need the HSM.
        KeyCommand::Ceremony(_) | KeyCommand::CeremonyVerify(_) => {
            return Err(Failure::new("a ceremony asks no server"));
        }
        KeyCommand::List { remote } => {
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let found = server.call(Door::Admin, Method::GET, "/admin/v1/keys", None).await?;
            let keys = found.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
            show(&keys, remote.json);
        }
    }
    Ok(())
}

fn show(keys: &[Value], as_json: bool) {
    if as_json {
        print::json(&json!({ "keys": keys }));
        return;
    }
    const COLUMNS: [&str; 7] = ["id", "label", "hsm", "group", "mode", "state", "address"];
    let mut rows = vec![COLUMNS.map(str::to_uppercase).to_vec()];
    let cell =
        |key: &Value, name: &str| key.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    rows.extend(keys.iter().map(|key| COLUMNS.map(|name| cell(key, name)).to_vec()));
    print::table(&rows);
}
