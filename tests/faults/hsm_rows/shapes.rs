//! Right answers of rare shapes: a raw point, leading zeros, a high `s`.

use super::Rows;
use crate::stage::attempts;
use crate::support::report::report;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use crate::support::signing_load::{Caller, hello, sender_of, signer_of, small_payout};
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::rlp::Rlp;

const RAW: &str = "C_GetAttributeValue RAW_POINT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h7_a_raw_point_gives_the_right_address_at_creation_and_at_start() {
    let mut rows = Rows::open(&[]).await;
    rows.faults.set(RAW);
    let before = rows.faults.count();
    rows.keys[1] = rows.server.funded_key(&rows.stage.anvil, "raw").await;
    assert!(rows.faults.count() > before);
    // One that was made with a wrapped point is found with a raw one, and the other way round.
    for fault in [RAW, "", RAW] {
        rows.faults.set(fault);
        let (messages, payouts) = (rows.messages(8), rows.payouts(2));
        messages.until_released(50).await;
        payouts.until_released(5).await;
        let (messages, payouts) = rows.stop("h7 point", messages, payouts).await;
        Rows::assert_unnoticed(&messages);
        Rows::assert_unnoticed(&payouts);
        rows = rows.restart(&[], || ()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h7_leading_zeros_and_a_high_s_leave_as_right_signatures() {
    let rows = Rows::open(&[]).await;
    let caller = Caller::of(&rows.server);
    let mut ids = Vec::new();
    for (fault, half) in [("ZERO_R", "r"), ("ZERO_S", "s"), ("HIGH_S", "")] {
        let high = rows.signatures("high_s").await;
        rows.faults.set(&format!("C_Sign {fault}"));
        for number in 0..8 {
            let (text, key) = (format!("{fault}-{number}"), &rows.keys[number % 2]);
            // Looking for a rare one takes the module some time, and a busy machine more.
            let said = poll_until(LIMIT, "it is signed", async || {
                let said = caller.post("/v1/signatures", &text, &hello(key, &text)).await?;
                (said.status == 201).then_some(said)
            })
            .await;
            assert_eq!(signer_of(&text, &said.body).as_ref(), Ok(key));
            if !half.is_empty() {
                let written = said.body["signature"][half].as_str().unwrap();
                assert!(written.starts_with("0x00") && written.len() == 66, "{written}");
            }
        }
        let paid = caller.post("/v1/transactions", fault, &small_payout()).await.unwrap();
        assert_eq!(paid.status, 201, "{}", paid.body);
        let id = paid.body["id"].as_str().unwrap().to_owned();
        let raw = poll_until(LIMIT, "it is signed", async || {
            let signed = attempts(&rows.server.read(&id).await);
            Some(signed.first()?["raw"].as_str()?.to_owned())
        })
        .await;
        assert_eq!(paid.body["address"], sender_of(&raw));
        // In a transaction a leading zero is not written.
        let bytes = hex::decode(raw.trim_start_matches("0x")).unwrap();
        let (_, signature) = TypedTransaction::decode_signed(&Rlp::new(&bytes)).unwrap();
        let bits = match half {
            "r" => signature.r.bits(),
            "s" => signature.s.bits(),
            _ => 0,
        };
        assert!(bits <= 248, "{fault}: {bits}");
        ids.push(id);
        let high = rows.signatures("high_s").await - high;
        if fault == "HIGH_S" {
            assert!((high - 9.0).abs() < 0.5, "{high}");
        }
        report(&format!("h7 {fault}: 9 released, 0 failed, high s: {high}"));
    }
    rows.faults.clear();
    assert!(rows.signatures("wrong").await < 0.5);
    rows.settle(&ids).await;
}
