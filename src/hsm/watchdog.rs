//! Looks after the HSM threads of all tokens, and calls no module itself.

use crate::hsm::line::Watched;
use crate::ports::signer::SignerError;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::convert::Infallible;
use std::thread::JoinHandle;
use std::time::Duration;

/// Dropping it ends it.
pub(super) struct Watchdog {
    /// `None` once it is to end.
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Looks at each line every so often.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(lines: Vec<Watched>, every: Duration) -> Result<Self, SignerError> {
        let (stop, stopped) = bounded(0);
        let work = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                lines.iter().for_each(Watched::look);
            }
        };
        let thread = std::thread::Builder::new().name("hsm-watch".to_owned()).spawn(work);
        let thread =
            thread.map_err(|error| SignerError::Unavailable(format!("no HSM thread: {error}")))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
