//! Hash-linked windows of blocks.
