//! `[store]`: where a program's database is.

use serde::Deserialize;
use std::path::PathBuf;

/// `[store]`: exactly one of its keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSection {
    /// `sqlite:PATH` (one server process) or `postgres://…` (several).
    pub url: Option<String>,
    /// A file that holds the URL, for URLs with a password.
    pub url_file: Option<PathBuf>,
}

/// Why there is no URL; the section is not named.
#[derive(Debug, thiserror::Error)]
pub enum StoreUrlError {
    /// None, or both.
    #[error("needs exactly one of `url` and `url_file`")]
    NotOne,
    /// The file cannot be read.
    #[error("url_file {path}: {reason}", path = .0.display(), reason = .1)]
    Unreadable(PathBuf, std::io::Error),
}

impl StoreSection {
    /// Whether exactly one of the keys is there; reads no file.
    ///
    /// # Errors
    /// [`StoreUrlError::NotOne`].
    pub fn check(&self) -> Result<(), StoreUrlError> {
        if self.url.is_some() == self.url_file.is_some() {
            return Err(StoreUrlError::NotOne);
        }
        Ok(())
    }

    /// The URL, from the configuration or from its file, which is read anew.
    ///
    /// # Errors
    /// When there is none, or its file cannot be read.
    pub fn read_url(&self) -> Result<String, StoreUrlError> {
        self.check()?;
        match (&self.url, &self.url_file) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map(|url| url.trim().to_owned())
                .map_err(|error| StoreUrlError::Unreadable(file.clone(), error)),
            (None, None) => Err(StoreUrlError::NotOne),
        }
    }
}
