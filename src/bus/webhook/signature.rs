//! Standard Webhooks 1.0.0: secrets and signatures.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretSlice};

/// How long a secret is, in bytes, from and to.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The new one and the old one, while a receiver changes over.
const SECRETS_MAX: usize = 2;

/// The secrets that a webhook is signed with, the newest first.
pub struct Secrets(Vec<SecretSlice<u8>>);

impl Secrets {
    /// Reads one or two lines of `whsec_` and base64.
    ///
    /// # Errors
    /// What is wrong, without the secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let secrets = lines.map(secret).collect::<Result<Vec<_>, String>>()?;
        match secrets.len() {
            0 => Err("there is no secret in it".to_owned()),
            1..=SECRETS_MAX => Ok(Self(secrets)),
            more => Err(format!("there are {more} secrets in it, and {SECRETS_MAX} at most")),
        }
    }

    /// `webhook-signature`: one signature for each secret.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp_s: i64, body: &str) -> String {
        let signed = format!("{id}.{timestamp_s}.{body}");
        let sign = |secret: &SecretSlice<u8>| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret());
            format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

fn secret(line: &str) -> Result<SecretSlice<u8>, String> {
    let encoded = line.strip_prefix("whsec_").ok_or("a secret begins with `whsec_`")?;
    let bytes = STANDARD.decode(encoded).map_err(|_| "after `whsec_` comes base64, padded")?;
    if !SECRET_BYTES.contains(&bytes.len()) {
        let (from, to) = (SECRET_BYTES.start(), SECRET_BYTES.end());
        return Err(format!("a secret has {from} to {to} bytes, and one has {}", bytes.len()));
    }
    Ok(SecretSlice::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const BODY: &str = r#"{"email":"test@example.com","username":"test_user"}"#;
    const AT_S: i64 = 1_649_367_553;

    #[test]
    fn the_signature_is_the_one_of_the_specifications_libraries() {
        let signature = Secrets::parse(SECRET).unwrap().sign(ID, AT_S, BODY);
        assert_eq!(signature, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
        let crates = standardwebhooks::Webhook::new(SECRET).unwrap();
        assert_eq!(crates.sign(ID, AT_S, BODY.as_bytes()).unwrap(), signature);
    }

    #[test]
    fn two_secrets_give_two_signatures() {
        let both = Secrets::parse(&format!("{OTHER}\n{SECRET}\n")).unwrap().sign(ID, AT_S, BODY);
        let each = [OTHER, SECRET].map(|one| Secrets::parse(one).unwrap().sign(ID, AT_S, BODY));
        assert_eq!(both, each.join(" "));
    }

    #[test]
    fn a_secret_that_is_none_is_refused_and_not_told() {
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        let three = [SECRET; 3].join("\n");
        let wrong = ["", "\n", "whsec_", "C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_!", &short];
        for text in wrong.into_iter().chain([long.as_str(), three.as_str()]) {
            let error = Secrets::parse(text).err().unwrap();
            assert!(!error.contains("C2FV"), "{error}");
        }
    }
}
