//! Places where tests stop the process.

/// Placeholder until the merge.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        let _ = $name;
    };
}
