//! Typed data as JSON.
//!
//! Of what is understood: it is written and read again to the same bytes to sign and the same effects; the
//! domain is that of the chain; and what moves value by its name is never just a message.

#![no_main]

#[path = "common.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod common;

use alloy::dyn_abi::TypedData;
use claviger::core::evm::decode::{addresses, effects, typed_data};
use claviger::core::evm::message::typed_data_bytes;
use claviger::core::intent::Intent;
use claviger::core::policy::Effect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(typed) = serde_json::from_slice::<TypedData>(data) else { return };
    let intent = |data: &TypedData| Intent::TypedData {
        chain: common::chain(),
        data: Box::new(data.clone()),
    };
    let bundle = &*common::BUNDLE;
    let request = common::request(intent(&typed));
    let done = effects(bundle, &request);
    assert!(!done.is_empty() && done.len() <= 65, "{}", done.len());
    let needed = addresses(bundle, &request.intent, common::SIGNER);
    if done.iter().any(|effect| matches!(effect, Effect::Opaque { call: None, .. })) {
        return;
    }
    assert_eq!(typed.domain.chain_id, Some(alloy::primitives::U256::from(31337)));
    let bytes = typed_data_bytes(&typed).expect("understood, so encodable");
    let json = serde_json::to_vec(&typed).expect("read, so writable");
    let again: TypedData = serde_json::from_slice(&json).expect("written, so readable");
    assert_eq!(typed_data_bytes(&again).expect("the same"), bytes);
    assert_eq!(effects(bundle, &common::request(intent(&again))), done);
    for effect in &done {
        if let Effect::TypedMessage { primary_type, .. } = effect {
            assert!(!typed_data::moves_value(primary_type), "{primary_type}");
            assert!(needed.is_empty(), "a message calls nobody");
        }
    }
});
