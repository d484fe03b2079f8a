//! The plan of a key ceremony: a TOML file that people review before it is carried out.

use crate::config::file::ConfigError;
use crate::core::ceremony::{Person, Plan, PlannedCustody, PlannedKey, PlannedWrappingKey};
use crate::core::id::{GroupName, HsmName};
use crate::core::key::{CkaId, NonceMode};
use crate::core::key_report::{TOKEN_LABEL_BYTES_MAX, token_label};
use crate::core::time::Timestamp;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

/// The one version of plans.
const VERSION: u32 = 1;
/// The longest plan, in bytes.
const BYTES_MAX: u64 = 64 * 1024;
/// The most keys of one ceremony: more than anybody reviews.
const KEYS_MAX: usize = 500;
/// The longest title and purpose, in characters.
const WORDS_MAX: usize = 500;
/// The longest name and role, in characters, and the most people.
const PERSON_MAX: usize = 100;
const PEOPLE_MAX: usize = 50;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    ceremony: About,
    #[serde(default, rename = "wrapping_key")]
    wrapping_keys: Vec<WrappingKey>,
    #[serde(default, rename = "key")]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    plan_version: u32,
    title: String,
    purpose: String,
    date: String,
    present: Vec<Person>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappingKey {
    label: String,
    #[serde(default)]
    hsm: HsmName,
    cka_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    label: String,
    group: Option<String>,
    mode: NonceMode,
    #[serde(default)]
    hsm: HsmName,
    #[serde(default)]
    custody: PlannedCustody,
    count: Option<usize>,
}

/// Reads a plan.
///
/// # Errors
/// When it cannot be read or is not a plan; with the line where that is known, and all findings at once.
pub fn read(path: &Path) -> Result<Plan, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX.saturating_add(1)).read_to_string(&mut text).map_err(unreadable)?;
    parse(&text).map_err(|text| ConfigError::Wrong { path: path.to_owned(), text })
}

/// Reads a plan's text.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Plan, String> {
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > BYTES_MAX {
        return Err(format!("a plan has at most {BYTES_MAX} bytes"));
    }
    // The record has the plan in it, and is a signed note: no control characters but line ends. And nothing
    // that is not seen, or lets people see another order than there is.
    let bad = text.lines().position(|line| line.chars().any(is_unseen));
    if let Some(line) = bad.or_else(|| text.contains('\r').then_some(0)) {
        let line = line.saturating_add(1);
        return Err(format!(
            "line {line}: a control character, or one that is not seen; use spaces and plain line ends"
        ));
    }
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    // Escapes and texts of several lines put there what the text itself may not have: what is shown before the
    // plan is confirmed would not be what is in it.
    let all: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    strings(&toml::Value::Table(all), &mut |string| {
        if string.chars().any(is_unseen) {
            found.push(format!("{string:?} has a line end, or a character that is not seen"));
        }
    });
    let plan = plan(text, file, &mut |finding| found.push(finding));
    if found.is_empty() { Ok(plan) } else { Err(found.join("\n  ")) }
}

fn plan(text: &str, file: File, say: &mut impl FnMut(String)) -> Plan {
    let File { ceremony, wrapping_keys, keys } = file;
    let About { plan_version, title, purpose, date, present } = ceremony;
    if plan_version != VERSION {
        say(format!("plan_version must be {VERSION}"));
    }
    for (name, words) in [("title", &title), ("purpose", &purpose)] {
        if words.trim().is_empty() || words.chars().count() > WORDS_MAX {
            say(format!("{name} must be 1 to {WORDS_MAX} characters"));
        }
    }
    let names: BTreeSet<_> = present.iter().map(|person| person.name.trim()).collect();
    if names.len() < 2 || names.len() != present.len() {
        say("present must name at least two people, each once".to_owned());
    }
    if present.iter().any(|one| one.name.trim().is_empty() || one.role.trim().is_empty()) {
        say("present: everybody has a name and a role".to_owned());
    }
    let is_long = |words: &str| words.chars().count() > PERSON_MAX;
    if present.len() > PEOPLE_MAX
        || present.iter().any(|one| is_long(&one.name) || is_long(&one.role))
    {
        say(format!(
            "present: at most {PEOPLE_MAX} people, names and roles of {PERSON_MAX} characters"
        ));
    }
    let day = Timestamp::parse_rfc3339(&format!("{date}T00:00:00Z"));
    if day.is_none() || date.len() != 10 {
        say(format!("date `{date}` must be a day such as 2027-01-15"));
    }
    let mut labels = BTreeSet::new();
    let mut plan = Plan {
        text: text.to_owned(),
        title,
        purpose,
        date,
        day: day.unwrap_or(Timestamp::from_millis(0)),
        present,
        wrapping_keys: Vec::new(),
        keys: Vec::new(),
    };
    for WrappingKey { label, hsm, cka_id } in wrapping_keys {
        if !is_name(&label) || label.len() > TOKEN_LABEL_BYTES_MAX {
            say(format!(
                "[[wrapping_key]] label `{label}` must be 1 to {TOKEN_LABEL_BYTES_MAX} of A-Z a-z 0-9 . _ -"
            ));
        }
        if !labels.insert((hsm.clone(), label.clone())) {
            say(format!("[[wrapping_key]] label `{label}` is there twice"));
        }
        let id = cka_id.as_ref().map(|id| {
            hex::decode(id.strip_prefix("0x").unwrap_or(id)).ok().filter(|id| !id.is_empty())
        });
        if id == Some(None) {
            say(format!("[[wrapping_key]] `{label}`: cka_id is not hex"));
        }
        let cka_id = id.flatten().map(CkaId::new);
        plan.wrapping_keys.push(PlannedWrappingKey { label, hsm, cka_id });
    }
    let mut names = BTreeSet::new();
    for key in keys {
        let several = key.count.map_or(1, |count| count.clamp(1, KEYS_MAX.saturating_add(1)));
        if key.count == Some(0) {
            say(format!("[[key]] `{}`: count is 0", key.label));
        }
        for number in 1..=several {
            let label = if key.count.is_none() {
                key.label.clone()
            } else {
                format!("{}-{number}", key.label)
            };
            if !is_name(&label) {
                say(format!("[[key]] label `{label}` must be 1 to 64 of A-Z a-z 0-9 . _ -"));
            }
            let is_new = labels.insert((key.hsm.clone(), token_label(&label)));
            if !names.insert(label.clone()) || !is_new {
                say(format!("[[key]] label `{label}` is there twice"));
            }
            plan.keys.push(PlannedKey {
                label,
                group: key.group.clone().map(GroupName::new),
                mode: key.mode,
                hsm: key.hsm.clone(),
                custody: key.custody,
            });
        }
    }
    let count = plan.keys.len().saturating_add(plan.wrapping_keys.len());
    if !(1..=KEYS_MAX).contains(&count) {
        say(format!("it must make 1 to {KEYS_MAX} keys"));
    }
    plan
}

/// Calls with every string of a value.
fn strings(value: &toml::Value, say: &mut impl FnMut(&str)) {
    match value {
        toml::Value::String(string) => say(string),
        toml::Value::Array(all) => all.iter().for_each(|one| strings(one, say)),
        toml::Value::Table(all) => all.values().for_each(|one| strings(one, say)),
        _ => {}
    }
}

/// Control characters (line ends too), separators of lines, and format characters (Unicode's category Cf),
/// which change the order of others or are invisible.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0001}'..='\u{e007f}'
        )
}

fn is_name(label: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&label.len()) && label.chars().all(fits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

    use super::*;

    const GOOD: &str = "[ceremony]\nplan_version = 1\ntitle = 't'\npurpose = 'p'\ndate = '2027-01-15'\n\
        present = [ { name = 'A', role = 'first officer' }, { name = 'B', role = 'witness' } ]\n\
        [[key]]\nlabel = 'op'\nmode = 'managed'\ncount = 2\n";

    #[test]
    fn a_plan_says_who_when_and_what() {
        let plan = parse(GOOD).unwrap();
        let labels: Vec<_> = plan.keys.iter().map(|key| key.label.as_str()).collect();
        assert_eq!((labels, plan.present.len()), (vec!["op-1", "op-2"], 2));
        assert_eq!(plan.day.to_string(), "2027-01-15T00:00:00.000Z");
        assert_eq!(plan.sha256().len(), 64);
    }

    #[test]
    fn what_is_wrong_with_a_plan_is_told() {
        for (from, to, says) in [
            ("title = 't'", "title = 't'\ncolour = 'red'", "line 4"),
            ("plan_version = 1", "plan_version = 2", "plan_version must be 1"),
            ("title = 't'", "title = ' '", "title must be"),
            ("title = 't'", "title = \"t\\nplan: SHA-256 00\"", "has a line end"),
            ("purpose = 'p'", "purpose = \"\"\"p\nq\"\"\"", "has a line end"),
            ("'witness'", "\"wit\\u202eness\"", "not seen"),
            ("'witness'", "'wit\u{202e}ness'", "line 6: a control character"),
            ("label = 'op'", "label = 'op' # \u{2066}", "line 8: a control character"),
            ("'B'", "'A'", "at least two people"),
            ("'witness'", "''", "a name and a role"),
            ("2027-01-15", "2027-13-15", "must be a day"),
            ("2027-01-15", "tomorrow", "must be a day"),
            ("label = 'op'", "label = 'o p'", "must be 1 to 64"),
            ("count = 2", "count = 0", "count is 0"),
            ("count = 2", "count = 100000", "1 to 500 keys"),
            ("count = 2", "custody = 'paper'", "unknown variant"),
            ("mode = 'managed'\n", "", "mode"),
            ("count = 2", "\tcount = 2", "line 10: a control character"),
            ("count = 2\n", "[[key]]\nlabel = 'op'\nmode = 'external'\n", "is there twice"),
            ("[[key]]", "[[wrapping_key]]\nlabel = 'w'\ncka_id = 'x'\n[[key]]", "not hex"),
        ] {
            let told = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(told.contains(says), "{to}: {told}");
        }
        let long = format!("'{}'", "w".repeat(PERSON_MAX.saturating_add(1)));
        assert!(parse(&GOOD.replace("'witness'", &long)).unwrap_err().contains("names and roles"));
        assert!(parse(&GOOD.replace('\n', "\r\n")).unwrap_err().contains("control character"));
    }
}
