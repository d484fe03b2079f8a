//! Where the attempts of open transactions are mined: one look per account, all of it from one node. Another
//! node's word counts only as a whole, never mixed with the first one's.

use crate::app::ChainRuntime;
use crate::core::tx::state::Status;
use crate::core::tx::step::Inclusion;
use crate::ports::chain::{AccountLook, BlockId, ChainError, Claim, Found, Receipt, Seen, Sought};
use crate::ports::store::{AttemptRow, TransactionRow, is_no_op};
use alloy::primitives::Address;

/// One node's word about one transaction.
#[derive(Clone, Debug)]
pub(crate) struct RowLook {
    /// Whose word it is.
    pub(crate) node: usize,
    /// How many transactions the account has mined at the head.
    pub(crate) nonce_latest: u64,
    /// The same at the newest final block, if it was needed and to be had.
    pub(crate) nonce_final: Option<u64>,
    /// The newest final block, if it was needed.
    pub(crate) last_final: Option<BlockId>,
    /// What was found.
    pub(crate) found: Found,
}

/// What the other nodes have of a transaction that one node does not have.
#[derive(Debug)]
pub(crate) enum Elsewhere {
    /// Nothing that counts.
    Nothing,
    /// Some node has it mined where the first one has not come to yet: nothing new is signed.
    Wait,
    /// More than half of all nodes have the block in which it is mined: this counts in place of the first
    /// one's word.
    Overruled(Box<RowLook>),
}

impl RowLook {
    /// A node's word about each of the transactions that it was asked about, in their order.
    fn each(look: AccountLook) -> impl Iterator<Item = Self> {
        let AccountLook { node, nonce_latest, last_final, nonce_final, found } = look;
        found.into_iter().map(move |found| Self {
            node,
            nonce_latest,
            nonce_final,
            last_final,
            found,
        })
    }

    /// The receipt, if it was read.
    pub(crate) const fn receipt(&self) -> Option<&Receipt> {
        match &self.found {
            Found::Mined(receipt) => Some(receipt),
            _ => None,
        }
    }

    /// Where it is mined, by this look or, if nothing changed, by an earlier one.
    pub(crate) fn inclusion(&self, row: &TransactionRow) -> Option<Inclusion> {
        match (&self.found, &row.mined) {
            (Found::Mined(receipt), _) => Some(Inclusion {
                hash: receipt.transaction_hash,
                block_hash: receipt.block_hash,
                block_number: receipt.block_number,
                success: receipt.success,
            }),
            (Found::Still, Some(mined)) => Some(Inclusion {
                hash: mined.transaction_hash,
                block_hash: mined.block_hash,
                block_number: mined.block_number,
                success: mined.success,
            }),
            _ => None,
        }
    }
}

/// What is to be looked for. Once a transaction was seen mined, its receipt is read again only for its end,
/// or where its status does not say yet that it is mined.
pub(crate) fn sought(row: &TransactionRow, attempts: &[AttemptRow]) -> Sought {
    let seen = row.mined.as_ref().map(|mined| {
        let no_op = is_no_op(attempts, mined.transaction_hash);
        let told = if no_op { Status::Cancelling } else { Status::Mined };
        Seen {
            transaction_hash: mined.transaction_hash,
            block: mined.block(),
            receipt_wanted: row.status != told,
        }
    });
    Sought {
        // An open transaction has a nonce; without one nothing could be mined.
        nonce: row.nonce.unwrap_or(u64::MAX),
        hashes: attempts.iter().rev().filter_map(|attempt| attempt.hash).collect(),
        seen,
    }
}

/// Looks at transactions of one account, in the order given. Those of which the node cannot know, because it
/// has not come to its block or has no receipt of it, are looked at on the others. So many of the account's
/// transactions are known to be final; 0 where nothing is known.
///
/// # Errors
/// When no node answers.
pub(crate) async fn of_account(
    chain: &ChainRuntime,
    address: Address,
    sought: &[Sought],
    final_below: u64,
) -> Result<Vec<RowLook>, ChainError> {
    let look = first_look(chain, address, sought, final_below).await?;
    let mut looks = Vec::with_capacity(sought.len());
    for (one, first) in sought.iter().zip(RowLook::each(look)) {
        let known = if first.found == Found::Unknown {
            others(chain, address, one, first.node)
                .await
                .into_iter()
                .find(|other| matches!(other.found, Found::Mined(_) | Found::Still))
        } else {
            None
        };
        looks.push(known.unwrap_or(first));
    }
    Ok(looks)
}

/// The first node's look, if it is not far behind: so many of the account's transactions are final, and a node
/// that has mined fewer has not come so far, and can tell nothing of the others.
async fn first_look(
    chain: &ChainRuntime,
    address: Address,
    sought: &[Sought],
    final_below: u64,
) -> Result<AccountLook, ChainError> {
    let (mut passed_over, mut behind) = (Vec::new(), None);
    loop {
        let look = match chain.port.look(address, sought, &passed_over).await {
            Ok(Some(look)) if look.nonce_latest >= final_below => return Ok(look),
            Ok(Some(look)) => look,
            Ok(None) => break,
            Err(error) if behind.is_none() => return Err(error),
            Err(_) => break,
        };
        tracing::warn!(node = look.node, %address, "a node is behind what is final");
        passed_over.push(look.node);
        behind = behind.or(Some(look));
    }
    behind.ok_or_else(|| ChainError::Unavailable("no node".to_owned()))
}

/// What the other nodes that answer have of one transaction.
async fn others(
    chain: &ChainRuntime,
    address: Address,
    one: &Sought,
    first: usize,
) -> Vec<RowLook> {
    let (mut looks, mut passed_over) = (Vec::new(), vec![first]);
    let one = std::slice::from_ref(one);
    while let Ok(Some(look)) = chain.port.look(address, one, &passed_over).await {
        passed_over.push(look.node);
        looks.extend(RowLook::each(look).next());
    }
    looks
}

/// Whether another node has a transaction mined of which `first` has nothing. In a block in whose place the
/// first node has another, that node is on a fork or lies, and must not keep the transaction from going on.
pub(crate) async fn elsewhere(
    chain: &ChainRuntime,
    address: Address,
    one: &Sought,
    first: &RowLook,
) -> Elsewhere {
    let mut answer = Elsewhere::Nothing;
    let others = others(chain, address, one, first.node).await;
    for other in &others {
        let Some(receipt) = other.receipt() else {
            continue;
        };
        let claim = Claim::Mined { receipt: Box::new(receipt.clone()), must_be_final: false };
        let said = chain.port.agreement(&claim, Some(other.node)).await;
        let is_contradicted = said.contradict.contains(&first.node);
        // A node that has the block, and does not say that it lacks the transaction, withholds the receipt.
        let counts = said.is_carried()
            || (!is_contradicted && chain.port.has_block(receipt.block(), first.node).await);
        if counts {
            tracing::warn!(node = first.node, "a node does not show what most others have mined");
            return Elsewhere::Overruled(Box::new(other.clone()));
        }
        if is_contradicted {
            tracing::warn!(node = other.node, "a node has it mined in a block of another fork");
        } else {
            answer = Elsewhere::Wait;
        }
    }
    // The first says that the nonce is used, and by none of ours: so must most of those that answer.
    let unused = others.iter().filter(|it| it.nonce_latest <= one.nonce && it.receipt().is_none());
    let is_alone = unused.clone().count().saturating_mul(2) > others.len().saturating_add(1);
    match (&answer, unused.into_iter().next()) {
        (Elsewhere::Nothing, Some(other)) if first.nonce_latest > one.nonce && is_alone => {
            tracing::warn!(node = first.node, "a node says that a nonce is used, and is alone");
            Elsewhere::Overruled(Box::new(other.clone()))
        }
        _ => answer,
    }
}
