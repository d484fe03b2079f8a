//! The `Idempotency-Key` header: makes a creating request repeatable.

use crate::http::problem::Problem;
use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use std::fmt;

/// The header's name, as callers write it.
pub const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// Longest key, in characters.
const KEY_CHARS_MAX: usize = 255;

/// A key: 1 to 255 visible ASCII characters. As an extractor it is demanded; as an `Option` it may
/// be absent, but never malformed. What a key is scoped to is not its own business.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the header.
    ///
    /// # Errors
    ///
    /// `invalid-request` with the header as field: twice, empty, too long, or not visible ASCII.
    fn read(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let refuse = |detail: &str| Err(Problem::invalid(IDEMPOTENCY_KEY, detail));
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return refuse("the header comes twice");
        }
        let bytes = value.as_bytes();
        if bytes.is_empty() || bytes.len() > KEY_CHARS_MAX {
            return refuse("the key must have 1 to 255 characters");
        }
        if !bytes.iter().all(u8::is_ascii_graphic) {
            return refuse("the key may only have visible ASCII characters, without spaces");
        }
        Ok(Some(Self(bytes.iter().copied().map(char::from).collect())))
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(&parts.headers)?
            .ok_or_else(|| Problem::invalid(IDEMPOTENCY_KEY, "the header is required"))
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        Self::read(&parts.headers)
    }
}
