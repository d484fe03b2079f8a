//! What was found, in words for people.

use super::{Account, Finding, Forgotten, Wait, What};
use crate::core::id::RequestId;
use crate::ports::chain::MinedTransaction;
use alloy::primitives::utils::format_ether;

/// All sentences about one account; none if all agrees.
#[must_use]
pub fn explain(account: &Account) -> Vec<String> {
    let mut told = Vec::new();
    if let Some(reason) = &account.halted {
        told.push(format!("its lane is halted: {reason}"));
    }
    told.extend(account.findings.iter().map(finding));
    told.extend(account.waits().iter().map(wait));
    told
}

fn finding(finding: &Finding) -> String {
    let nonce = finding.nonce;
    if let What::Vanished(request) = finding.what {
        let then = match &finding.again {
            Some(_) => "its bytes are sent again, so that it is mined again",
            None => {
                "nothing was mined for it, so that nothing can be sent again: the account's later \
                 nonces wait for this one"
            }
        };
        return format!(
            "nonce {nonce} is not used any more: the end of request {request} was told, and its block is \
             gone; {then}"
        );
    }
    let Some(mined) = &finding.mined else {
        return format!(
            "nonce {nonce} is used, and the block was not found: no node has the account's old state, \
             and it is not in the newest blocks. Ask a node that keeps old state"
        );
    };
    let place = if finding.is_final { "final" } else { "not final yet" };
    let does = does(finding, mined);
    let is = match finding.what {
        What::Attempt(request) => format!(
            "it is what request {request} asked, but for its fees: the database lost this attempt"
        ),
        What::NoOp(request) => format!(
            "it is a no-op of the account, at the nonce of request {request}: the database lost its \
             cancellation"
        ),
        What::Queued(request) => format!(
            "it is what request {request} asked, which waits for a nonce in this database: the database \
             lost that it was sent"
        ),
        What::Foreign(request) => foreign(finding, request),
        What::Undecided => undecided(finding),
        What::Orphan => {
            "no request of this database asked for it: the database lost that request, or \
                         somebody else used the key"
                .to_owned()
        }
        What::Turned(request) => format!(
            "the end of request {request} was told by another transaction at this nonce, whose block is \
             gone. What was told is not changed: whoever relied on it must be told by people"
        ),
        What::Unseen | What::Vanished(_) => String::new(),
    };
    format!(
        "nonce {nonce} was used by {:#x} in block {} ({place}): {does}; {is}",
        mined.hash, mined.block_number
    )
}

fn foreign(finding: &Finding, request: RequestId) -> String {
    let what = format!(
        "it is not what request {request} asked, which has this nonce: somebody else used the key, or it \
         was another request of a database that is gone. Request {request} cannot be mined any more, and \
         fails"
    );
    if !finding.candidates.is_empty() {
        return format!("{what}. Of this one: {}", undecided(finding));
    }
    match (&finding.found, finding.asked_by) {
        (None, _) => what,
        (Some(_), None) => format!(
            "{what}; as our key signed this one, it is bound to the next request that asks for the same"
        ),
        (Some(_), Some(asked_by)) => format!(
            "{what}; as our key signed this one, it is bound to request {asked_by}, which asks for the same \
             and waits for a nonce"
        ),
    }
}

fn undecided(finding: &Finding) -> String {
    let all: Vec<String> = finding.candidates.iter().map(ToString::to_string).collect();
    format!(
        "it is what each of the requests {} asked, which wait in this database, and nothing tells which of them \
         was sent, or whether it was another request that is lost. Each that is not named can be paid still",
        all.join(", ")
    )
}

fn does(finding: &Finding, mined: &MinedTransaction) -> String {
    let value = format_ether(mined.value);
    let value = value.trim_end_matches('0').trim_end_matches('.');
    let to = mined.to.map_or_else(|| "a new contract".to_owned(), |to| format!("{to:#x}"));
    let with = match mined.data.get(..4) {
        Some(selector) => {
            format!(", calling 0x{} with {} bytes", hex::encode(selector), mined.data.len())
        }
        None => String::new(),
    };
    let strange =
        if finding.found.is_none() { " (no signature of ours was told of it)" } else { "" };
    format!("it sends {value} ether ({} wei) to {to}{with}{strange}", mined.value)
}

fn wait(wait: &Wait) -> String {
    match wait {
        Wait::NotFinal(nonce) => {
            format!("nonce {nonce} is not final yet: run this again when its block is")
        }
        Wait::Undecided(nonce) => format!(
            "say what nonce {nonce} is: --adopt 0xHASH=REQUEST with one of those requests, the one that was sent \
             (its caller knows the transaction, or the log that was exported), or --adopt 0xHASH=none"
        ),
        Wait::Unseen(nonce) => format!("nonce {nonce} must be found first"),
        Wait::Unread(nonce) => format!(
            "what is said of nonce {nonce} is one node's word, without a signature of this account's key: \
             the node may be wrong, and something of ours be there in truth. Run this again with another \
             node; if you have looked at it elsewhere, in a block explorer for example, and it is so, say \
             --even-if-pending"
        ),
        Wait::Pending(nonce) => format!(
            "a node's pool has transactions up to nonce {nonce} that this database does not know: run \
             this again when they are mined. Paying anew before that may pay twice"
        ),
        Wait::Given(nonce) => format!(
            "nonces up to {nonce} were given before the database was lost, and are not mined: what was \
             signed with them may still be, as long as anybody has the bytes. Run this again when they \
             are mined; if you know that they were never sent, say --even-if-pending"
        ),
    }
}

/// The sentence about an account that the database does not know.
#[must_use]
pub fn explain_forgotten(forgotten: &Forgotten) -> String {
    let Forgotten { chain, address, given } = forgotten;
    format!(
        "{address:#x} on chain {chain}: the memory beside the audit record says that {given} nonces were \
         given, and this database has no such account to compare, or its chain is not configured: its key \
         was made in the time that was lost. What it sent is not found here, and would be paid again. Look \
         what this account has mined; if nothing of it will be asked for again, say --even-if-pending: then \
         the account is remembered no more"
    )
}
