//! Places where a test stops the process.
//!
//! With the feature `failpoints`, `failpoint!("name")` aborts the process, as a crash would, when the
//! environment variable `CLAVIGER_FAILPOINT` is `name`, or at the N-th time for `name:N`. Without the
//! feature it is nothing. A build without debug assertions refuses the feature.

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("the feature `failpoints` is for tests; a release build must not have it");

/// Ends the process here if a test asked for it; see [`failpoint`](crate::failpoint).
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::hit($name);
    };
}

/// A fail point was reached.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static HITS: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("CLAVIGER_FAILPOINT") else { return };
    let (wanted, nth) = match wanted.split_once(':') {
        Some((wanted, nth)) => (wanted.to_owned(), nth.parse().unwrap_or(1)),
        None => (wanted, 1),
    };
    if wanted == name && HITS.fetch_add(1, Ordering::SeqCst).saturating_add(1) == nth {
        tracing::error!(failpoint = name, "a fail point stops the process");
        std::process::abort();
    }
}
