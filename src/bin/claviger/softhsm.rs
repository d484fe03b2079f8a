//! SoftHSM reads its configuration from the environment. A process cannot safely change its own, so it
//! starts itself once more, with the same id and arguments, where `[hsm] softhsm_conf` says another file.

use claviger::cli::Failure;
use claviger::config::server::ServerConfig;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variable that SoftHSM reads.
pub const VARIABLE: &str = "SOFTHSM2_CONF";

/// Does not come back where the environment must be another.
///
/// # Errors
/// When this program cannot be started again.
pub fn with_its_environment(config: &ServerConfig) -> Result<(), Failure> {
    let Some(wanted) = config.hsm.iter().find_map(|hsm| hsm.softhsm_conf.as_ref()) else {
        return Ok(());
    };
    if std::env::var_os(VARIABLE).is_some_and(|set| set == wanted.as_os_str()) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| Failure::of("own path", e))?;
    let failed =
        Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, wanted).exec();
    Err(Failure::of("cannot start again with the HSM's environment", failed))
}
