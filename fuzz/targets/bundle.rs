//! Files of a bundle. The first byte says which file of the targets' bundle is replaced by the rest.
//!
//! A bundle loads or is refused; what loads is the same again, names itself by the hash of its files, and
//! decodes a call.

#![no_main]

#[path = "common.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod common;

use alloy::primitives::Address;
use claviger::core::evm::decode::effects;
use claviger::core::policy::Bundle;
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 6] =
    ["bundle.toml", "book.toml", "assets.toml", "grants.toml", "cases.toml", "abi/all.json"];

fuzz_target!(|data: &[u8]| {
    let [which, text @ ..] = data else { return };
    let mut files = common::files();
    files.insert(FILES[usize::from(*which) % FILES.len()].to_owned(), text.to_vec());
    let bundle = match Bundle::load(&files) {
        Ok(bundle) => bundle,
        Err(refused) => {
            assert!(!refused.to_string().is_empty());
            return;
        }
    };
    let again = Bundle::load(&files).expect("what loads, loads again");
    assert_eq!(bundle.hash(), again.hash());
    assert_eq!(bundle.grants().len(), again.grants().len());
    if files != common::files() {
        assert_ne!(bundle.hash(), common::BUNDLE.hash(), "two bundles with one hash");
    }
    for byte in common::ADDRESSES {
        let request = common::transaction(Address::repeat_byte(byte), 1, &[1, 2, 3, 4]);
        assert!(effects(&bundle, &request).len() >= 2);
    }
});
