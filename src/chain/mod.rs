//! Chain nodes.
