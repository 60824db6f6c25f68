//! The signals that mean something: SIGTERM and SIGINT stop, SIGHUP reloads.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Caught from the moment it is made.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when somebody wants an end.
    pub(super) async fn stop(&mut self) {
        // `None` never comes from a signal of this runtime.
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Returns when somebody wants the configuration read again.
    pub(super) async fn hang_up(&mut self) {
        if self.hang_up.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
