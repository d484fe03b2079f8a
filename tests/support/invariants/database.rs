//! One consistent look at the server's database, with SQL of its own.

use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow};
use sqlx::{FromRow, PgTransaction, SqliteTransaction};
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct TransactionRow {
    pub seq: i64,
    pub id: String,
    pub chain: String,
    pub chain_id: i64,
    pub address: Vec<u8>,
    pub status: String,
    pub nonce: Option<i64>,
    pub tx_type: String,
    pub recipient: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub data: Vec<u8>,
    pub gas: i64,
    pub cap_fee: Vec<u8>,
    pub cap_tip: Vec<u8>,
    pub access_list: String,
    pub source_block: Option<Vec<u8>>,
    pub source_tx: Option<Vec<u8>>,
    pub source_log: Option<i64>,
    pub decision: String,
    pub mined_hash: Option<Vec<u8>>,
    pub mined_block: Option<Vec<u8>>,
    pub mined_success: Option<i64>,
    pub failure_code: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
    pub version: i64,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct AttemptRow {
    pub request_id: String,
    pub number: i64,
    pub reason: String,
    pub kind: String,
    pub bytes: Vec<u8>,
    pub digest: Vec<u8>,
    pub signature: Option<Vec<u8>>,
    pub raw: Option<Vec<u8>>,
    pub hash: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct SignatureRow {
    pub id: String,
    pub chain_id: Option<i64>,
    pub address: Vec<u8>,
    pub owner: Option<String>,
    pub created_at: i64,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct LaneRow {
    pub chain_id: i64,
    pub address: Vec<u8>,
    pub mode: String,
    pub next_nonce: i64,
    pub halted: Option<String>,
}

/// A mined transaction that no request made: a stranger's, or what a restored database forgot.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct OrphanRow {
    pub chain_id: i64,
    pub address: Vec<u8>,
    pub nonce: i64,
    pub claimed_by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct LimitRow {
    pub id: Vec<u8>,
    pub label: String,
    pub span_ms: i64,
    pub held: Vec<u8>,
    pub spent: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct EntryRow {
    pub limit_id: Vec<u8>,
    pub owner: String,
    pub kind: String,
    pub value: Vec<u8>,
    pub fee: Vec<u8>,
    pub settled_at: Option<i64>,
}

/// What is spent of a limit, in pieces of its span.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct PieceRow {
    pub limit_id: Vec<u8>,
    pub last_at: i64,
    pub spent: Vec<u8>,
}

/// What others may take later.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct ExposureRow {
    pub owner: String,
    pub n: i64,
    pub amount: Vec<u8>,
    pub remaining: Vec<u8>,
    pub state: String,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct LeafRow {
    pub kind: String,
    pub subject: String,
    pub leaf: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct BlobRow {
    pub hash: Vec<u8>,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, FromRow)]
pub(super) struct BoundRow {
    pub request_id: String,
}

/// What the database says at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Snapshot {
    pub transactions: Vec<TransactionRow>,
    pub attempts: Vec<AttemptRow>,
    pub signatures: Vec<SignatureRow>,
    pub lanes: Vec<LaneRow>,
    pub orphans: Vec<OrphanRow>,
    pub limits: Vec<LimitRow>,
    pub entries: Vec<EntryRow>,
    pub pieces: Vec<PieceRow>,
    pub exposures: Vec<ExposureRow>,
    /// In the log, then on their way to it: the order of their commits.
    pub leaves: Vec<LeafRow>,
    pub blobs: Vec<BlobRow>,
    pub bound: Vec<BoundRow>,
    /// Chains that were reorganised below what was final.
    pub broken: Vec<i64>,
}

const TRANSACTIONS: &str = "SELECT seq, id, chain, chain_id, address, status, nonce, tx_type, \
    recipient, value, data, gas, cap_fee, cap_tip, access_list, source_block, source_tx, source_log, \
    decision, mined_hash, mined_block, mined_success, failure_code, created_at, updated_at, version \
    FROM transactions ORDER BY seq";
const ATTEMPTS: &str = "SELECT request_id, number, reason, kind, bytes, digest, signature, raw, hash \
    FROM attempts ORDER BY request_id, number";
const SIGNATURES: &str =
    "SELECT id, chain_id, address, owner, created_at FROM signature_requests ORDER BY id";
const LANES: &str =
    "SELECT chain_id, address, mode, next_nonce, halted FROM lanes ORDER BY chain_id, address";
const ORPHANS: &str =
    "SELECT chain_id, address, nonce, claimed_by FROM orphans ORDER BY chain_id, address, nonce";
const LIMITS: &str = "SELECT id, label, span_ms, held, spent FROM limits ORDER BY id";
const ENTRIES: &str = "SELECT limit_id, owner, kind, value, fee, settled_at FROM limit_entries \
    ORDER BY limit_id, owner";
const PIECES: &str = "SELECT limit_id, last_at, spent FROM limit_buckets ORDER BY limit_id, bucket";
const EXPOSURES: &str =
    "SELECT owner, n, amount, remaining, state FROM exposures ORDER BY owner, n";
const LOGGED: &str = "SELECT kind, subject, leaf FROM audit_leaves ORDER BY idx";
const WAITING: &str = "SELECT kind, subject, leaf FROM audit_outbox ORDER BY seq";
const LOGGED_OF: &str = "SELECT leaf FROM audit_leaves WHERE kind = $1 ORDER BY idx";
const WAITING_OF: &str = "SELECT leaf FROM audit_outbox WHERE kind = $1 ORDER BY seq";
const BLOBS: &str = "SELECT hash, bytes FROM audit_blobs ORDER BY hash";
const BOUND: &str = "SELECT request_id FROM idempotency_keys ORDER BY request_id";

const BROKEN: &str = "SELECT chain_id FROM anchors WHERE broken IS NOT NULL ORDER BY chain_id";

/// A transaction that sees one state from its first statement to its last.
enum Look {
    Sqlite(SqliteTransaction<'static>),
    Postgres(PgTransaction<'static>),
}

impl Look {
    async fn begin(url: &str) -> Self {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).unwrap().create_if_missing(false);
            let pool = SqlitePoolOptions::new().max_connections(1);
            let pool = pool.connect_with(options.pragma("query_only", "ON")).await;
            return Self::Sqlite(pool.unwrap().begin().await.unwrap());
        }
        let pool = PgPoolOptions::new().max_connections(1).connect(url).await.unwrap();
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Self::Postgres(pool.begin_with(begin).await.unwrap())
    }

    async fn all<T>(&mut self, sql: &'static str) -> Vec<T>
    where
        T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let rows = match self {
            Self::Sqlite(tx) => sqlx::query_as(sql).fetch_all(&mut **tx).await,
            Self::Postgres(tx) => sqlx::query_as(sql).fetch_all(&mut **tx).await,
        };
        rows.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn leaves(&mut self, sql: &'static str, kind: &str) -> Vec<Vec<u8>> {
        let rows = match self {
            Self::Sqlite(tx) => sqlx::query_scalar(sql).bind(kind).fetch_all(&mut **tx).await,
            Self::Postgres(tx) => sqlx::query_scalar(sql).bind(kind).fetch_all(&mut **tx).await,
        };
        rows.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

/// The leaves of one kind, in the log or on their way to it, in order: little to read beside a load.
pub(super) async fn leaves(url: &str, kind: &str) -> Vec<Vec<u8>> {
    let mut look = Look::begin(url).await;
    let mut leaves = look.leaves(LOGGED_OF, kind).await;
    leaves.extend(look.leaves(WAITING_OF, kind).await);
    leaves
}

impl Snapshot {
    pub(super) async fn read(url: &str) -> Self {
        let mut look = Look::begin(url).await;
        let mut leaves: Vec<LeafRow> = look.all(LOGGED).await;
        leaves.extend(look.all::<LeafRow>(WAITING).await);
        Self {
            transactions: look.all(TRANSACTIONS).await,
            attempts: look.all(ATTEMPTS).await,
            signatures: look.all(SIGNATURES).await,
            lanes: look.all(LANES).await,
            orphans: look.all(ORPHANS).await,
            limits: look.all(LIMITS).await,
            entries: look.all(ENTRIES).await,
            pieces: look.all(PIECES).await,
            exposures: look.all(EXPOSURES).await,
            leaves,
            blobs: look.all(BLOBS).await,
            bound: look.all(BOUND).await,
            broken: look.all::<(i64,)>(BROKEN).await.into_iter().map(|row| row.0).collect(),
        }
    }

    /// Whether nothing happened between two looks. When bytes were last sent is not in it.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    pub(super) fn transaction(&self, id: &str) -> Option<&TransactionRow> {
        self.transactions.iter().find(|row| row.id == id)
    }

    /// The attempts of a request, in order.
    pub(super) fn attempts_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a AttemptRow> {
        self.attempts.iter().filter(move |attempt| attempt.request_id == id)
    }

    /// The text of a field of a leaf: itself, or what is kept beside the log under its hash.
    pub(super) fn text(&self, field: &serde_json::Value) -> Option<String> {
        let text = field.as_str()?;
        let Some(rest) = text.strip_prefix("sha256:") else { return Some(text.to_owned()) };
        let hash = hex::decode(rest.split(':').next()?).ok()?;
        let blob = self.blobs.iter().find(|blob| blob.hash == hash)?;
        String::from_utf8(blob.bytes.clone()).ok()
    }
}

/// The events in the watcher's outbox that are logs, by event id, with their states.
pub(super) async fn outbox(url: &str) -> Vec<(String, String)> {
    let mut look = Look::begin(url).await;
    look.all("SELECT event_id, state FROM outbox WHERE kind = 'log' ORDER BY id").await
}
