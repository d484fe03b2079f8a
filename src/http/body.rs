//! The body of a request, as strict JSON.

use crate::http::json;
use crate::http::limits::BodyTime;
use crate::http::problem::Problem;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// A JSON body, parsed strictly, with the bytes it came as.
///
/// `T` must have `deny_unknown_fields`. Put it last, after [`crate::http::caller::Caller`]. As an
/// `Option` it is `None` where there is neither a body nor a content type.
#[derive(Clone, Debug)]
pub struct JsonBody<T> {
    /// The value.
    pub value: T,
    /// The body, byte for byte.
    pub bytes: Bytes,
    /// SHA-256 of the bytes: what an idempotency key is bound to.
    pub sha256: [u8; 32],
}

impl<T: DeserializeOwned> JsonBody<T> {
    fn parse(headers: &HeaderMap, bytes: Bytes) -> Result<Self, Problem> {
        if !is_json(headers) {
            return Err(Problem::UnsupportedMediaType);
        }
        let value = json::from_slice(&bytes)?;
        let sha256 = Sha256::digest(&bytes).into();
        Ok(Self { value, bytes, sha256 })
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        if !is_json(&headers) {
            return Err(Problem::UnsupportedMediaType);
        }
        Self::parse(&headers, read(request, state).await?)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> OptionalFromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        let headers = request.headers().clone();
        let bytes = read(request, state).await?;
        if bytes.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            return Ok(None);
        }
        Self::parse(&headers, bytes).map(Some)
    }
}

/// A body of any kind, within the listener's limits.
#[derive(Clone, Debug)]
pub struct RawBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        read(request, state).await.map(Self)
    }
}

/// Reads the whole body. The length is limited by axum's `DefaultBodyLimit`, which the listener
/// sets; the time by the listener's [`BodyTime`].
async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let BodyTime(limit) = request.extensions().get::<BodyTime>().copied().unwrap_or_default();
    match tokio::time::timeout(limit, Bytes::from_request(request, state)).await {
        Err(_elapsed) => Err(Problem::Timeout),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)))) => {
            Err(Problem::TooLarge)
        }
        // The connection broke off, or the chunks are malformed.
        Ok(Err(_)) => Err(Problem::invalid("body", "the body could not be read to its end")),
    }
}

/// `application/json`, once, with no parameter but `charset=utf-8` (RFC 8259 section 11).
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let Ok(text) = value.to_str() else {
        return false;
    };
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    media_type.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| {
            parameter.eq_ignore_ascii_case("charset=utf-8")
                || parameter.eq_ignore_ascii_case(r#"charset="utf-8""#)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_json_in_utf8_is_json() {
        for (value, yes) in [
            ("application/json", true),
            ("Application/JSON; charset=UTF-8", true),
            ("application/json;charset=\"utf-8\"", true),
            ("application/json; charset=latin-1", false),
            ("application/json; boundary=x", false),
            ("application/jsonp", false),
            ("text/json", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(value).unwrap());
            assert_eq!(is_json(&headers), yes, "{value}");
            headers.append(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            assert!(!is_json(&headers), "twice: {value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
