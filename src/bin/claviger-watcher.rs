//! The watcher.

fn main() {}
