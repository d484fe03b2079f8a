//! Private instances of everything real.

pub mod services;
