//! Reading leaves back. Only bytes that [`Leaf::encode`](super::Leaf::encode) could have written are a
//! leaf: they are read, written again by the one encoding, and compared.

use super::{DENIED_TEXT_MAX, INLINE_TEXT_MAX, LEAF_BYTES_MAX, LeafKind};
use crate::core::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Keys whose text is somebody's own words: it is never the name of a long text, whatever it looks like.
/// Callers' and operators' words are short enough to stand in the leaf itself.
const LITERAL_KEYS: [&str; 3] = ["iss", "sub", "reason"];

/// A value of a leaf that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

/// Why bytes are not a leaf.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotALeaf {
    /// Longer than a leaf may be.
    #[error("it has {0} bytes, and the longest leaf has {LEAF_BYTES_MAX}")]
    TooLong(usize),
    /// Not an object of strings, lists and objects.
    #[error("it is not a JSON object of strings, lists and objects")]
    NotJson,
    /// The same content is written in another way.
    #[error("it is not written in the one encoding of leaves")]
    NotCanonical,
    /// A key that every leaf of its kind has is not there, or is no text.
    #[error("it has no `{0}`")]
    Missing(&'static str),
    /// A version that this program does not know.
    #[error("it has version `{0}`")]
    Version(String),
    /// A kind that this program does not know.
    #[error("it is of an unknown kind `{0}`")]
    UnknownKind(String),
    /// Not RFC 3339 in UTC with milliseconds.
    #[error("its time is `{0}`")]
    Time(String),
}

/// A text that is kept beside the log, as a leaf names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongText {
    /// SHA-256 of the text.
    pub hash: [u8; 32],
    /// Its length in bytes.
    pub length: u64,
    /// Whether it had to be kept: a denied request's longest texts are not.
    pub is_kept: bool,
}

/// A leaf that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLeaf {
    /// What it records.
    pub kind: LeafKind,
    /// What it is about.
    pub id: String,
    fields: BTreeMap<String, Value>,
}

impl ReadLeaf {
    /// Reads a leaf.
    ///
    /// # Errors
    /// See [`NotALeaf`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotALeaf> {
        if bytes.len() > LEAF_BYTES_MAX {
            return Err(NotALeaf::TooLong(bytes.len()));
        }
        let fields: BTreeMap<String, Value> =
            serde_json::from_slice(bytes).map_err(|_| NotALeaf::NotJson)?;
        let again = serde_json::to_vec(&fields).map_err(|_| NotALeaf::NotJson)?;
        if again != bytes {
            return Err(NotALeaf::NotCanonical);
        }
        let text = |key: &'static str| match fields.get(key) {
            Some(Value::Text(text)) => Ok(text.clone()),
            _ => Err(NotALeaf::Missing(key)),
        };
        let (version, kind, at, id) = (text("v")?, text("kind")?, text("at")?, text("id")?);
        if version != "1" {
            return Err(NotALeaf::Version(version));
        }
        let Some(kind) = LeafKind::from_name(&kind) else {
            return Err(NotALeaf::UnknownKind(kind));
        };
        if Timestamp::parse_rfc3339(&at).is_none_or(|read| read.to_string() != at) {
            return Err(NotALeaf::Time(at));
        }
        if matches!(kind, LeafKind::Decided | LeafKind::Signed) {
            text("attempt")?;
            text("digest")?;
        }
        Ok(Self { kind, id, fields })
    }

    /// A text of it.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.fields.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The texts that it names and that are kept beside the log.
    #[must_use]
    pub fn long_texts(&self) -> Vec<LongText> {
        let mut found = Vec::new();
        for (key, value) in &self.fields {
            if !LITERAL_KEYS.contains(&key.as_str()) {
                self.collect(value, &mut found);
            }
        }
        found
    }

    fn collect(&self, value: &Value, found: &mut Vec<LongText>) {
        match value {
            Value::Text(text) => found.extend(self.long_text(text)),
            Value::List(items) => items.iter().for_each(|item| self.collect(item, found)),
            Value::Map(map) => map.values().for_each(|item| self.collect(item, found)),
        }
    }

    /// Reads `sha256:HEX:LENGTH`.
    fn long_text(&self, text: &str) -> Option<LongText> {
        let (digits, length) = text.strip_prefix("sha256:")?.split_once(':')?;
        let hash: [u8; 32] = hex::decode(digits).ok()?.try_into().ok()?;
        let size: usize = length.parse().ok()?;
        let exact = hex::encode(hash) == digits && size.to_string() == length;
        let is_kept = self.kind != LeafKind::Denied || size <= DENIED_TEXT_MAX;
        let length = u64::try_from(size).ok()?;
        (exact && size > INLINE_TEXT_MAX).then_some(LongText { hash, length, is_kept })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Leaf, Value as Written};
    use super::*;

    fn encoded(kind: LeafKind, key: &'static str, text: &str) -> Vec<u8> {
        let leaf = Leaf::new(kind, "subject", Timestamp::from_millis(1)).with(key, text);
        leaf.with("attempt", 1).with("digest", "0x00").encode().unwrap().bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for kind in LeafKind::ALL {
            let list = Written::List(vec!["\u{1}\u{1f} \"\\/\n\u{7f}\u{2028}é😀".into()]);
            let leaf = Leaf::new(kind, "subject", Timestamp::from_millis(1))
                .with("attempt", 1)
                .with("digest", "0x00")
                .with("list", list);
            let read = ReadLeaf::parse(&leaf.encode().unwrap().bytes).unwrap();
            assert_eq!((read.kind, read.id.as_str()), (kind, "subject"));
            assert_eq!(read.text("attempt"), Some("1"));
        }
    }

    #[test]
    fn the_same_content_in_another_form_is_not_a_leaf() {
        let good = String::from_utf8(encoded(LeafKind::Alarm, "what", "x/y")).unwrap();
        ReadLeaf::parse(good.as_bytes()).unwrap();
        for (from, to) in [
            ("{\"at\"", "{ \"at\""),
            ("\"what\":\"x/y\"", "\"what\":\"x\\/y\""),
            ("\"what\":\"x/y\"", "\"what\":\"\\u0078/y\""),
            ("{\"at\"", "{\"v\":\"1\",\"at\""),
            ("x/y\"}", "x/y\"}\n"),
        ] {
            let other = good.replacen(from, to, 1);
            assert_ne!(other, good);
            assert_eq!(ReadLeaf::parse(other.as_bytes()), Err(NotALeaf::NotCanonical), "{other}");
        }
        for (from, to) in [("\"v\":\"1\"", "\"v\":1"), ("\"x/y\"", "null"), ("}", "")] {
            let other = good.replacen(from, to, 1);
            assert_eq!(ReadLeaf::parse(other.as_bytes()), Err(NotALeaf::NotJson), "{other}");
        }
    }

    #[test]
    fn a_leaf_of_no_known_version_kind_or_time_is_refused() {
        let good = String::from_utf8(encoded(LeafKind::Alarm, "what", "x")).unwrap();
        let read = |from: &str, to: &str| ReadLeaf::parse(good.replacen(from, to, 1).as_bytes());
        assert_eq!(read("\"v\":\"1\"", "\"v\":\"2\""), Err(NotALeaf::Version("2".to_owned())));
        assert_eq!(read("ALARM", "ALERT"), Err(NotALeaf::UnknownKind("ALERT".to_owned())));
        assert!(matches!(read(".001Z", "Z"), Err(NotALeaf::Time(_))));
        assert_eq!(read("\"id\"", "\"ie\""), Err(NotALeaf::Missing("id")));
        let decided = good.replacen("ALARM", "SIGNED", 1).replacen("digest", "digesu", 1);
        assert_eq!(ReadLeaf::parse(decided.as_bytes()), Err(NotALeaf::Missing("digest")));
        let long = vec![b' '; LEAF_BYTES_MAX + 1];
        assert_eq!(ReadLeaf::parse(&long), Err(NotALeaf::TooLong(LEAF_BYTES_MAX + 1)));
    }

    #[test]
    fn long_texts_are_found_by_name_and_peoples_own_words_are_not_names() {
        let text = "x".repeat(INLINE_TEXT_MAX + 1);
        let read = ReadLeaf::parse(&encoded(LeafKind::Decided, "decision", &text)).unwrap();
        let found = read.long_texts();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].length, found[0].is_kept), (4097, true));

        let text = "x".repeat(DENIED_TEXT_MAX + 1);
        let read = ReadLeaf::parse(&encoded(LeafKind::Denied, "decision", &text)).unwrap();
        assert!(!read.long_texts()[0].is_kept);

        let name = format!("sha256:{}:4097", "0".repeat(64));
        let of = |key, name: &str| {
            ReadLeaf::parse(&encoded(LeafKind::KeyCreated, key, name)).unwrap().long_texts().len()
        };
        assert_eq!((of("sub", &name), of("reason", &name)), (0, 0));
        assert_eq!(of("label", &name), 1);
        for other in ["sha256:00:4097", &name.replace("4097", "4096"), &name.replace(":4", ":04")] {
            assert_eq!(of("label", other), 0, "{other}");
        }
    }
}
