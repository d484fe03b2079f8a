//! Policy bundles, their activations, and who said that they may be.

use super::column::hash;
use super::statement::{Tx, values};
use crate::core::policy::change::Voice;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{
    Activation, BundleBook, BundleRejection, BundleRow, NewVoice, StoreError,
};
use alloy::primitives::B256;
use async_trait::async_trait;
use sqlx::FromRow;

statements! {
    KEEP_BUNDLE = "INSERT INTO bundles (hash, version, files, iss, sub, proposed_at) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (hash) DO UPDATE \
        SET iss = excluded.iss, sub = excluded.sub, proposed_at = excluded.proposed_at \
        WHERE bundles.sub = '' AND excluded.sub <> ''";
    BUNDLE = "SELECT hash, version, files, iss, sub, proposed_at FROM bundles WHERE hash = $1";
    BUNDLES = "SELECT hash, version, '' AS files, iss, sub, proposed_at FROM bundles \
        ORDER BY proposed_at DESC, hash LIMIT $1";
    ACTIVATIONS = "SELECT serial, bundle, way, at FROM bundle_activations \
        ORDER BY serial DESC LIMIT $1";
    ACTIVATE_BUNDLE = "INSERT INTO bundle_activations (serial, bundle, way, at) \
        VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    ADD_VOICE = "INSERT INTO bundle_voices (bundle, serial, sub, iss, reason, at) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    VOICES = "SELECT sub, at FROM bundle_voices WHERE bundle = $1 AND serial = $2 ORDER BY at, sub";
    WANTED_BUNDLES = "SELECT DISTINCT bundle FROM bundle_voices WHERE serial = $1 \
        AND bundle NOT IN (SELECT bundle FROM bundle_rejections) ORDER BY bundle";
    REJECT_BUNDLE = "INSERT INTO bundle_rejections (bundle, iss, sub, reason, at) \
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
    BUNDLE_REJECTION = "SELECT iss, sub, reason, at FROM bundle_rejections WHERE bundle = $1";
}

#[derive(FromRow)]
struct BundleColumns {
    hash: Vec<u8>,
    version: String,
    files: String,
    iss: String,
    sub: String,
    proposed_at: i64,
}

impl BundleColumns {
    fn row(self) -> Result<BundleRow, StoreError> {
        Ok(BundleRow {
            hash: hash(&self.hash)?,
            version: self.version,
            files_json: self.files,
            author: Principal { iss: self.iss, sub: self.sub },
            at: Timestamp::from_millis(self.proposed_at),
        })
    }
}

#[derive(FromRow)]
struct ActivationColumns {
    serial: i64,
    bundle: Vec<u8>,
    way: String,
    at: i64,
}

#[derive(FromRow)]
struct VoiceColumns {
    sub: String,
    at: i64,
}

#[derive(FromRow)]
struct RejectionColumns {
    iss: String,
    sub: String,
    reason: String,
    at: i64,
}

#[derive(FromRow)]
struct Hash {
    bundle: Vec<u8>,
}

async fn bundle(tx: &mut Tx, hash: B256) -> Result<Option<BundleRow>, StoreError> {
    let row = tx.one::<BundleColumns>(BUNDLE, values![hash.as_slice()]).await?;
    row.map(BundleColumns::row).transpose()
}

async fn bundles(tx: &mut Tx, most: i64) -> Result<Vec<BundleRow>, StoreError> {
    let rows = tx.all::<BundleColumns>(BUNDLES, values![most]).await?;
    rows.into_iter().map(BundleColumns::row).collect()
}

async fn activations(tx: &mut Tx, most: i64) -> Result<Vec<Activation>, StoreError> {
    let rows = tx.all::<ActivationColumns>(ACTIVATIONS, values![most]).await?;
    let read = |row: ActivationColumns| {
        Ok(Activation {
            serial: row.serial,
            bundle: hash(&row.bundle)?,
            way: row.way,
            at: Timestamp::from_millis(row.at),
        })
    };
    rows.into_iter().map(read).collect()
}

async fn wanted(tx: &mut Tx, serial: i64) -> Result<Vec<B256>, StoreError> {
    let rows = tx.all::<Hash>(WANTED_BUNDLES, values![serial]).await?;
    rows.into_iter().map(|row| hash(&row.bundle)).collect()
}

// Whatever an operation meets forbids the commit: `kept`.
#[async_trait]
impl BundleBook for Tx {
    async fn keep_bundle(&mut self, bundle: &BundleRow) -> Result<bool, StoreError> {
        let values = values![
            bundle.hash.as_slice(),
            bundle.version.as_str(),
            bundle.files_json.as_str(),
            bundle.author.iss.as_str(),
            bundle.author.sub.as_str(),
            bundle.at.millis(),
        ];
        let kept = self.execute(KEEP_BUNDLE, values).await;
        self.kept(kept).map(|rows| rows == 1)
    }

    async fn bundle(&mut self, hash: B256) -> Result<Option<BundleRow>, StoreError> {
        let answer = bundle(self, hash).await;
        self.kept(answer)
    }

    async fn bundles(&mut self, most: i64) -> Result<Vec<BundleRow>, StoreError> {
        let answer = bundles(self, most).await;
        self.kept(answer)
    }

    async fn active_bundle(&mut self) -> Result<Option<Activation>, StoreError> {
        let answer = activations(self, 1).await;
        self.kept(answer).map(|found| found.into_iter().next())
    }

    async fn activations(&mut self, most: i64) -> Result<Vec<Activation>, StoreError> {
        let answer = activations(self, most).await;
        self.kept(answer)
    }

    async fn activate_bundle(&mut self, it: &Activation) -> Result<bool, StoreError> {
        let values = values![it.serial, it.bundle.as_slice(), it.way.as_str(), it.at.millis()];
        let done = self.execute(ACTIVATE_BUNDLE, values).await;
        self.kept(done).map(|rows| rows == 1)
    }

    async fn add_voice(&mut self, voice: &NewVoice) -> Result<bool, StoreError> {
        let values = values![
            voice.bundle.as_slice(),
            voice.serial,
            voice.who.sub.as_str(),
            voice.who.iss.as_str(),
            voice.reason.as_str(),
            voice.at.millis(),
        ];
        let added = self.execute(ADD_VOICE, values).await;
        self.kept(added).map(|rows| rows == 1)
    }

    async fn voices(&mut self, bundle: B256, serial: i64) -> Result<Vec<Voice>, StoreError> {
        let rows = self.all::<VoiceColumns>(VOICES, values![bundle.as_slice(), serial]).await;
        let read = |row: VoiceColumns| Voice { sub: row.sub, at: Timestamp::from_millis(row.at) };
        self.kept(rows).map(|rows| rows.into_iter().map(read).collect())
    }

    async fn wanted_bundles(&mut self, serial: i64) -> Result<Vec<B256>, StoreError> {
        let answer = wanted(self, serial).await;
        self.kept(answer)
    }

    async fn reject_bundle(&mut self, it: &BundleRejection) -> Result<bool, StoreError> {
        let values = values![
            it.bundle.as_slice(),
            it.who.iss.as_str(),
            it.who.sub.as_str(),
            it.reason.as_str(),
            it.at.millis(),
        ];
        let done = self.execute(REJECT_BUNDLE, values).await;
        self.kept(done).map(|rows| rows == 1)
    }

    async fn bundle_rejection(
        &mut self,
        bundle: B256,
    ) -> Result<Option<BundleRejection>, StoreError> {
        let row = self.one::<RejectionColumns>(BUNDLE_REJECTION, values![bundle.as_slice()]).await;
        let read = |row: RejectionColumns| BundleRejection {
            bundle,
            who: Principal { iss: row.iss, sub: row.sub },
            reason: row.reason,
            at: Timestamp::from_millis(row.at),
        };
        self.kept(row).map(|row| row.map(read))
    }
}
