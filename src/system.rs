//! The operating system's clock and randomness.

use crate::core::time::Timestamp;
use crate::ports::clock::{Clock, Entropy};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};
use uuid::Uuid;

/// The system's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn steady_ms(&self) -> i64 {
        static BEGUN: OnceLock<Instant> = OnceLock::new();
        let passed = BEGUN.get_or_init(Instant::now).elapsed();
        i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The system's randomness.
#[derive(Debug, Clone, Copy)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn bytes16(&self) -> [u8; 16] {
        // Version and variant bits are fixed; 122 unpredictable bits are left.
        *Uuid::new_v4().as_bytes()
    }
}
