//! Sign a committed decision: permit, HSM, compare, store. Used for first attempts, replacements,
//! messages, and after a crash: one function for all.

use crate::app::{App, AppError, record};
use crate::core::evm::transaction::UnsignedTransaction;
use crate::core::id::RequestId;
use crate::core::permit::{PayloadKind, Permit, RawSignature};
use crate::core::time::Timestamp;
use crate::ports::store::{AttemptRow, End, SignedAttempt, TransactionRow, look, unit};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// An attempt whose signature is committed. Only such bytes are ever sent or released.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Whose.
    pub request: RequestId,
    /// The attempt as stored.
    pub attempt: AttemptRow,
}

/// Signs an attempt, unless it is signed; answers what is stored. `None` means that this process is
/// signing it elsewhere, that a no-op is to take its nonce instead, that its time is over, or that the
/// server waits for an operator.
///
/// # Errors
/// When the HSM, or the store, does not answer: the decision stays, and a later call signs the same
/// bytes.
pub async fn sign(app: &App, request: RequestId, number: i64) -> Result<Option<Signed>, AppError> {
    let Some(_turn) = Turn::take(&app.signing, (request, number)) else {
        return Ok(None);
    };
    sign_alone(app, request, number).await
}

/// The attempts that this process is signing now.
type Signing = Mutex<HashSet<(RequestId, i64)>>;

/// This process's turn at an attempt; given back however the work ends.
struct Turn<'a> {
    signing: &'a Signing,
    attempt: (RequestId, i64),
}

impl<'a> Turn<'a> {
    fn take(signing: &'a Signing, attempt: (RequestId, i64)) -> Option<Self> {
        let mut taken = signing.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.insert(attempt) {
            // No turn may be made here: dropping it would wait for the list, which is locked.
            return None;
        }
        Some(Self { signing, attempt })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut taken = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&self.attempt);
    }
}

async fn sign_alone(
    app: &App,
    request: RequestId,
    number: i64,
) -> Result<Option<Signed>, AppError> {
    let (decision, attempts, row, suspension) = look(&*app.store, "decision", move |unit| {
        Box::pin(async move {
            let decision = unit.decision(request, number).await?;
            let attempts = unit.attempts(request).await?;
            let row = unit.transaction(request).await?;
            Ok((decision, attempts, row, unit.suspension().await?))
        })
    })
    .await?;
    let decision =
        decision.ok_or_else(|| AppError::internal(format!("{request} has no attempt {number}")))?;
    let stored = attempts.into_iter().find(|attempt| attempt.number == number);
    if let Some(attempt) = &stored
        && row.as_ref().is_some_and(|row| is_over(row, attempt, app.clock.now()))
    {
        return Ok(None);
    }
    if let Some(attempt) = stored.iter().find(|attempt| attempt.signature.is_some()) {
        return Ok(Some(Signed { request, attempt: attempt.clone() }));
    }
    if suspension.is_some() {
        tracing::warn!(%request, number, "not signed: the server waits for `claviger reconcile`");
        return Ok(None);
    }
    if let Some(row) = &row
        && row.new.address != decision.public_key.address()
    {
        return Err(AppError::internal(format!("{request} is of another account than its key")));
    }
    let (kind, bytes, digest) = (decision.kind, decision.bytes.clone(), decision.digest);
    let permit = Permit::mint(decision).map_err(AppError::internal)?;
    let signature = app.signer.sign(permit).await?;
    if let (Some(row), Some(attempt)) = (&row, &stored)
        && is_over(row, attempt, app.clock.now())
    {
        tracing::info!(%request, number, "its time was over before the HSM had signed it");
        return Ok(None);
    }
    crate::failpoint!("sign.before_store");
    let signed = SignedAttempt {
        request,
        number,
        signature,
        envelope: envelope(kind, &bytes, &signature)?,
        at: app.clock.now(),
    };
    let leaf = record::signed(&signed, &digest)?;
    let work = Arc::new((signed, leaf));
    let attempts = unit(&*app.store, "store_signature", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (signed, leaf) = &*work;
            let won = unit.store_signature(signed).await?;
            if won {
                unit.append_leaf(leaf).await?;
            }
            // The loser of a race throws its signature away and goes on with the stored one.
            let attempts = unit.attempts(signed.request).await?;
            Ok(if won { End::Commit(attempts) } else { End::Rollback(attempts) })
        })
    })
    .await?;
    crate::failpoint!("sign.after_store");
    app.changed_one(request);
    let attempt = attempts
        .into_iter()
        .find(|attempt| attempt.number == number && attempt.signature.is_some())
        .ok_or_else(|| AppError::internal("a signature was stored and is not there"))?;
    Ok(Some(Signed { request, attempt }))
}

/// Whether what was asked may not be signed or sent any more: a no-op is to take its nonce, or its time is
/// over.
pub(crate) fn is_over(row: &TransactionRow, attempt: &AttemptRow, now: Timestamp) -> bool {
    let is_late = row.new.intent.not_after.is_some_and(|limit| now > limit);
    !attempt.is_no_op() && (row.ending.is_some() || is_late)
}

/// The signed bytes of a transaction, read back and compared with the decided ones.
fn envelope(
    kind: PayloadKind,
    bytes: &[u8],
    signature: &RawSignature,
) -> Result<Option<(alloy::primitives::Bytes, alloy::primitives::B256)>, AppError> {
    match kind {
        PayloadKind::Message | PayloadKind::TypedData | PayloadKind::Authorization => Ok(None),
        PayloadKind::Transaction => {
            let unsigned =
                UnsignedTransaction::from_signing_bytes(bytes).map_err(AppError::internal)?;
            let signed = unsigned.assemble(signature).map_err(AppError::internal)?;
            if !says(&signed.raw, bytes, signature) {
                return Err(AppError::internal("the signed bytes do not say what was permitted"));
            }
            Ok(Some((signed.raw, signed.hash)))
        }
    }
}

/// Whether an envelope, decoded, is the permitted bytes with this signature and nothing else. The signature is
/// over their hash and by the pinned key, as the HSM room has proved; so whoever recovers the sender finds the
/// key's address.
fn says(envelope: &[u8], permitted: &[u8], signature: &RawSignature) -> bool {
    UnsignedTransaction::from_envelope(envelope).is_ok_and(|(read, carried)| {
        carried == *signature && read.signing_bytes().is_ok_and(|bytes| bytes == permitted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::amount::Amount;
    use crate::core::id::ChainId;
    use crate::core::intent::{Fees, TxType};
    use alloy::primitives::{Address, Bytes};
    use uuid::Uuid;

    #[test]
    fn an_envelope_is_compared_with_the_permitted_bytes_and_the_signature() {
        let transaction = |nonce, tx_type| UnsignedTransaction {
            tx_type,
            chain_id: ChainId::new(1),
            nonce,
            to: Some(Address::repeat_byte(7)),
            value: Amount::from(5_u64),
            data: Bytes::from(vec![1, 2, 3]),
            gas: 50_000,
            fees: Fees { max_fee: 9, max_priority_fee: 9 },
            access_list: Vec::new(),
        };
        let signature = |s| RawSignature { r: [3; 32], s: [s; 32], y_parity: true };
        for tx_type in [TxType::Legacy, TxType::Eip2930, TxType::Eip1559] {
            let permitted = transaction(7, tx_type).signing_bytes().unwrap();
            let (good, hash) =
                envelope(PayloadKind::Transaction, &permitted, &signature(5)).unwrap().unwrap();
            assert_eq!(hash, alloy::primitives::keccak256(&good));
            assert!(says(&good, &permitted, &signature(5)));
            assert!(!says(&good, &permitted, &signature(6)), "another signature");
            let other = transaction(8, tx_type).assemble(&signature(5)).unwrap().raw;
            assert!(!says(&other, &permitted, &signature(5)), "another nonce");
            assert!(!says(&[&good[..], &[0]].concat(), &permitted, &signature(5)), "more bytes");
        }
    }

    #[test]
    fn an_attempt_has_one_turn_at_a_time_and_a_refused_one_takes_nothing_away() {
        let signing = Signing::default();
        let attempt = (RequestId::new(Uuid::from_u128(7)), 1);
        let turn = Turn::take(&signing, attempt);
        assert!(turn.is_some());
        assert!(Turn::take(&signing, attempt).is_none());
        assert!(Turn::take(&signing, attempt).is_none(), "the first still has it");
        assert!(Turn::take(&signing, (attempt.0, 2)).is_some());
        drop(turn);
        assert!(Turn::take(&signing, attempt).is_some());
    }
}
