//! `[hsm]` and `[[hsm]]`: the tokens.

use crate::core::id::HsmName;
use crate::core::key::CkaId;
use crate::core::key_report::{KeyException, KeyFlag, WRAPPING_EXCEPTIONS};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// The longest reason of an exception.
const REASON_CHARS_MAX: usize = 500;

/// `[hsm]`, or `[[hsm]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmSection {
    /// What keys say of their token; `default` if not given. It must not change while it has keys.
    #[serde(default)]
    pub name: HsmName,
    /// The PKCS#11 module (a shared library).
    pub module: PathBuf,
    /// `CKA_LABEL` of the token.
    pub token_label: String,
    /// A file with the user PIN, readable by the server only.
    pub pin_file: PathBuf,
    /// Sessions, one thread each.
    #[serde(default = "default_sessions")]
    pub sessions: usize,
    /// Requests that may wait for a session before callers get 503.
    #[serde(default = "default_queue")]
    pub queue: usize,
    /// This token has the keys of that one too, and signs by them while that one does not.
    pub standby_for: Option<HsmName>,
    /// Opens all sessions for writing: some modules have no others.
    #[serde(default)]
    pub read_write_sessions: bool,
    /// SoftHSM only: its configuration file. The server sets `SOFTHSM2_CONF` to it.
    pub softhsm_conf: Option<PathBuf>,
    /// The `CKA_ID`, in hex, of the key that wraps others: with it, keys may be kept wrapped in the database.
    pub wrapping_key: Option<String>,
    /// How many unwrapped keys each session keeps.
    #[serde(default = "default_wrapped_cache")]
    pub wrapped_cache: usize,
    /// Keys of this token, the wrapping key too, that may be used although their attributes are not as they
    /// should be.
    #[serde(default, rename = "exception")]
    pub exceptions: Vec<ExceptionSection>,
}

/// `[[hsm.exception]]`: one key, what may be wrong with it, and why. It is told at each start, by `doctor`,
/// and in the audit log where the key is made or imported.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExceptionSection {
    /// The key's `CKA_ID`, in hex.
    pub cka_id: String,
    /// What may be wrong with it: any of `not-sensitive`, `extractable`, `not-always-sensitive`,
    /// `not-never-extractable`, `not-private`, `not-local`, `decrypt`, `unwrap`, `derive`; of the wrapping key
    /// any of [`WRAPPING_EXCEPTIONS`].
    pub allows: Vec<String>,
    /// Why, for those who read the log: 1 to 500 characters.
    pub reason: String,
}

/// A `CKA_ID`: hex, with or without `0x`, 1 to 64 bytes.
fn read_id(text: &str) -> Option<CkaId> {
    let id = hex::decode(text.strip_prefix("0x").unwrap_or(text)).ok()?;
    (1..=64).contains(&id.len()).then(|| CkaId::new(id))
}

impl ExceptionSection {
    /// The exception of a key that signs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&self) -> Result<KeyException, String> {
        let (cka_id, reason) = self.read_all_but_names()?;
        let allows = self.allows.iter().map(|name| KeyFlag::from_exception(name));
        let allows = allows.collect::<Result<_, _>>();
        Ok(KeyException {
            cka_id,
            allows: allows.map_err(|error| format!("`{}`: {error}", self.cka_id))?,
            reason,
        })
    }

    /// The exception of a wrapping key: the reason, by the names of [`WRAPPING_EXCEPTIONS`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read_wrapping(&self) -> Result<BTreeMap<String, String>, String> {
        let (_, reason) = self.read_all_but_names()?;
        if let Some(name) =
            self.allows.iter().find(|one| !WRAPPING_EXCEPTIONS.contains(&one.as_str()))
        {
            let known = WRAPPING_EXCEPTIONS.join(", ");
            return Err(format!(
                "`{}` is the wrapping key: unknown attribute `{name}`; known: {known}",
                self.cka_id
            ));
        }
        Ok(self.allows.iter().map(|name| (name.clone(), reason.clone())).collect())
    }

    fn read_all_but_names(&self) -> Result<(CkaId, String), String> {
        let id = read_id(&self.cka_id)
            .ok_or_else(|| format!("cka_id `{}` is not hex of 1 to 64 bytes", self.cka_id))?;
        let reason = self.reason.trim();
        if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX {
            return Err(format!(
                "`{}`: reason must be 1 to {REASON_CHARS_MAX} characters",
                self.cka_id
            ));
        }
        if self.allows.is_empty() {
            return Err(format!("`{}`: allows names nothing", self.cka_id));
        }
        Ok((id, reason.to_owned()))
    }
}

impl HsmSection {
    /// The wrapping key's id.
    #[must_use]
    pub fn wrapping_id(&self) -> Option<CkaId> {
        read_id(self.wrapping_key.as_deref()?)
    }

    /// The exceptions of the keys that sign. What is wrong with one was found when the configuration was read.
    #[must_use]
    pub fn key_exceptions(&self) -> Vec<KeyException> {
        let ours = self.exceptions.iter().filter(|one| !self.is_of_wrapping_key(one));
        ours.filter_map(|one| one.read().ok()).collect()
    }

    /// What the wrapping key lacks, and why it is used all the same.
    #[must_use]
    pub fn wrapping_exceptions(&self) -> BTreeMap<String, String> {
        let ours = self.exceptions.iter().find(|one| self.is_of_wrapping_key(one));
        ours.and_then(|one| one.read_wrapping().ok()).unwrap_or_default()
    }

    fn is_of_wrapping_key(&self, exception: &ExceptionSection) -> bool {
        self.wrapping_id().is_some_and(|id| read_id(&exception.cka_id) == Some(id))
    }
}

fn default_sessions() -> usize {
    2
}
fn default_queue() -> usize {
    64
}
fn default_wrapped_cache() -> usize {
    64
}

/// `[hsm]` is one token, `[[hsm]]` are several.
pub(super) fn one_or_several<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<HsmSection>, D::Error> {
    struct Sections;
    impl<'de> Visitor<'de> for Sections {
        type Value = Vec<HsmSection>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one section `[hsm]`, or several `[[hsm]]`")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            HsmSection::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }
    from.deserialize_any(Sections)
}

/// What types alone cannot say.
pub(super) fn findings(sections: &[HsmSection], say: &mut impl FnMut(String)) {
    if sections.is_empty() {
        say("[[hsm]] is missing: no key could sign".to_owned());
    }
    let (mut names, mut tokens, mut confs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for section in sections {
        let name = &section.name;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(1..=32).contains(&name.as_str().len()) || !name.as_str().chars().all(fits) {
            say(format!("[[hsm]] name `{name}` must be 1 to 32 of A-Z a-z 0-9 . _ -"));
        }
        if !names.insert(name) {
            say(format!("[[hsm]] two are named `{name}`: give each a name of its own"));
        }
        if !tokens.insert((&section.module, &section.token_label)) {
            say(format!("[[hsm]] `{name}` is the token of another one"));
        }
        if !(1..=64).contains(&section.sessions) || !(1..=65_536).contains(&section.queue) {
            say(format!("[[hsm]] `{name}`: sessions must be 1 to 64 and queue 1 to 65536"));
        }
        if let Some(home) = &section.standby_for {
            stands_by(section, home, sections, say);
        }
        if section.wrapping_key.is_some() && section.wrapping_id().is_none() {
            say(format!("[[hsm]] `{name}`: wrapping_key must be a CKA_ID in hex, 1 to 64 bytes"));
        }
        if section.wrapped_cache > 65_536 {
            say(format!("[[hsm]] `{name}`: wrapped_cache must be at most 65536"));
        }
        confs.extend(&section.softhsm_conf);
        let mut excepted = BTreeSet::new();
        for exception in &section.exceptions {
            let read = if section.is_of_wrapping_key(exception) {
                exception.read_wrapping().map(drop)
            } else {
                exception.read().map(drop)
            };
            if let Err(error) = read {
                say(format!("[[hsm.exception]] of `{name}`: {error}"));
            } else if !excepted.insert(read_id(&exception.cka_id).map(|id| id.as_bytes().to_vec()))
            {
                say(format!(
                    "[[hsm.exception]] of `{name}`: `{}` is there twice",
                    exception.cka_id
                ));
            }
        }
    }
    if confs.len() > 1 {
        say("[[hsm]] softhsm_conf must be one file: SoftHSM has one in a process".to_owned());
    }
}

/// A standby is another token than its home, the only one, and has none of its own.
fn stands_by(
    section: &HsmSection,
    home: &HsmName,
    sections: &[HsmSection],
    say: &mut impl FnMut(String),
) {
    let name = &section.name;
    let mut wrong = |why: &str| say(format!("[[hsm]] `{name}`: standby_for `{home}` {why}"));
    match sections.iter().find(|it| it.name == *home) {
        _ if home == name => wrong("is itself"),
        None => wrong("is not configured"),
        Some(it) if it.standby_for.is_some() => wrong("stands by for another one itself"),
        Some(_) => {}
    }
    let others = sections.iter().filter(|it| it.standby_for.as_ref() == Some(home));
    if others.count() > 1 {
        wrong("has another standby: one is enough");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[derive(Deserialize)]
    struct Part {
        #[serde(deserialize_with = "one_or_several")]
        hsm: Vec<HsmSection>,
    }

    fn told(text: &str) -> Result<(Vec<String>, Vec<String>), String> {
        let part: Part = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        findings(&part.hsm, &mut |text| found.push(text));
        Ok((part.hsm.iter().map(|hsm| hsm.name.to_string()).collect(), found))
    }

    const TOKEN: &str = "module = 'm.so'\ntoken_label = 't'\npin_file = 'pin'\n";

    #[test]
    fn one_section_has_a_name_of_its_own_and_several_need_one_each() {
        let (names, found) = told(&format!("[hsm]\n{TOKEN}")).unwrap();
        assert_eq!((names, found.len()), (vec!["default".to_owned()], 0));
        let two = format!("[[hsm]]\nname = 'a'\n{TOKEN}[[hsm]]\nname = 'b'\n{TOKEN}");
        let (names, found) = told(&two.replacen("'t'", "'u'", 1)).unwrap();
        assert_eq!((names, found.len()), (vec!["a".to_owned(), "b".to_owned()], 0));
        assert!(told(&two).unwrap().1[0].contains("the token of another one"));
        let unnamed = two.replacen("'t'", "'u'", 1).replace("name = 'b'", "name = 'a'");
        assert!(told(&unnamed).unwrap().1[0].contains("two are named `a`"));
        let wrapping = format!("[hsm]\n{TOKEN}wrapping_key = 'abc'\nwrapped_cache = 70000\n");
        let (_, found) = told(&wrapping).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(told("hsm = []").unwrap().1[0].contains("missing"));
        assert!(told("hsm = 'x'").unwrap_err().contains("several `[[hsm]]`"));
    }

    #[test]
    fn a_standby_is_another_token_than_its_home_and_has_no_standby_itself() {
        let three = |a: &str, b: &str, c: &str| {
            let one = |name: &str, more: &str| {
                let token = TOKEN.replacen("'t'", &format!("'{name}'"), 1);
                format!("[[hsm]]\nname = '{name}'\n{token}{more}\n")
            };
            told(&[one("a", a), one("b", b), one("c", c)].concat()).unwrap().1
        };
        assert_eq!(three("", "standby_for = 'a'", "read_write_sessions = true"), [""; 0]);
        assert!(three("standby_for = 'a'", "", "")[0].contains("is itself"));
        assert!(three("", "standby_for = 'x'", "")[0].contains("is not configured"));
        let chain = three("", "standby_for = 'a'", "standby_for = 'b'");
        assert!(chain[0].contains("stands by for another one"), "{chain:?}");
        let two = three("", "standby_for = 'a'", "standby_for = 'a'");
        assert!(two.len() == 2 && two[0].contains("another standby"), "{two:?}");
    }

    #[test]
    fn an_exception_says_which_key_what_and_why() {
        let with = |exception: &str| format!("[hsm]\n{TOKEN}[[hsm.exception]]\n{exception}");
        let good = "cka_id = '0x0a0b'\nallows = ['extractable', 'not-sensitive']\nreason = 'why'\n";
        assert!(told(&with(good)).unwrap().1.is_empty());
        let in_list = format!("[[hsm]]\nname = 'a'\n{TOKEN}[[hsm.exception]]\n{good}");
        assert!(told(&in_list).unwrap().1.is_empty());
        for (from, to, says) in [
            ("0x0a0b", "xyz", "is not hex"),
            ("0x0a0b", "", "is not hex"),
            ("'why'", "'  '", "reason must be"),
            ("'extractable', 'not-sensitive'", "", "allows names nothing"),
            ("'extractable'", "'export'", "unknown attribute `export`; known: not-sensitive"),
        ] {
            let found = told(&with(&good.replace(from, to))).unwrap().1;
            assert!(found.len() == 1 && found[0].contains(says), "{found:?}");
        }
        let twice = format!("{}[[hsm.exception]]\n{}", with(good), good.replace("0x0a0b", "0A0B"));
        assert!(told(&twice).unwrap().1[0].contains("is there twice"));
        assert!(
            told(&with("cka_id = '01'\nallows = ['derive']\n")).unwrap_err().contains("reason")
        );
    }

    #[test]
    fn a_wrapping_keys_exception_has_names_of_its_own() {
        let section = |key: &str, id: &str, allows: &str| {
            format!(
                "[hsm]\n{TOKEN}wrapping_key = '{key}'\n[[hsm.exception]]\ncka_id = '{id}'\n\
                 allows = ['{allows}']\nreason = 'why'\n"
            )
        };
        for (key, id) in [("0a0b", "0x0A0B"), ("0x0a0b", "0a0b")] {
            let good = section(key, id, "not-trusted");
            assert_eq!(told(&good).unwrap().1, [""; 0]);
            let part: Part = toml::from_str(&good).unwrap();
            let found =
                part.hsm.first().map(|hsm| (hsm.wrapping_exceptions(), hsm.key_exceptions()));
            let named = BTreeMap::from([("not-trusted".to_owned(), "why".to_owned())]);
            assert_eq!(found, Some((named, Vec::new())));
        }
        for (id, allows, says) in [
            ("0a0b", "derive", "is the wrapping key: unknown attribute `derive`"),
            ("0a0c", "not-trusted", "unknown attribute `not-trusted`"),
        ] {
            let found = told(&section("0a0b", id, allows)).unwrap().1;
            assert!(found.len() == 1 && found.iter().all(|one| one.contains(says)), "{found:?}");
        }
    }

    #[test]
    fn a_key_that_is_unknown_is_refused_with_its_line() {
        let error = told(&format!("[hsm]\n{TOKEN}colour = 'red'\n")).unwrap_err();
        assert!(error.contains("colour") && error.contains("line 5"), "{error}");
    }
}
