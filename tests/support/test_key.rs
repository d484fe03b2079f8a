//! A key that was made outside, put into a token: it is not `CKA_LOCAL`, and only an exception lets it be used.

use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::Session;
use ethers_core::k256::ecdsa::SigningKey;

/// The curve's object identifier (SEC 2, appendix A), as DER.
pub const SECP256K1: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];

/// Puts both halves into the session's token, as the module's own would be but for where they were made.
pub fn put(session: &Session, key: &SigningKey, id: &[u8]) {
    let both = |class| {
        vec![
            Attribute::Class(class),
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::EcParams(SECP256K1.to_vec()),
            Attribute::Id(id.to_vec()),
        ]
    };
    let mut private = both(ObjectClass::PRIVATE_KEY);
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Value(key.to_bytes().to_vec()),
    ]);
    session.create_object(&private).unwrap();
    let mut public = both(ObjectClass::PUBLIC_KEY);
    // The point as an octet string (DER).
    let point = key.verifying_key().to_encoded_point(false);
    let point = [&[0x04, 0x41], point.as_bytes()].concat();
    public.extend([Attribute::Verify(true), Attribute::EcPoint(point)]);
    session.create_object(&public).unwrap();
}
