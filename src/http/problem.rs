//! Every answer that is not a success, as RFC 9457 `application/problem+json`.
//!
//! A [`Problem`] is typed: what it carries may be shown. The one exception is [`Cause`], which is
//! logged, once, with the request's id, and never shown. `docs/problems.md` explains each code.

pub use crate::http::code::Code;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The media type of a problem document (RFC 9457 section 3).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Seconds a caller is told to wait where we know nothing better.
const RETRY_AFTER_S: u32 = 2;

/// As long as people take.
const RETRY_AFTER_PEOPLE_S: u32 = 60;

/// Longest `detail`, in characters: it may quote what the caller sent.
const DETAIL_CHARS_MAX: usize = 400;

/// Why something failed inside. Logged once, never shown.
#[derive(Clone, Debug)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Wraps any error, or a sentence.
    #[must_use]
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// What went wrong, in words that the caller may see.
#[derive(Clone, Debug)]
pub enum Problem {
    /// 400. The request is malformed.
    InvalidRequest {
        /// The path of the field (`access_list[0].address`), a header's name, or `body`.
        field: String,
        /// What is wrong with it.
        detail: String,
    },
    /// 401 with `WWW-Authenticate: Bearer`.
    Unauthenticated {
        /// What is wrong with the token.
        detail: String,
        /// Whether a token came at all (RFC 6750 section 3.1: then `error="invalid_token"`).
        presented: bool,
    },
    /// 403. Policy denies.
    PolicyDenied {
        /// The reasons, as the policy's verdict gives them.
        reasons: Vec<Value>,
    },
    /// 403. The caller is known and may not do this.
    Forbidden {
        /// Why not.
        detail: String,
    },
    /// 404. Also for what exists and is not the caller's.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 408.
    Timeout,
    /// 409. The key was used with another body.
    IdempotencyMismatch {
        /// The resource that the key made.
        resource: String,
    },
    /// 409. The state does not allow it.
    Conflict {
        /// What stands in the way.
        detail: String,
        /// The resource in question.
        resource: Option<String>,
    },
    /// 410. A stream of events cannot go on where the reader left off.
    StreamGone {
        /// Why not, and what to do.
        detail: String,
    },
    /// 409. A nonce was given for a managed key.
    NonceManaged,
    /// 409. The account cannot pay for it.
    InsufficientBalance {
        /// What it needs, and what there is.
        detail: String,
    },
    /// 413.
    TooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 422. The call does not decode.
    NotDecodable {
        /// What was not understood.
        detail: String,
    },
    /// 422. The chain says it would revert.
    WouldRevert {
        /// The revert's reason, as far as the chain gave one.
        detail: String,
    },
    /// 423. A freeze is engaged.
    Frozen {
        /// What is frozen.
        detail: String,
    },
    /// 429.
    RateLimited {
        /// Seconds until the next request has a chance.
        retry_after_s: u32,
    },
    /// 429. As many requests of this principal wait for time or people as may.
    TooManyWaiting {
        /// How many, and what to do.
        detail: String,
    },
    /// 500.
    Internal(Cause),
    /// 503. The HSM does not answer.
    HsmUnavailable(Option<Cause>),
    /// 503. The HSM does not answer while it makes a key.
    KeyBegun(Cause),
    /// 503. The HSM is known to be down.
    HsmDown {
        /// What it said.
        cause: Cause,
        /// Seconds until it is looked at again.
        retry_after_s: u32,
    },
    /// 503. The database does not answer.
    StoreUnavailable(Option<Cause>),
    /// 503. No node of the chain answers.
    ChainUnavailable(Option<Cause>),
    /// 503. The keys of the token's issuer cannot be had.
    IssuerUnavailable(Option<Cause>),
    /// 503. More work than we take on.
    Overloaded,
    /// 503. The clock has jumped.
    ClockUnconfirmed {
        /// What was found.
        detail: String,
    },
    /// 503. The database may be older than the chain.
    ReconcileRequired {
        /// What was found.
        detail: String,
    },
}

impl Problem {
    /// A malformed field.
    #[must_use]
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::InvalidRequest { field: field.into(), detail: detail.into() }
    }

    /// A failure inside; the cause is logged and not shown.
    #[must_use]
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Internal(Cause::new(cause))
    }

    /// A caller who may not do this.
    #[must_use]
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::Forbidden { detail: detail.into() }
    }

    /// The document, and what is to be logged with it. The only place where a problem becomes
    /// something to show; there is no wildcard, so a new problem cannot be shown by accident.
    #[must_use]
    pub fn document(self) -> Document {
        match self {
            Self::InvalidRequest { field, detail } => {
                Document { field: Some(clip(field)), ..say(Code::InvalidRequest, detail) }
            }
            Self::Unauthenticated { detail, presented } => {
                Document { token_presented: presented, ..say(Code::Unauthenticated, detail) }
            }
            Self::PolicyDenied { reasons } => Document {
                reasons: Some(reasons),
                ..say(Code::PolicyDenied, "the active bundle's grants do not cover the request")
            },
            Self::Forbidden { detail } => say(Code::Forbidden, detail),
            Self::NotFound => say(Code::NotFound, "nothing is found here for this caller"),
            Self::MethodNotAllowed => say(Code::MethodNotAllowed, "see the Allow header"),
            Self::Timeout => say(Code::Timeout, "the request did not end within its time limit"),
            Self::IdempotencyMismatch { resource } => Document {
                resource: Some(resource),
                ..say(Code::IdempotencyMismatch, "this key came before, with another body")
            },
            Self::Conflict { detail, resource } => {
                Document { resource, ..say(Code::Conflict, detail) }
            }
            Self::StreamGone { detail } => say(Code::Gone, detail),
            Self::NonceManaged => say(Code::NonceManaged, "ask for a transaction, without a nonce"),
            Self::InsufficientBalance { detail } => say(Code::InsufficientBalance, detail),
            Self::TooLarge => say(Code::TooLarge, "the body is longer than this listener takes"),
            Self::UnsupportedMediaType => {
                say(Code::UnsupportedMediaType, "send content-type: application/json")
            }
            Self::NotDecodable { detail } => say(Code::NotDecodable, detail),
            Self::WouldRevert { detail } => say(Code::WouldRevert, detail),
            Self::Frozen { detail } => say(Code::Frozen, detail),
            Self::RateLimited { retry_after_s } => Document {
                retry_after_s: Some(retry_after_s),
                ..say(Code::RateLimited, "slow down, and see the Retry-After header")
            },
            Self::TooManyWaiting { detail } => Document {
                retry_after_s: Some(RETRY_AFTER_PEOPLE_S),
                ..say(Code::RateLimited, detail)
            },
            Self::Internal(cause) => Document {
                cause: Some(cause),
                ..say(Code::Internal, "the cause is in the server's log, under the request id")
            },
            Self::HsmUnavailable(cause) => Document::unavailable(Code::HsmUnavailable, cause),
            Self::KeyBegun(cause) => Document {
                retry_after_s: Some(RETRY_AFTER_S),
                cause: Some(cause),
                ..say(
                    Code::HsmUnavailable,
                    "the key was begun and may be finished within minutes: look into the list of keys before \
                     the request is sent again, which makes another one",
                )
            },
            Self::HsmDown { cause, retry_after_s } => Document {
                retry_after_s: Some(retry_after_s),
                ..Document::unavailable(Code::HsmUnavailable, Some(cause))
            },
            Self::StoreUnavailable(cause) => Document::unavailable(Code::StoreUnavailable, cause),
            Self::ChainUnavailable(cause) => Document::unavailable(Code::ChainUnavailable, cause),
            Self::IssuerUnavailable(cause) => Document::unavailable(Code::IssuerUnavailable, cause),
            Self::Overloaded => Document::unavailable(Code::Overloaded, None),
            Self::ClockUnconfirmed { detail } => Document {
                retry_after_s: Some(RETRY_AFTER_PEOPLE_S),
                ..say(
                    Code::ClockUnconfirmed,
                    format!(
                        "nothing was done, and nothing that uses windows is decided until an operator has run `claviger clock confirm`: {detail}"
                    ),
                )
            },
            Self::ReconcileRequired { detail } => Document {
                retry_after_s: Some(RETRY_AFTER_PEOPLE_S),
                ..say(
                    Code::ReconcileRequired,
                    format!(
                        "nothing was done, and nothing is signed until an operator has run `claviger reconcile`: {detail}"
                    ),
                )
            },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.document().into_response()
    }
}

/// A problem as it is sent.
#[derive(Clone, Debug)]
pub struct Document {
    /// Which problem it is.
    pub code: Code,
    detail: String,
    field: Option<String>,
    reasons: Option<Vec<Value>>,
    resource: Option<String>,
    retry_after_s: Option<u32>,
    token_presented: bool,
    /// What to log; never sent.
    pub cause: Option<Cause>,
    request_id: Option<String>,
}

/// RFC 9457 section 3.1 and its extension members (3.2).
#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    type_uri: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<&'a [Value]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl Document {
    fn unavailable(code: Code, cause: Option<Cause>) -> Self {
        let detail = "nothing was done; the same request may be sent again";
        Self { retry_after_s: Some(RETRY_AFTER_S), cause, ..say(code, detail) }
    }

    /// The same document with the request's id, which only the outermost layer knows.
    #[must_use]
    pub fn with_request_id(self, request_id: impl Into<String>) -> Self {
        Self { request_id: Some(request_id.into()), ..self }
    }

    /// The JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let wire = Wire {
            type_uri: self.code.type_uri(),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: &self.detail,
            code: self.code.name(),
            field: self.field.as_deref(),
            reasons: self.reasons.as_deref(),
            resource: self.resource.as_deref(),
            request_id: self.request_id.as_deref(),
        };
        // Strings and values only: this cannot fail, and an empty body is the honest rest.
        serde_json::to_string(&wire).unwrap_or_default()
    }
}

impl IntoResponse for Document {
    /// The document stays in the response's extensions, so that the outermost layer can render it
    /// again with the request's id, and log its cause.
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), self.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthenticated {
            let challenge = if self.token_presented {
                r#"Bearer realm="claviger", error="invalid_token""#
            } else {
                r#"Bearer realm="claviger""#
            };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// A document with nothing but its code and detail.
fn say(code: Code, detail: impl Into<String>) -> Document {
    Document {
        code,
        detail: clip(detail.into()),
        field: None,
        reasons: None,
        resource: None,
        retry_after_s: None,
        token_presented: false,
        cause: None,
        request_id: None,
    }
}

/// Cuts a text that may quote the caller's input.
fn clip(text: String) -> String {
    match text.char_indices().nth(DETAIL_CHARS_MAX) {
        None => text,
        Some((at, _)) => text.get(..at).map_or_else(String::new, |head| format!("{head}…")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_section_and_every_section_a_code() {
        let page = include_str!("../../docs/problems.md");
        let sections: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(sections, codes, "docs/problems.md, in the order of the enum");
        for code in Code::ALL {
            let says = format!("`{}`, {}", code.type_uri(), code.status().as_u16());
            assert!(page.contains(&says), "docs/problems.md should say {says}");
        }
    }

    #[test]
    fn a_cause_is_never_in_the_document() {
        let document = Problem::internal("SELECT * FROM keys").document();
        assert!(!document.to_json().contains("SELECT"));
        assert_eq!(document.cause.unwrap().to_string(), "SELECT * FROM keys");
        let document = Problem::StoreUnavailable(Some(Cause::new("10.0.0.1 refused"))).document();
        assert!(!document.to_json().contains("10.0.0.1"));
    }

    #[test]
    fn every_503_and_429_says_when_to_come_back() {
        let problems = [
            Problem::RateLimited { retry_after_s: 7 },
            Problem::HsmUnavailable(None),
            Problem::HsmDown { cause: Cause::new("CKR_DEVICE_ERROR"), retry_after_s: 17 },
            Problem::StoreUnavailable(None),
            Problem::ChainUnavailable(None),
            Problem::IssuerUnavailable(None),
            Problem::Overloaded,
            Problem::ReconcileRequired { detail: String::new() },
            Problem::ClockUnconfirmed { detail: String::new() },
        ];
        for problem in problems {
            let response = problem.into_response();
            assert!(response.headers().contains_key(RETRY_AFTER), "{}", response.status());
        }
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let document = Problem::forbidden("é".repeat(5_000)).document();
        assert_eq!(document.detail.chars().count(), DETAIL_CHARS_MAX + 1);
    }
}
