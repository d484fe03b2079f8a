//! The parameters of the URL, strictly.

use crate::http::problem::Problem;
use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::Uri;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::str::FromStr;

/// Query parameters as a struct; it must have `deny_unknown_fields`, so that a misspelt filter is
/// refused rather than ignored. A parameter that comes twice is refused too.
#[derive(Clone, Copy, Debug)]
pub struct QueryParams<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        pairs(&parts.uri)?;
        let parsed = Query::<T>::try_from_uri(&parts.uri);
        parsed.map(|Query(value)| Self(value)).map_err(|rejection| query_problem(&rejection))
    }
}

/// Query parameters as they come, in order, for lists whose names are not all known beforehand
/// (`metadata.KEY`). The handler refuses what it does not know.
#[derive(Clone, Debug)]
pub struct QueryPairs(pub Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for QueryPairs {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        pairs(&parts.uri).map(Self)
    }
}

/// `limit` of a list: `default` where it is left out, at most `max`.
///
/// # Errors
/// When it is not a number from 1 to `max`.
pub fn page_limit(text: Option<&str>, default: i64, max: i64) -> Result<i64, Problem> {
    let Some(text) = text else {
        return Ok(default);
    };
    let limit = text.parse::<i64>().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| Problem::invalid("limit", format!("must be 1 to {max}")))
}

/// `cursor` of a list: where the page before ended.
///
/// # Errors
/// When no list gave it.
pub fn page_cursor<T: FromStr>(text: Option<&str>) -> Result<Option<T>, Problem> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|_| Problem::invalid("cursor", "is not one of ours"))
}

/// The one parameter of the path, such as an id. What does not parse is an `invalid-request`.
#[derive(Clone, Copy, Debug)]
pub struct PathId<T>(pub T);

impl<S, T> FromRequestParts<S> for PathId<T>
where
    S: Send + Sync,
    T: FromStr,
    T::Err: Display,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::invalid("path", "not UTF-8"))?;
        let mut params = params.iter();
        let (Some((name, text)), None) = (params.next(), params.next()) else {
            return Err(Problem::internal("PathId on a route without exactly one parameter"));
        };
        text.parse().map(Self).map_err(|error: T::Err| Problem::invalid(name, error.to_string()))
    }
}

/// The decoded pairs of a query.
///
/// # Errors
///
/// `invalid-request` for percent-encoded bytes that are not UTF-8, or for a name that comes twice.
fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    let query = uri.query().unwrap_or_default();
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        // Decoding replaces what is not UTF-8; nobody has an honest use for the replacement.
        if name.contains('\u{fffd}') || value.contains('\u{fffd}') {
            return Err(Problem::invalid("query", "not UTF-8"));
        }
        if pairs.iter().any(|(seen, _)| *seen == name) {
            return Err(Problem::invalid(name, "the parameter comes twice"));
        }
        pairs.push((name.into_owned(), value.into_owned()));
    }
    Ok(pairs)
}

/// axum puts the parameter's name before a colon, and serde an unknown name in backticks.
fn query_problem(rejection: &impl Display) -> Problem {
    let text = rejection.to_string();
    let detail = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, detail)| detail);
    let named = detail.split_once(": ").map(|(name, _)| name);
    let quoted = detail.split('`').nth(1);
    let field = named.filter(|name| !name.contains(' ')).or(quoted).unwrap_or("query");
    Problem::invalid(field, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::FromRequest;
    use axum::http::Request;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters here")]
    struct Page {
        limit: Option<u32>,
        cursor: Option<String>,
    }

    async fn read(query: &str) -> Result<Page, Problem> {
        let uri = format!("http://localhost/list?{query}");
        let request = Request::builder().uri(uri).body(axum::body::Body::empty()).unwrap();
        QueryParams::<Page>::from_request(request, &()).await.map(|QueryParams(page)| page)
    }

    #[tokio::test]
    async fn what_is_unknown_repeated_or_malformed_is_refused_by_name() {
        assert!(read("").await.is_ok());
        assert!(read("limit=5&cursor=abc").await.is_ok());
        for (query, named) in [
            ("limit=x", "limit"),
            ("limit=-1", "limit"),
            ("limt=5", "limt"),
            ("cursor=a&cursor=b", "cursor"),
            ("cursor=%ff", "query"),
        ] {
            match read(query).await {
                Err(Problem::InvalidRequest { field, .. }) => assert_eq!(field, named, "{query}"),
                other => panic!("{query}: {other:?}"),
            }
        }
    }
}
