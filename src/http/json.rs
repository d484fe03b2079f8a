//! Strict JSON: no duplicate keys anywhere, nothing after the value, and errors that name the field.

use crate::http::problem::Problem;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// How `serde_json` marks, inside its own data model, a number that is kept as text. A document
/// that spells such a key could make a map pass for a number, so the name is not for callers.
const RESERVED_KEY: &str = "$serde_json::private::";

/// Reads one JSON value (RFC 8259, strictly I-JSON in its keys: RFC 7493 section 2.3).
///
/// # Errors
///
/// [`Problem::InvalidRequest`] with the path of the field, or `body` where there is none.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Problem::invalid("body", format!("not UTF-8 at byte {at}"))
    })?;
    if text.contains(RESERVED_KEY) {
        return Err(Problem::invalid("body", "a key is reserved"));
    }
    // `deny_unknown_fields` already refuses duplicates of known fields; this walk refuses them
    // inside free-form values too, where the last one would win silently.
    parse::<UniqueKeys>(text)?;
    parse(text)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        // A question mark stands for a key that was not read to its end.
        let field = match path.trim_end_matches(".?") {
            "" | "." | "?" => "body",
            path => path,
        };
        Problem::invalid(field, error.inner().to_string())
    })?;
    reader.end().map_err(|error| Problem::invalid("body", error.to_string()))?;
    Ok(value)
}

/// Any JSON value whose objects have no duplicate keys; keeps nothing.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Walk)
    }
}

struct Walk;

impl<'de> Visitor<'de> for Walk {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<UniqueKeys, A::Error> {
        while seq.next_element::<UniqueKeys>()?.is_some() {}
        Ok(UniqueKeys)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
        let mut seen = HashSet::new();
        while let Some(Key(key, escaped)) = map.next_key::<Key>()? {
            // An escape can spell the reserved key past the search through the raw text.
            if escaped && key.starts_with(RESERVED_KEY) {
                return Err(A::Error::custom("a key is reserved"));
            }
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            map.next_value::<UniqueKeys>()?;
            seen.insert(key);
        }
        Ok(UniqueKeys)
    }
}

/// A key, and whether it was written with escapes: then it cannot be borrowed from the text.
struct Key(String, bool);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key, E> {
                Ok(Key(key.to_owned(), false))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(Key(key.to_owned(), true))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters here")]
    struct Order {
        value: String,
        list: Option<Vec<Item>>,
        metadata: Option<Value>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters here")]
    struct Item {
        address: String,
    }

    fn refused(text: &str) -> (String, String) {
        match from_slice::<Order>(text.as_bytes()) {
            Err(Problem::InvalidRequest { field, detail }) => (field, detail),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_error_names_the_field() {
        let cases = [
            (r#"{"value":1}"#, "value", "invalid type: integer `1`, expected a string"),
            (r#"{"valeu":"1"}"#, "valeu", "unknown field `valeu`"),
            (r#"{"value":"1","list":[{"address":"a"},{"address":2}]}"#, "list[1].address", ""),
            (r#"{}"#, "body", "missing field `value`"),
            (r#"{"value":"1"} {}"#, "body", "trailing characters"),
            ("", "body", "EOF"),
            ("{", "body", "EOF"),
            (r#"{"value":"1","metadata":{"a"#, "metadata", "EOF"),
            ("[]", "body", ""),
        ];
        for (text, field, detail) in cases {
            let (got_field, got_detail) = refused(text);
            assert_eq!(got_field, field, "{text}: {got_detail}");
            assert!(got_detail.contains(detail), "{text}: {got_detail}");
        }
    }

    #[test]
    fn duplicates_are_refused_at_every_depth() {
        for text in [
            r#"{"value":"1","value":"2"}"#,
            r#"{"value":"1","\u0076alue":"2"}"#,
            r#"{"value":"1","metadata":{"a":{"b":1,"b":2}}}"#,
            r#"{"value":"1","metadata":[{"a":1,"a":1}]}"#,
        ] {
            let (_, detail) = refused(text);
            assert!(detail.contains("duplicate field"), "{text}: {detail}");
        }
    }

    #[test]
    fn a_map_cannot_pass_for_a_number() {
        for text in [
            r#"{"value":"1","metadata":{"$serde_json::private::Number":"1"}}"#,
            r#"{"value":"1","metadata":{"\u0024serde_json::private::Number":"1"}}"#,
        ] {
            assert_eq!(refused(text).1.split(" at ").next(), Some("a key is reserved"));
        }
        let long = r#"{"value":"1","metadata":{"n":123456789012345678901234567890.5e3}}"#;
        assert!(from_slice::<Order>(long.as_bytes()).is_ok());
    }

    #[test]
    fn text_that_is_not_utf8_or_too_deep_is_refused() {
        let bad = [b'{', b'"', 0xff];
        assert!(matches!(
            from_slice::<Order>(&bad),
            Err(Problem::InvalidRequest { detail, .. }) if detail == "not UTF-8 at byte 2"
        ));
        let (_, detail) = refused(&format!(r#"{{"metadata":{}"#, "[".repeat(10_000)));
        assert!(detail.contains("recursion limit"), "{detail}");
    }
}
