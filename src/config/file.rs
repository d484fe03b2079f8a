//! Reading a configuration file: TOML, unknown keys refused with their line, and overrides from the
//! environment.
//!
//! `CLAVIGER__SECTION__KEY=value` overrides `key` of `[section]`; for a list of tables the index stands
//! between them (`CLAVIGER__CHAIN__0__RPC=["http://…"]`). A value is read as TOML where it can be, and as
//! a plain string otherwise.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const PREFIX: &str = "CLAVIGER__";

/// Why a configuration cannot be used. The text is for an operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be; the text has the line.
    #[error("{}: {text}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        text: String,
    },
    /// An override names nothing that can be set.
    #[error("{variable}: {text}")]
    Override {
        /// The environment variable.
        variable: String,
        /// What is wrong with it.
        text: String,
    },
}

/// Reads a file, with the overrides of this process's environment.
///
/// # Errors
/// See [`ConfigError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    let overrides = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(PREFIX));
    parse(path, &text, overrides)
}

/// Reads a text, with these overrides.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    overrides: impl Iterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let wrong = |text: String| ConfigError::Wrong { path: path.to_owned(), text };
    let mut overrides: Vec<(String, String)> = overrides.collect();
    if overrides.is_empty() {
        return toml::from_str(text).map_err(|error| wrong(error.to_string()));
    }
    overrides.sort();
    let mut table: Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    for (variable, value) in overrides {
        set(&mut table, &variable, &value)
            .map_err(|text| ConfigError::Override { variable: variable.clone(), text })?;
    }
    T::deserialize(Value::Table(table)).map_err(|error| {
        // The merged table has no lines; the text has, if it is wrong in the same way by itself.
        let alone = toml::from_str::<T>(text).err();
        match alone.filter(|alone| alone.message() == error.message()) {
            Some(alone) => wrong(alone.to_string()),
            None => wrong(format!("with overrides of the environment: {error}")),
        }
    })
}

fn set(table: &mut Table, variable: &str, value: &str) -> Result<(), String> {
    let names = variable.strip_prefix(PREFIX).unwrap_or(variable).to_lowercase();
    let mut names: Vec<&str> = names.split("__").collect();
    let Some(key) = names.pop().filter(|key| !key.is_empty()) else {
        return Err("no key".to_owned());
    };
    let mut place = table;
    let mut names = names.into_iter().peekable();
    while let Some(name) = names.next() {
        let entry = place.entry(name).or_insert_with(|| Value::Table(Table::new()));
        place = match entry {
            Value::Table(inner) => inner,
            Value::Array(items) => {
                let index = names.next().and_then(|index| index.parse::<usize>().ok());
                let item = index.and_then(|index| items.get_mut(index));
                item.and_then(Value::as_table_mut)
                    .ok_or_else(|| format!("`{name}` is a list: name one of its indices"))?
            }
            _ => return Err(format!("`{name}` is not a section")),
        };
    }
    let is_text = place.get(key).is_some_and(Value::is_str);
    place.insert(key.to_owned(), read_value(value, is_text));
    Ok(())
}

fn read_value(value: &str, is_text: bool) -> Value {
    let plain = || Value::String(value.to_owned());
    if is_text {
        return plain();
    }
    let document = toml::from_str::<Table>(&format!("value = {value}")).ok();
    document.and_then(|mut document| document.remove("value")).unwrap_or_else(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        server: Server,
        #[serde(default)]
        chain: Vec<Chain>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Server {
        listen: String,
        workers: Option<u32>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Chain {
        rpc: Vec<String>,
    }

    fn parse_with(text: &str, overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let overrides = overrides.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        parse(Path::new("test.toml"), text, overrides)
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = parse_with("[server]\nlisten = \"a\"\nlistne = 1\n", &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 3") && text.contains("listne"), "{text}");
        let text = parse_with(
            "[server]\nlisten = \"a\"\nlistne = 1\n",
            &[("CLAVIGER__SERVER__WORKERS", "3")],
        )
        .unwrap_err()
        .to_string();
        assert!(text.contains("line 3") && text.contains("listne"), "{text}");
    }

    #[test]
    fn the_environment_overrides() {
        let config = parse_with(
            "[server]\nlisten = \"a\"\n[[chain]]\nrpc = [\"http://one\"]\n",
            &[
                ("CLAVIGER__SERVER__LISTEN", "127.0.0.1:1"),
                ("CLAVIGER__SERVER__WORKERS", "3"),
                ("CLAVIGER__CHAIN__0__RPC", "[\"http://two\"]"),
            ],
        )
        .unwrap();
        assert_eq!(config.server, Server { listen: "127.0.0.1:1".to_owned(), workers: Some(3) });
        assert_eq!(config.chain, [Chain { rpc: vec!["http://two".to_owned()] }]);
    }

    #[test]
    fn a_number_for_a_text_is_a_text() {
        let config =
            parse_with("[server]\nlisten = \"a\"\n", &[("CLAVIGER__SERVER__LISTEN", "7")]).unwrap();
        assert_eq!(config.server.listen, "7");
    }

    #[test]
    fn overrides_that_name_nothing_are_refused() {
        let text = "[server]\nlisten = \"a\"\n[[chain]]\nrpc = []\n";
        for name in ["CLAVIGER__SERVER__NOPE", "CLAVIGER__CHAIN__7__RPC", "CLAVIGER__NOPE__X"] {
            assert!(parse_with(text, &[(name, "1")]).is_err(), "{name}");
        }
        assert!(parse_with(text, &[("CLAVIGER__SERVER__LISTEN__X", "1")]).is_err());
    }
}
