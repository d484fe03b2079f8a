//! Imported keys and key ceremonies.

use super::column::parsed;
use super::keys::KeyColumns;
use super::statement::{Tx, values};
use crate::core::id::{HolderId, HsmName, KeyId};
use crate::core::key::{CkaId, OperatorKey};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{KeyBook, OpenCeremony, StoreError};
use async_trait::async_trait;
use sqlx::FromRow;
use uuid::Uuid;

statements! {
    IMPORT_KEY = "INSERT INTO operator_keys \
        (id, cka_id, label, group_name, mode, state, public_key, address, iss, sub, created_at, hsm) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING";
    KEYS_OF = "SELECT * FROM operator_keys WHERE iss = $1 AND sub = $2 AND state <> 'creating' \
        ORDER BY created_at, id";
    KEY_NAMES = "SELECT label FROM operator_keys";
    BEGIN_CEREMONY = "INSERT INTO ceremonies (id, title, plan, begun_at, is_open) \
        VALUES ($1, $2, $3, $4, 1) ON CONFLICT DO NOTHING";
    END_CEREMONY = "UPDATE ceremonies SET ended_at = $2, is_open = NULL \
        WHERE id = $1 AND is_open = 1";
    OPEN_CEREMONY = "SELECT id, title, plan, begun_at FROM ceremonies WHERE is_open = 1";
    HOLD_CEREMONY = locked!("SELECT title AS label FROM ceremonies WHERE id = $1 AND is_open = 1");
    CLAIM_KEY = "UPDATE operator_keys SET claimed_by = $2, claimed_until = $4 \
        WHERE id = $1 AND state = 'creating' AND (claimed_by IS NULL \
        OR claimed_until <= $3 OR claimed_until > $5)";
    LEAVES_OF = "SELECT leaf FROM audit_leaves WHERE subject = $1 ORDER BY idx";
    LEAVES_ON_THEIR_WAY = "SELECT leaf FROM audit_outbox WHERE subject = $1 ORDER BY seq";
    KEY_WITH = "SELECT hsm, label FROM operator_keys WHERE cka_id = $1";
}

/// No claim of a clock that is right lasts longer, in milliseconds.
const CLAIM_MAX_MS: i64 = 60 * 60 * 1000;

#[derive(FromRow)]
struct LeafBytes {
    leaf: Vec<u8>,
}

#[derive(FromRow)]
struct PlaceAndName {
    hsm: String,
    label: String,
}

#[derive(FromRow)]
struct Name {
    label: String,
}

#[derive(FromRow)]
struct Ceremony {
    id: String,
    title: String,
    plan: String,
    begun_at: i64,
}

async fn import(tx: &mut Tx, key: &OperatorKey, principal: &Principal) -> Result<bool, StoreError> {
    let values = values![
        key.id.to_string(),
        key.cka_id.as_bytes(),
        key.label.as_str(),
        key.group.as_ref().map_or("", |group| group.as_str()),
        key.mode.name(),
        key.state.name(),
        key.public_key.as_bytes().as_slice(),
        key.address.as_slice(),
        principal.iss.as_str(),
        principal.sub.as_str(),
        key.created_at.millis(),
        key.hsm.as_str(),
    ];
    Ok(tx.execute(IMPORT_KEY, values).await? == 1)
}

async fn keys_of(tx: &mut Tx, principal: &Principal) -> Result<Vec<OperatorKey>, StoreError> {
    let values = values![principal.iss.as_str(), principal.sub.as_str()];
    let rows = tx.all::<KeyColumns>(KEYS_OF, values).await?;
    rows.into_iter().map(KeyColumns::finished).collect()
}

async fn begin(tx: &mut Tx, ceremony: &OpenCeremony) -> Result<bool, StoreError> {
    let values = values![
        ceremony.id.to_string(),
        ceremony.title.as_str(),
        ceremony.plan.as_str(),
        ceremony.begun_at.millis(),
    ];
    Ok(tx.execute(BEGIN_CEREMONY, values).await? == 1)
}

async fn open(tx: &mut Tx) -> Result<Option<OpenCeremony>, StoreError> {
    let row = tx.one::<Ceremony>(OPEN_CEREMONY, values![]).await?;
    row.map(|row| {
        Ok(OpenCeremony {
            id: parsed(&row.id)?,
            title: row.title,
            plan: row.plan,
            begun_at: Timestamp::from_millis(row.begun_at),
        })
    })
    .transpose()
}

// Whatever an operation meets forbids the commit: `kept`.
#[async_trait]
impl KeyBook for Tx {
    async fn import_key(
        &mut self,
        key: &OperatorKey,
        principal: &Principal,
    ) -> Result<bool, StoreError> {
        let answer = import(self, key, principal).await;
        self.kept(answer)
    }

    async fn keys_of(&mut self, principal: &Principal) -> Result<Vec<OperatorKey>, StoreError> {
        let answer = keys_of(self, principal).await;
        self.kept(answer)
    }

    async fn key_names(&mut self) -> Result<Vec<String>, StoreError> {
        let rows = self.all::<Name>(KEY_NAMES, values![]).await;
        self.kept(rows).map(|rows| rows.into_iter().map(|row| row.label).collect())
    }

    async fn begin_ceremony(&mut self, ceremony: &OpenCeremony) -> Result<bool, StoreError> {
        let answer = begin(self, ceremony).await;
        self.kept(answer)
    }

    async fn end_ceremony(&mut self, id: Uuid, at: Timestamp) -> Result<bool, StoreError> {
        let ended = self.execute(END_CEREMONY, values![id.to_string(), at.millis()]).await;
        self.kept(ended).map(|rows| rows == 1)
    }

    async fn open_ceremony(&mut self) -> Result<Option<OpenCeremony>, StoreError> {
        let answer = open(self).await;
        self.kept(answer)
    }

    async fn holds_ceremony(&mut self, id: &str) -> Result<bool, StoreError> {
        let row = self.one::<Name>(HOLD_CEREMONY, values![id]).await;
        self.kept(row).map(|row| row.is_some())
    }

    async fn claim_key(
        &mut self,
        key: KeyId,
        holder: HolderId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let latest = now.plus_millis(CLAIM_MAX_MS);
        let values = values![
            key.to_string(),
            holder.to_string(),
            now.millis(),
            until.millis(),
            latest.millis(),
        ];
        let claimed = self.execute(CLAIM_KEY, values).await;
        self.kept(claimed).map(|rows| rows == 1)
    }

    async fn leaves_about(&mut self, subject: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut all = Vec::new();
        for sql in [LEAVES_OF, LEAVES_ON_THEIR_WAY] {
            let rows = self.all::<LeafBytes>(sql, values![subject]).await;
            all.extend(self.kept(rows)?.into_iter().map(|row| row.leaf));
        }
        Ok(all)
    }

    async fn key_with(&mut self, cka_id: &CkaId) -> Result<Option<(HsmName, String)>, StoreError> {
        let row = self.one::<PlaceAndName>(KEY_WITH, values![cka_id.as_bytes()]).await;
        self.kept(row).map(|row| row.map(|row| (HsmName::new(row.hsm), row.label)))
    }
}
