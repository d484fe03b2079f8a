//! Decoding. (Skeleton; see the policy helper.)
