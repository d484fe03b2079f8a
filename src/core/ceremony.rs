//! Key ceremonies: the plan that people reviewed, and the record of what was made.

use crate::core::id::{GroupName, HsmName};
use crate::core::key::{CkaId, KeyPlace, NonceMode, PublicKey};
use crate::core::key_report::TokenReport;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// Who asked for the keys of a ceremony, as leaves and the database have it; the subject is its id.
const ISSUER: &str = "claviger:key-ceremony";

/// The principal of the keys of one ceremony.
#[must_use]
pub fn principal(id: impl Display) -> Principal {
    Principal { iss: ISSUER.to_owned(), sub: id.to_string() }
}

/// The id of the ceremony whose principal this is, as text.
#[must_use]
pub fn ceremony_of(principal: &Principal) -> Option<&str> {
    (principal.iss == ISSUER).then_some(principal.sub.as_str())
}

/// Somebody who is present, in the plan's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Who.
    pub name: String,
    /// As what.
    pub role: String,
}

/// Where a planned key's private half is to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedCustody {
    /// As an object of the token.
    #[default]
    Token,
    /// In the database, wrapped by the token.
    Wrapped,
}

impl PlannedCustody {
    /// The name in plans and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Wrapped => "wrapped",
        }
    }
}

/// A key that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedKey {
    /// What people will call it.
    pub label: String,
    /// The group that will use it.
    pub group: Option<GroupName>,
    /// Who gives its nonces.
    pub mode: NonceMode,
    /// The token that makes it.
    pub hsm: HsmName,
    /// Where its private half will be.
    pub custody: PlannedCustody,
}

/// A wrapping key that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedWrappingKey {
    /// `CKA_LABEL`.
    pub label: String,
    /// The token that makes it.
    pub hsm: HsmName,
    /// Its id there; a random one if not said.
    pub cka_id: Option<CkaId>,
}

/// What is to be done, as it was reviewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The whole text.
    pub text: String,
    /// What it is called.
    pub title: String,
    /// Why.
    pub purpose: String,
    /// The day, `YYYY-MM-DD`.
    pub date: String,
    /// Its beginning, in UTC.
    pub day: Timestamp,
    /// Who is to be present.
    pub present: Vec<Person>,
    /// Made first.
    pub wrapping_keys: Vec<PlannedWrappingKey>,
    /// In this order.
    pub keys: Vec<PlannedKey>,
}

impl PlannedWrappingKey {
    /// Its id in the token: the plan's, or one that the ceremony's id gives, so that a crash loses none.
    #[must_use]
    pub fn place(&self, ceremony: impl Display) -> KeyPlace {
        let named = format!("{ceremony}\n{}\n{}", self.hsm, self.label);
        let digest: [u8; 32] = Sha256::digest(named.as_bytes()).into();
        let random = || CkaId::new(digest.iter().take(16).copied().collect());
        KeyPlace { hsm: self.hsm.clone(), cka_id: self.cka_id.clone().unwrap_or_else(random) }
    }
}

impl Plan {
    /// SHA-256 of the text, in hex: what was reviewed is what is carried out.
    #[must_use]
    pub fn sha256(&self) -> String {
        sha256(&self.text)
    }

    /// The tokens that it names.
    #[must_use]
    pub fn tokens(&self) -> BTreeSet<&HsmName> {
        let wrapping = self.wrapping_keys.iter().map(|key| &key.hsm);
        wrapping.chain(self.keys.iter().map(|key| &key.hsm)).collect()
    }
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// What was made, by whom stated, from which plan. Written as TOML, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The ceremony.
    pub ceremony: About,
    /// Who was present, as the plan states.
    #[serde(default)]
    pub present: Vec<Person>,
    /// The tokens that were used.
    #[serde(default, rename = "token", skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<RecordedToken>,
    /// Wrapping keys that were made.
    #[serde(default, rename = "wrapping_key", skip_serializing_if = "Vec::is_empty")]
    pub wrapping_keys: Vec<RecordedWrappingKey>,
    /// Keys that were made.
    #[serde(default, rename = "key", skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<RecordedKey>,
    /// The plan.
    pub plan: RecordedPlan,
}

/// The ceremony itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Its id: that of its leaves, and the subject that its keys were asked for by.
    pub id: String,
    /// The plan's title.
    pub title: String,
    /// The plan's purpose.
    pub purpose: String,
    /// The plan's day.
    pub date: String,
    /// `complete`, or `interrupted`: then not all of the plan was made.
    pub outcome: String,
    /// Why it was interrupted, in an operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the plan wanted and was not made, by label.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_made: Vec<String>,
    /// When it was begun: our clock, RFC 3339.
    pub begun_at: String,
    /// When all was made.
    pub ended_at: String,
    /// The version of the program.
    pub claviger: String,
}

/// A token as it told itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedToken {
    /// What the configuration calls it.
    pub hsm: String,
    /// Its label.
    pub label: String,
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its firmware's version.
    pub firmware: String,
}

impl RecordedToken {
    /// What is recorded of a token.
    #[must_use]
    pub fn of(hsm: &HsmName, report: &TokenReport) -> Self {
        Self {
            hsm: hsm.to_string(),
            label: report.label.clone(),
            manufacturer: report.manufacturer.clone(),
            model: report.model.clone(),
            serial: report.serial.clone(),
            firmware: report.firmware.clone(),
        }
    }
}

/// A wrapping key that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedWrappingKey {
    /// `CKA_LABEL`.
    pub label: String,
    /// The token that has it.
    pub hsm: String,
    /// Its id there, hex.
    pub cka_id: String,
    /// What the token told of it after it was made.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// A key that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedKey {
    /// What people call it.
    pub label: String,
    /// Our id.
    pub id: String,
    /// The group that uses it; empty if none.
    pub group: String,
    /// Who gives its nonces.
    pub mode: String,
    /// The token that made it.
    pub hsm: String,
    /// Its id there, hex.
    pub cka_id: String,
    /// Where its private half is.
    pub custody: String,
    /// `CKA_LABEL`, read back; none where it is no object of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_label: Option<String>,
    /// SEC1, uncompressed, hex.
    pub public_key: String,
    /// Its address.
    pub address: String,
    /// What the token told of its private half after it was made.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// The plan as it was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedPlan {
    /// SHA-256 of the text, hex.
    pub sha256: String,
    /// The text.
    pub text: String,
}

impl RecordedPlan {
    /// A plan's text with its hash.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self { sha256: sha256(text), text: text.to_owned() }
    }
}

impl Record {
    /// As TOML.
    ///
    /// # Errors
    /// None that these types can give.
    pub fn to_toml(&self) -> Result<String, String> {
        toml::to_string_pretty(self).map_err(|error| error.to_string())
    }

    /// Reads it and compares what it says twice.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let record: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if sha256(&record.plan.text) != record.plan.sha256 {
            return Err("the hash of the plan is not that of the plan's text".to_owned());
        }
        for key in &record.keys {
            let point = hex::decode(key.public_key.trim_start_matches("0x"));
            let public_key = point.ok().as_deref().and_then(PublicKey::from_sec1);
            if public_key.is_none_or(|point| format!("{:#x}", point.address()) != key.address) {
                return Err(format!("the address of `{}` is not its public key's", key.label));
            }
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let point = [&[4_u8], [7; 64].as_slice()].concat();
        let key = RecordedKey {
            label: "op-1".to_owned(),
            id: "1".to_owned(),
            group: String::new(),
            mode: "managed".to_owned(),
            hsm: "default".to_owned(),
            cka_id: "01".to_owned(),
            custody: "token".to_owned(),
            token_label: Some("claviger operator op-1".to_owned()),
            public_key: format!("0x{}", hex::encode(&point)),
            address: format!("{:#x}", PublicKey::from_sec1(&point).unwrap().address()),
            attributes: BTreeMap::from([("CKA_SIGN".to_owned(), "true".to_owned())]),
        };
        let about = About {
            id: "1".to_owned(),
            title: "a title with \"quotes\" and ''' three".to_owned(),
            purpose: "tests".to_owned(),
            date: "2027-01-15".to_owned(),
            outcome: "complete".to_owned(),
            reason: None,
            not_made: vec![],
            begun_at: "2027-01-15T09:00:00.000Z".to_owned(),
            ended_at: "2027-01-15T09:00:01.000Z".to_owned(),
            claviger: "0.1.0".to_owned(),
        };
        Record {
            ceremony: about,
            present: vec![Person { name: "A".to_owned(), role: "first officer".to_owned() }],
            tokens: vec![],
            wrapping_keys: vec![],
            keys: vec![key],
            plan: RecordedPlan::of("# '''\n[ceremony]\n\"\"\" \\ ä\n"),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let text = record().to_toml().unwrap();
        assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "{text}");
        assert_eq!(Record::from_toml(&text).unwrap(), record());
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let mut other = record();
        other.plan.text.push('x');
        let told = Record::from_toml(&other.to_toml().unwrap()).unwrap_err();
        assert!(told.contains("hash of the plan"), "{told}");
        let mut other = record();
        other.keys[0].address = "0x00".to_owned();
        let told = Record::from_toml(&other.to_toml().unwrap()).unwrap_err();
        assert!(told.contains("address of `op-1`"), "{told}");
        let strange = format!("{}\n[more]\nx = 1\n", record().to_toml().unwrap());
        assert!(Record::from_toml(&strange).is_err());
    }
}
