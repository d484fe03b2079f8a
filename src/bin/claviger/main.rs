//! The server and the operator commands.

fn main() {}
