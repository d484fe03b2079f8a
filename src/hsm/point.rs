//! `CKA_EC_POINT` taken apart.

use crate::core::key::PublicKey;

/// The DER encoding of secp256k1's object identifier, 1.3.132.0.10 (SEC 2, appendix A.2.1), as
/// `CKA_EC_PARAMS` takes it (PKCS#11 v3.1, section 6.3.3).
pub(super) const SECP256K1_OID: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];

/// The public key in a `CKA_EC_POINT` (PKCS#11 v3.1, section 6.3.3): a DER OCTET STRING around a SEC1
/// point, 67 or 35 bytes. Some modules give the bare point, 65 or 33 bytes. The four lengths keep
/// the forms apart, which the first byte does not: an OCTET STRING's tag and an uncompressed
/// point's prefix are both 4. A long-form length, a trailing byte, a hybrid point or a point that is
/// not on the curve is no public key.
pub(super) fn public_key(ec_point: &[u8]) -> Option<PublicKey> {
    let point = match (ec_point.len(), ec_point) {
        (67, [0x04, 65, point @ ..]) | (35, [0x04, 33, point @ ..]) => point,
        (65 | 33, point) => point,
        _ => return None,
    };
    match (point.len(), point.first()) {
        (65, Some(4)) | (33, Some(2 | 3)) => {}
        _ => return None,
    }
    let on_curve = secp256k1::PublicKey::from_slice(point).ok()?;
    PublicKey::from_sec1(&on_curve.serialize_uncompressed())
}

#[cfg(test)]
mod tests {
    use super::*;

    // The group's generator (SEC 2, section 2.4.1).
    const G: &str = "0479be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798\
                     483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8";

    fn generator() -> Vec<u8> {
        hex::decode(G).unwrap()
    }

    fn compressed() -> Vec<u8> {
        [&[2], &generator()[1..33]].concat()
    }

    #[test]
    fn wrapped_bare_and_compressed_points_are_the_same_key() {
        let key = PublicKey::from_sec1(&generator()).unwrap();
        let forms = [
            generator(),
            [&[4, 65], generator().as_slice()].concat(),
            compressed(),
            [&[4, 33], compressed().as_slice()].concat(),
        ];
        for form in forms {
            assert_eq!(public_key(&form), Some(key), "{}", hex::encode(&form));
        }
    }

    #[test]
    fn other_shapes_are_no_key() {
        let wrapped = [&[4, 65], generator().as_slice()].concat();
        let bad = [
            vec![],
            vec![4],
            [&[4, 0x81, 65], generator().as_slice()].concat(),
            [&[4, 66], generator().as_slice()].concat(),
            [&[4, 64], generator().as_slice()].concat(),
            [&[3, 65], generator().as_slice()].concat(),
            [wrapped.as_slice(), &[0]].concat(),
            wrapped[..66].to_vec(),
            [&[6], &generator()[1..]].concat(),
            [&[4, 33, 4], &generator()[1..33]].concat(),
        ];
        for form in bad {
            assert_eq!(public_key(&form), None, "{}", hex::encode(&form));
        }
    }

    #[test]
    fn a_point_off_the_curve_is_no_key() {
        let mut off = generator();
        off[64] ^= 1;
        assert_eq!(public_key(&off), None);
        assert_eq!(public_key(&[&[4], [0; 64].as_slice()].concat()), None);
    }
}
