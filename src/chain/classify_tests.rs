//! One line per text that a client really says.

use super::*;

fn error(code: i64, message: &str) -> NodeError {
    NodeError { code, message: message.to_owned(), data: None, raw: None }
}

fn sent(message: &str) -> Broadcast {
    error(-32000, message).broadcast()
}

#[test]
fn already_known_in_every_dialect_is_accepted() {
    for text in [
        "already known",                                        // geth, reth, Erigon
        "AlreadyKnown",                                         // Nethermind
        "Known transaction",                                    // Besu
        "INTERNAL_ERROR: already known",                        // Erigon over gRPC
        "existing tx with same hash",                           // Erigon
        "transaction already imported",                         // anvil
        "transaction already in pool",                          // anvil
        "Transaction with the same hash was already imported.", // OpenEthereum
        "known transaction: 8b2d0f0b",                          // old geth
    ] {
        assert_eq!(sent(text), Broadcast::Accepted, "{text}");
    }
}

#[test]
fn a_used_nonce_in_every_dialect_is_nonce_too_low() {
    for text in [
        "nonce too low",                                             // geth, anvil, Erigon
        "nonce too low: next nonce 5, tx nonce 4",                   // geth, reth
        "nonce too low: address 0x00, tx: 4 state: 5",               // old geth
        "OldNonce, Current nonce: 5, nonce of rejected tx: 4",       // Nethermind
        "Nonce too low",                                             // Besu
        "Transaction nonce is too low. Try incrementing the nonce.", // OpenEthereum
    ] {
        assert_eq!(sent(text), Broadcast::NonceTooLow, "{text}");
    }
}

#[test]
fn a_cheap_replacement_or_fee_in_every_dialect_is_underpriced() {
    for text in [
        "replacement transaction underpriced", // geth, reth, Erigon, anvil
        "Replacement transaction underpriced", // Besu
        "ReplacementNotAllowed",               // Nethermind
        "could not replace existing tx",       // Erigon
        "transaction underpriced",             // geth, reth
        "transaction underpriced: gas tip cap 1, minimum needed 1000000", // geth
        "underpriced",                         // Erigon
        "fee too low",                         // Erigon
        "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 7", // Nethermind
        "FeeTooLowToCompete",                  // Nethermind
        "max fee per gas less than block base fee: address 0x00, maxFeePerGas: 1, baseFee: 7",
        "Gas price below current base fee",             // Besu
        "Gas price below configured minimum gas price", // Besu
        "Transaction gas price 1wei is too low. There is another transaction with same nonce in the \
         queue with gas price: 2wei.", // OpenEthereum
    ] {
        assert_eq!(sent(text), Broadcast::Underpriced, "{text}");
    }
}

#[test]
fn an_empty_account_in_every_dialect_is_insufficient_funds() {
    for text in [
        "insufficient funds for gas * price + value: balance 0, tx cost 21000, overshot 21000", // geth
        "insufficient funds for gas * price + value: have 0 want 21000", // reth
        "Insufficient funds for gas * price + value",                    // anvil
        "insufficient funds",                                            // Erigon
        "InsufficientFunds, Account balance: 0, cumulative cost: 21000", // Nethermind
        "Upfront cost exceeds account balance",                          // Besu
    ] {
        assert_eq!(sent(text), Broadcast::InsufficientFunds, "{text}");
    }
}

#[test]
fn a_full_pool_or_a_gap_is_not_permanent() {
    for text in [
        "txpool is full",                                             // geth, reth
        "account limit exceeded: pooled 64 txs",                      // geth
        "future transaction tries to replace pending",                // geth
        "address already reserved",                                   // geth, reth
        "pending sub-pool is full",                                   // Erigon
        "NonceGap, Future nonce. Expected nonce: 3",                  // Nethermind
        "Nonce too high",                                             // Besu
        "Transaction nonce is too distant from current sender nonce", // Besu
        "in-flight transaction limit reached for delegated accounts", // geth
        "gapped-nonce tx from delegated accounts",                    // geth
    ] {
        assert!(matches!(sent(text), Broadcast::Ambiguous(_)), "{text}");
    }
}

#[test]
fn anything_else_is_refused_with_its_text() {
    for text in [
        "intrinsic gas too low: gas 20000, minimum needed 21000",
        "exceeds block gas limit",
        "oversized data: transaction size 200000, limit 131072",
        "unknown transaction type",
        "invalid sender",
        "max priority fee per gas higher than max fee per gas",
    ] {
        assert_eq!(sent(text), Broadcast::Refused(text.to_owned()), "{text}");
    }
}

#[test]
fn a_revert_that_quotes_another_error_is_a_revert() {
    let text = "execution reverted: nonce too low";
    assert_eq!(error(3, text).broadcast(), Broadcast::Refused(text.to_owned()));
    assert_eq!(error(3, text).revert_reason().as_deref(), Some(text));
    assert!(!error(3, "execution reverted: rate limit").is_busy());
    assert!(!error(3, "execution reverted: unknown block").is_unknown_block());
}

#[test]
fn an_internal_error_around_a_known_text_is_that_text() {
    assert_eq!(error(-32603, "nonce too low").broadcast(), Broadcast::NonceTooLow);
    let wrapped =
        NodeError { data: Some("already known".to_owned()), ..error(-32603, "Internal error") };
    assert_eq!(wrapped.broadcast(), Broadcast::Accepted);
    assert!(matches!(error(-32603, "Internal error").broadcast(), Broadcast::Ambiguous(_)));
}

#[test]
fn a_busy_node_says_nothing_about_the_bytes() {
    for (code, text) in [
        (-32005, "daily request count exceeded, request rate limited"),
        (429, "compute units per second capacity"),
        (-32007, "100/second request limit reached"),
    ] {
        assert!(error(code, text).is_busy(), "{text}");
        assert!(matches!(error(code, text).broadcast(), Broadcast::Ambiguous(_)), "{text}");
    }
    // Besu's own -32005 is about the transaction.
    let besu = error(-32005, "Transaction gas limit exceeds block gas limit");
    assert!(!besu.is_busy());
    assert!(matches!(besu.broadcast(), Broadcast::Refused(_)));
}

#[test]
fn an_unknown_block_is_told_apart() {
    for text in [
        "unknown block",                   // geth, reth (eth_getLogs)
        "header not found",                // geth, providers
        "header for hash not found",       // geth (EIP-1898)
        "Block not found",                 // Besu, anvil
        "hash is not currently canonical", // geth (EIP-1898)
        "Cannot find block 0x00",          // Nethermind
    ] {
        assert!(error(-32000, text).is_unknown_block(), "{text}");
    }
}

#[test]
fn revert_reasons_are_decoded_from_the_data() {
    // Error("no funds")
    let data = format!(
        "0x08c379a0{:064x}{:064x}{:0<64}",
        0x20,
        8,
        alloy::primitives::hex::encode("no funds")
    );
    let geth = NodeError { data: Some(data.clone()), ..error(3, "execution reverted: no funds") };
    assert_eq!(geth.revert_reason().as_deref(), Some("no funds"));
    let nethermind = NodeError {
        data: Some(format!("Reverted {data}")),
        ..error(-32015, "VM execution error.")
    };
    assert_eq!(nethermind.revert_reason().as_deref(), Some("no funds"));
    let custom =
        NodeError { data: Some("0xdeadbeef".to_owned()), ..error(3, "execution reverted") };
    assert_eq!(custom.revert_reason().as_deref(), Some("execution reverted (data 0xdeadbeef)"));
    let panic = NodeError {
        data: Some(format!("0x4e487b71{:064x}", 0x11)),
        ..error(3, "execution reverted: panic: arithmetic underflow or overflow (0x11)")
    };
    assert_eq!(panic.revert_reason().as_deref(), Some("panic 0x11"));
    assert_eq!(error(-32000, "header not found").revert_reason(), None);
}

#[test]
fn the_combined_answer_prefers_what_is_surest() {
    let refused = || Broadcast::Refused("no".to_owned());
    let lost = || Broadcast::Ambiguous("timeout".to_owned());
    assert_eq!(combine(vec![refused(), lost(), Broadcast::Accepted]), Broadcast::Accepted);
    let low = combine(vec![Broadcast::Underpriced, Broadcast::NonceTooLow, lost()]);
    assert_eq!(low, Broadcast::NonceTooLow);
    let cheap = combine(vec![Broadcast::InsufficientFunds, Broadcast::Underpriced]);
    assert_eq!(cheap, Broadcast::Underpriced);
    assert_eq!(combine(vec![refused(), lost()]), refused());
    assert_eq!(combine(vec![refused()]), refused());
    assert!(matches!(combine(Vec::new()), Broadcast::Ambiguous(_)));
}
