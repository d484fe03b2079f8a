//! Tens of thousands of keys: one made in one step, one found without the others, lists by pages.

use super::column::to_i64;
use super::keys::{KeyColumns, new_key};
use super::lanes::{self, held};
use super::statement::{Tx, values};
use crate::core::id::{ChainId, GroupName, HsmName, KeyId};
use crate::core::key::{CkaId, NonceMode, OperatorKey, PublicKey, WrappedKey};
use crate::ports::store::{
    Candidate, KeyFilter, LaneLoad, ManyKeys, NewKey, StoreError, Wrapped, candidates_max,
};
use alloy::primitives::Address;
use async_trait::async_trait;
use sqlx::FromRow;

/// Keys of a group that may be given work on chain $1, each with what its lane has to do.
macro_rules! candidates {
    ($which:literal) => {
        concat!(
            "SELECT k.*, l.mode AS lane_mode, l.halted, ls.holder, ls.until, \
             (SELECT COUNT(*) FROM transactions t WHERE t.chain_id = $1 AND t.address = k.address \
             AND t.status IN ('submitted', 'cancelling') AND t.mined_hash IS NULL) AS flying, \
             (SELECT COUNT(*) FROM (SELECT 1 FROM transactions q WHERE q.chain_id = $1 \
             AND q.address = k.address AND q.status = 'queued' LIMIT 256) w) AS queued \
             FROM operator_keys k LEFT JOIN lanes l ON l.chain_id = $1 AND l.address = k.address \
             LEFT JOIN leases ls ON ls.chain_id = l.chain_id AND ls.address = l.address \
             WHERE k.group_name = $2 AND k.state = 'active' ",
            $which
        )
    };
}

statements! {
    INSERT_WRAPPED = "INSERT INTO operator_keys (id, cka_id, label, group_name, mode, state, iss, sub, \
        created_at, hsm, public_key, address, wrapped, wrapped_under) \
        VALUES ($1, $2, $3, $4, $5, 'active', $6, $7, $8, $9, $10, $11, $12, $13) \
        ON CONFLICT DO NOTHING";
    KEY = "SELECT * FROM operator_keys WHERE state <> 'creating' AND id = $1";
    KEY_AT = "SELECT * FROM operator_keys WHERE state <> 'creating' AND address = $1";
    OLDEST_OF = "SELECT * FROM operator_keys WHERE group_name = $1 AND state = 'active' \
        ORDER BY created_at, id LIMIT 1";
    TOKEN_KEYS = "SELECT * FROM operator_keys WHERE wrapped_under IS NULL AND state <> 'creating' \
        ORDER BY created_at, id";
    WRAPPED_UNDER = "SELECT hsm, wrapped_under, COUNT(*) AS n FROM operator_keys \
        WHERE wrapped_under IS NOT NULL GROUP BY wrapped_under, hsm ORDER BY hsm, wrapped_under";
    KEYS_PAGE = "SELECT * FROM operator_keys WHERE state <> 'creating' AND id > $1 \
        AND (group_name = $2 OR $2 IS NULL) AND (hsm = $3 OR $3 IS NULL) \
        AND (state = $4 OR $4 IS NULL) \
        AND (($5 = 'wrapped') = (wrapped IS NOT NULL) OR $5 IS NULL) \
        ORDER BY id LIMIT $6";
    GROUP_UP_TO = "SELECT COUNT(*) AS n FROM (SELECT 1 FROM operator_keys \
        WHERE group_name = $1 AND state = 'active' LIMIT $2) few";
    ALL_CANDIDATES = candidates!("ORDER BY k.created_at, k.id LIMIT $3");
    CANDIDATES_FROM = candidates!("AND k.address >= $3 ORDER BY k.address LIMIT $4");
}

#[derive(FromRow)]
struct CandidateColumns {
    #[sqlx(flatten)]
    key: KeyColumns,
    lane_mode: Option<String>,
    halted: Option<String>,
    holder: Option<String>,
    until: Option<i64>,
    flying: i64,
    queued: i64,
}

#[derive(FromRow)]
struct Count {
    n: i64,
}

#[derive(FromRow)]
struct UnderColumns {
    hsm: String,
    wrapped_under: Vec<u8>,
    n: i64,
}

impl CandidateColumns {
    fn read(self) -> Result<Candidate, StoreError> {
        let key = self.key.finished()?;
        let Some(mode) = &self.lane_mode else {
            return Ok(Candidate { key, lane: None });
        };
        let lane = LaneLoad {
            address: key.address,
            mode: NonceMode::from_name(mode)
                .ok_or_else(|| super::column::corrupt("a lane's mode"))?,
            halted: self.halted.is_some(),
            flying: self.flying,
            queued: self.queued,
            lease: held(self.holder.as_deref(), self.until)?,
        };
        Ok(Candidate { key, lane: Some(lane) })
    }
}

pub(super) async fn insert_wrapped_key(
    tx: &mut Tx,
    key: &NewKey,
    public_key: &PublicKey,
    wrapped: &WrappedKey,
) -> Result<bool, StoreError> {
    let mut values = new_key(key);
    values.extend(values![
        public_key.as_bytes().as_slice(),
        public_key.address().as_slice(),
        wrapped.blob.as_slice(),
        wrapped.under.as_bytes(),
    ]);
    Ok(tx.execute(INSERT_WRAPPED, values).await? == 1)
}

pub(super) async fn key(tx: &mut Tx, id: KeyId) -> Result<Option<OperatorKey>, StoreError> {
    let row = tx.one::<KeyColumns>(KEY, values![id.to_string()]).await?;
    row.map(KeyColumns::finished).transpose()
}

pub(super) async fn key_at(
    tx: &mut Tx,
    address: Address,
) -> Result<Option<OperatorKey>, StoreError> {
    let row = tx.one::<KeyColumns>(KEY_AT, values![address.as_slice()]).await?;
    row.map(KeyColumns::finished).transpose()
}

pub(super) async fn oldest_of(
    tx: &mut Tx,
    group: &GroupName,
) -> Result<Option<OperatorKey>, StoreError> {
    let row = tx.one::<KeyColumns>(OLDEST_OF, values![group.as_str()]).await?;
    row.map(KeyColumns::finished).transpose()
}

pub(super) async fn token_keys(tx: &mut Tx) -> Result<Vec<OperatorKey>, StoreError> {
    let rows = tx.all::<KeyColumns>(TOKEN_KEYS, values![]).await?;
    rows.into_iter().map(KeyColumns::finished).collect()
}

pub(super) async fn wrapped_under(tx: &mut Tx) -> Result<Vec<Wrapped>, StoreError> {
    let rows = tx.all::<UnderColumns>(WRAPPED_UNDER, values![]).await?;
    let read = |row: UnderColumns| Wrapped {
        hsm: HsmName::new(row.hsm),
        under: CkaId::new(row.wrapped_under),
        keys: row.n,
    };
    Ok(rows.into_iter().map(read).collect())
}

pub(super) async fn keys_page(
    tx: &mut Tx,
    filter: &KeyFilter,
) -> Result<Vec<OperatorKey>, StoreError> {
    let values = values![
        filter.after.map_or(String::new(), |id| id.to_string()),
        filter.group.as_ref().map(|group| group.as_str().to_owned()),
        filter.hsm.as_ref().map(|hsm| hsm.as_str().to_owned()),
        filter.state.map(|state| state.name().to_owned()),
        filter.is_wrapped.map(|is| if is { "wrapped" } else { "token" }.to_owned()),
        filter.limit,
    ];
    let rows = tx.all::<KeyColumns>(KEYS_PAGE, values).await?;
    rows.into_iter().map(KeyColumns::finished).collect()
}

/// All of a small group, oldest first; of a large one as many, from an address on, round the end.
pub(super) async fn candidates(
    tx: &mut Tx,
    chain: ChainId,
    group: &GroupName,
    from: Address,
) -> Result<Vec<Candidate>, StoreError> {
    let (chain, most) = (to_i64(chain.get())?, candidates_max());
    let asked = values![group.as_str(), most.saturating_add(1)];
    let size = tx.one::<Count>(GROUP_UP_TO, asked).await?.map_or(0, |row| row.n);
    let mut rows = if size <= most {
        tx.all::<CandidateColumns>(ALL_CANDIDATES, values![chain, group.as_str(), most]).await?
    } else {
        let values = values![chain, group.as_str(), from.as_slice(), most];
        tx.all::<CandidateColumns>(CANDIDATES_FROM, values).await?
    };
    let found = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let missing = most.saturating_sub(found);
    if size > most && missing > 0 {
        let first = Address::ZERO;
        let values = values![chain, group.as_str(), first.as_slice(), missing];
        rows.extend(tx.all::<CandidateColumns>(CANDIDATES_FROM, values).await?);
    }
    rows.into_iter().map(CandidateColumns::read).collect()
}

/// Whatever an operation meets forbids the commit.
macro_rules! kept {
    ($tx:ident, $operation:expr) => {{
        let answer = $operation.await;
        $tx.kept(answer)
    }};
}

#[async_trait]
impl ManyKeys for Tx {
    async fn insert_wrapped_key(
        &mut self,
        key: &NewKey,
        public_key: &PublicKey,
        wrapped: &WrappedKey,
    ) -> Result<bool, StoreError> {
        kept!(self, insert_wrapped_key(self, key, public_key, wrapped))
    }

    async fn key(&mut self, id: KeyId) -> Result<Option<OperatorKey>, StoreError> {
        kept!(self, key(self, id))
    }

    async fn key_at(&mut self, address: Address) -> Result<Option<OperatorKey>, StoreError> {
        kept!(self, key_at(self, address))
    }

    async fn oldest_of(&mut self, group: &GroupName) -> Result<Option<OperatorKey>, StoreError> {
        kept!(self, oldest_of(self, group))
    }

    async fn token_keys(&mut self) -> Result<Vec<OperatorKey>, StoreError> {
        kept!(self, token_keys(self))
    }

    async fn wrapped_under(&mut self) -> Result<Vec<Wrapped>, StoreError> {
        kept!(self, wrapped_under(self))
    }

    async fn keys_page(&mut self, filter: &KeyFilter) -> Result<Vec<OperatorKey>, StoreError> {
        kept!(self, keys_page(self, filter))
    }

    async fn candidates(
        &mut self,
        chain: ChainId,
        group: &GroupName,
        from: Address,
    ) -> Result<Vec<Candidate>, StoreError> {
        kept!(self, candidates(self, chain, group, from))
    }

    async fn has_many_lanes(&mut self, chain: ChainId) -> Result<bool, StoreError> {
        kept!(self, lanes::has_many_lanes(self, chain))
    }
}
