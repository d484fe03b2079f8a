//! `claviger audit` as a program.

use crate::support::server::BIN;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The JSON of a command that was content.
    pub fn ok(&self) -> Value {
        assert_eq!(self.code, 0, "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:#?}"))
    }

    /// First and last leaf that may be the first bad one, and why.
    pub fn bad(&self) -> (Option<u64>, Option<u64>, String) {
        assert_eq!(self.code, 1, "{self:#?}");
        let told: Value = serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:#?}"));
        assert_eq!(told["ok"], false);
        let why = told["why"].as_str().unwrap().to_owned();
        assert!(self.err.contains(&why), "{self:#?}");
        (told["first_bad_index"].as_u64(), told["first_bad_index_max"].as_u64(), why)
    }

    /// The one leaf that is bad, and why.
    pub fn bad_leaf(&self) -> (u64, String) {
        let (first, last, why) = self.bad();
        assert_eq!(first, last, "{self:#?}");
        assert!(self.err.contains(&format!("leaf {}: ", first.unwrap())), "{self:#?}");
        (first.unwrap(), why)
    }
}

fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code().expect("it ends by itself"),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn claviger<A: AsRef<OsStr>>(args: &[A], envs: &[(&str, &str)]) -> Ran {
    let envs = envs.iter().copied();
    ran(&Command::new(BIN).args(args).envs(envs).output().expect("the program runs"))
}

/// `claviger audit export --json`, of another database if one is given.
pub fn export(config: &Path, out: &Path, database: Option<&Path>) -> Ran {
    let url = database.map(|path| format!("sqlite:{}", path.display()));
    let envs: Vec<(&str, &str)> = url.iter().map(|url| ("CLAVIGER__STORE__URL", &**url)).collect();
    let (config, out) = (config.display().to_string(), out.display().to_string());
    claviger(&["audit", "export", "--config", &config, "--out", &out, "--json"], &envs)
}

/// `claviger audit verify --json`, with more arguments.
pub fn verify(export: &Path, key: &Path, more: &[(&str, &Path)]) -> Ran {
    let mut args = vec!["audit".to_owned(), "verify".to_owned(), "--json".to_owned()];
    for (name, path) in [("--export", export), ("--key", key)].iter().chain(more) {
        args.push((*name).to_owned());
        args.push(path.display().to_string());
    }
    claviger(&args, &[])
}
