//! Signatures and points as bytes: what makes one remarkable, and how one is spoilt.

use crate::line::Bend;

/// Half the order of secp256k1, rounded down (SEC 2, section 2.4.1).
const HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0x5d, 0x57, 0x6e, 0x73, 0x57, 0xa4, 0x50, 0x1d, 0xdf, 0xe9, 0x2f, 0x46, 0x68, 0x1b, 0x20, 0xa0,
];

/// Whether `r || s` is a signature such as the line wants.
pub fn is_wanted(bend: Bend, signature: &[u8]) -> bool {
    let rare = match bend {
        Bend::HighS => |_: &[u8], s: &[u8]| s > HALF_ORDER.as_slice(),
        Bend::ZeroR => |r: &[u8], _: &[u8]| r.first() == Some(&0),
        Bend::ZeroS => |_: &[u8], s: &[u8]| s.first() == Some(&0),
        _ => return true,
    };
    match signature.split_at_checked(32) {
        Some((r, s)) if s.len() == 32 => rare(r, s),
        _ => false,
    }
}

/// The data with one bit of it turned.
pub fn other_data(data: &[u8]) -> Vec<u8> {
    let mut other = data.to_vec();
    if let Some(last) = other.last_mut() {
        *last ^= 1;
    }
    other
}

/// Both halves are in range, and it has nothing to do with any key: splitmix64 over a seed.
pub fn noise(seed: u64, signature: &mut [u8]) {
    let mut state = seed;
    for byte in signature.iter_mut() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *byte = (mixed >> 56) as u8;
    }
    for half in signature.chunks_mut(32) {
        if let Some(first) = half.first_mut() {
            *first = (*first & 0x7f) | 1;
        }
    }
}

/// The uncompressed SEC1 point of a 256-bit curve in a DER octet string; the bytes themselves if it is none.
pub fn unwrapped(point: &[u8]) -> &[u8] {
    match point {
        [4, 65, rest @ ..] if rest.len() == 65 => rest,
        _ => point,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(r: u8, s: [u8; 32]) -> Vec<u8> {
        let mut r_bytes = [9; 32];
        r_bytes[0] = r;
        [r_bytes, s].concat()
    }

    #[test]
    fn a_high_s_is_above_half_the_order() {
        let mut above = HALF_ORDER;
        above[31] += 1;
        assert!(!is_wanted(Bend::HighS, &signature(1, HALF_ORDER)));
        assert!(is_wanted(Bend::HighS, &signature(1, above)));
        assert!(is_wanted(Bend::HighS, &signature(1, [0xff; 32])));
        assert!(!is_wanted(Bend::HighS, &[0xff; 63]));
        assert!(is_wanted(Bend::Short, &[0xff; 63]));
    }

    #[test]
    fn a_leading_zero_is_seen_in_the_right_half() {
        let mut zero = [9; 32];
        zero[0] = 0;
        let (in_r, in_s) = (signature(0, [9; 32]), signature(9, zero));
        assert!(is_wanted(Bend::ZeroR, &in_r) && !is_wanted(Bend::ZeroR, &in_s));
        assert!(is_wanted(Bend::ZeroS, &in_s) && !is_wanted(Bend::ZeroS, &in_r));
    }

    #[test]
    fn other_data_differs_and_noise_is_in_range() {
        assert_eq!(other_data(&[1, 2]), [1, 3]);
        let (mut one, mut two) = ([0; 64], [0; 64]);
        noise(1, &mut one);
        noise(2, &mut two);
        assert_ne!(one, two);
        assert!(one[0] < 0x80 && one[32] < 0x80 && one[0] > 0 && one[32] > 0);
    }

    #[test]
    fn a_point_loses_its_wrapping_and_no_more() {
        let mut raw = vec![4; 65];
        raw[64] = 7;
        let wrapped = [&[4, 65][..], &raw].concat();
        assert_eq!(unwrapped(&wrapped), raw);
        assert_eq!(unwrapped(&raw), raw, "a raw one begins with a 4 too");
    }
}
