//! Take a transaction that the chain has already for an attempt of the request that asked for it: what a
//! restored database has forgotten is found again, and not paid twice.

use crate::app::accept::AcceptCommand;
use crate::app::{App, AppError, lane, record, signers};
use crate::core::evm::transaction::UnsignedTransaction;
use crate::core::key::PublicKey;
use crate::core::permit::RawSignature;
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::store::{
    ADOPTED, NO_OP, NewEvent, Payment, Sent, SignedAttempt, StoreError, TransactionRow, Unit, look,
};
use alloy::primitives::{B256, Bytes, keccak256};

/// Says whether a signature over a digest is of a key. Curve arithmetic is not of this room.
pub type Prove = fn(&B256, &RawSignature, &PublicKey) -> bool;

/// Signed bytes that are on the chain, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnChain {
    /// What they say.
    pub says: UnsignedTransaction,
    /// The signature, which is the account's.
    signature: RawSignature,
    raw: Bytes,
    /// What the chain calls them.
    pub hash: B256,
}

impl OnChain {
    /// Reads signed bytes; `None` if they are of a type that we do not sign.
    #[must_use]
    pub fn read(raw: &Bytes) -> Option<Self> {
        let (says, signature) = UnsignedTransaction::from_envelope(raw).ok()?;
        Some(Self { says, signature, raw: raw.clone(), hash: keccak256(raw) })
    }

    /// Whether the signature is this key's: a node's word is not enough for it.
    #[must_use]
    pub fn is_of(&self, key: &PublicKey, prove: Prove) -> bool {
        let bytes = self.says.signing_bytes();
        bytes.is_ok_and(|bytes| prove(&keccak256(bytes), &self.signature, key))
    }

    /// Whether this is what was asked, but for nonce and fees.
    #[must_use]
    pub fn is_asked_by(&self, row: &TransactionRow) -> bool {
        let asked = UnsignedTransaction::from_intent(&row.new.intent, 0, self.says.fees);
        self.says.is_same_but_for_fees(&asked)
    }
}

/// Stores the bytes as a further attempt of a request that has their nonce, with the leaves of a decision
/// and of a signature: both were made before, by a database that is gone.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn adopt(
    unit: &mut dyn Unit,
    row: &TransactionRow,
    found: &OnChain,
    now: Timestamp,
) -> Result<(), StoreError> {
    let attempts = unit.attempts(row.new.id).await?;
    let number = attempts.last().map_or(0, |attempt| attempt.number).saturating_add(1);
    let is_asked = found.is_asked_by(row);
    let reason = if is_asked { ADOPTED } else { NO_OP };
    let attempt = lane::new_attempt(row, &found.says, number, reason, now)?;
    let decision = if is_asked {
        row.new.decision_json.clone()
    } else {
        record::no_op_decision(row.ending.unwrap_or(Ending::Cancelled), None)
    };
    if !unit.insert_attempt(&attempt).await? {
        return Err(StoreError::Contended);
    }
    unit.append_leaf(&record::decided(&attempt, &decision)?).await?;
    let signed = SignedAttempt {
        request: row.new.id,
        number,
        signature: found.signature,
        envelope: Some((found.raw.clone(), found.hash)),
        at: now,
    };
    if !unit.store_signature(&signed).await? {
        return Err(StoreError::Contended);
    }
    unit.append_leaf(&record::signed(&signed, &attempt.digest)?).await?;
    unit.mark_sent(row.new.id, number, &Sent::Accepted, "found in a block", now).await
}

/// Gives a queued request the nonce of what is on the chain for it, and the attempt. `false` if it changed
/// meanwhile.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn take(
    unit: &mut dyn Unit,
    row: &TransactionRow,
    found: &OnChain,
    event_id: String,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if !unit.adopt_nonce(row, found.says.nonce, now).await? {
        return Ok(false);
    }
    let row = TransactionRow { nonce: Some(found.says.nonce), ..row.clone() };
    adopt(unit, &row, found, now).await?;
    unit.append_event(&submitted(&row, event_id, now)).await?;
    Ok(true)
}

fn submitted(row: &TransactionRow, event_id: String, now: Timestamp) -> NewEvent {
    record::status_event(row, Status::Submitted, event_id, now)
}

/// A request for what is on the chain already and belongs to nobody.
#[derive(Debug, Clone)]
pub(crate) struct Repeated {
    /// What is on the chain.
    pub(crate) found: OnChain,
    /// The request as it was mined: with that account, that gas and that type.
    pub(crate) command: AcceptCommand,
}

/// Looks for a mined transaction that nobody has claimed and that pays the same from an account that the
/// request may use. Whoever asks for the same twice is bound to it once: a payment may be missing then,
/// and is never doubled.
///
/// # Errors
/// `ReconcileRequired` while the server waits. When the store does not answer.
pub(crate) async fn repeated(
    app: &App,
    command: &AcceptCommand,
) -> Result<Option<Repeated>, AppError> {
    let same = app.chain(&command.chain).map(|chain| Payment {
        chain: chain.settings.id,
        to: command.to,
        value: command.value,
        data: command.data.clone(),
    });
    let (waits, orphans) = look(&*app.store, "repeated", move |unit| {
        let same = same.clone();
        Box::pin(async move {
            let waits = unit.suspension().await?;
            let mut orphans = Vec::new();
            if let Some(same) = &same {
                for orphan in unit.same_orphans(same).await? {
                    let key = unit.key_at(orphan.address).await?;
                    orphans.extend(key.map(|key| (orphan, key)));
                }
            }
            Ok((waits, orphans))
        })
    })
    .await?;
    if let Some(why) = waits {
        return Err(AppError::ReconcileRequired(why.reason));
    }
    let mine = orphans.into_iter().find_map(|(orphan, key)| {
        let is_ours = signers::is_named(app, &key, &command.signer);
        let raw = orphan.raw.as_ref().filter(|_| is_ours)?;
        // Its signature was checked when it was found.
        Some((orphan.address, OnChain::read(raw)?))
    });
    let now = app.clock.now();
    Ok(mine.map(|(address, found)| Repeated {
        command: AcceptCommand {
            signer: format!("{address:#x}"),
            tx_type: Some(found.says.tx_type),
            gas: Some(found.says.gas),
            access_list: found.says.access_list.clone(),
            // It was in time when it was signed.
            not_after: command.not_after.filter(|limit| *limit > now),
            ..command.clone()
        },
        found,
    }))
}

/// Whether a mined transaction that nobody has claimed is what this request asks, from an account that it may
/// use: a unit whose request was looked at before that was found must not give a new nonce for it.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn is_mined_for(
    unit: &mut dyn Unit,
    row: &TransactionRow,
) -> Result<bool, StoreError> {
    let intent = &row.new.intent;
    let payment = Payment {
        chain: intent.chain.id,
        to: intent.to,
        value: intent.value,
        data: intent.data.clone(),
    };
    for orphan in unit.same_orphans(&payment).await? {
        if orphan.raw.is_none() {
            continue;
        }
        let Some(key) = unit.key_at(orphan.address).await? else {
            continue;
        };
        let group = key.group.as_ref().is_some_and(|group| group.as_str() == row.new.signer);
        if group || key.address == row.new.address {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Binds a request that was just stored to what is on the chain for it. `false` if another request was
/// faster.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn claim(
    unit: &mut dyn Unit,
    row: &TransactionRow,
    found: &OnChain,
    event_id: String,
    now: Timestamp,
) -> Result<bool, StoreError> {
    Ok(unit.claim_orphan(found.hash, row.new.id).await?
        && take(unit, row, found, event_id, now).await?)
}
