//! Time and chance, handed in so that tests own them.

use crate::core::time::Timestamp;
use uuid::Uuid;

/// The clock.
pub trait Clock: Send + Sync {
    /// Now. May jump either way; callers must not assume it grows.
    fn now(&self) -> Timestamp;

    /// Milliseconds of a clock that nobody sets: only their difference says something. A clock that never
    /// jumps is one itself.
    fn steady_ms(&self) -> i64 {
        self.now().millis()
    }
}

/// Randomness for ids.
pub trait Entropy: Send + Sync {
    /// A new UUIDv7, unique in practice; ids of one process grow with time.
    fn uuid(&self) -> Uuid;

    /// Sixteen unpredictable bytes.
    fn bytes16(&self) -> [u8; 16];
}
