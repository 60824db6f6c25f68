//! The signals that mean something: SIGTERM and SIGINT stop, SIGHUP reloads, and stops a process that has a terminal, because
//! it is how the kernel and the shell say that the terminal is closed.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Caught from the moment it is made.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    has_terminal: bool,
}

impl Signals {
    pub(super) fn new(has_terminal: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            has_terminal,
        })
    }

    /// Returns when one of them arrives.
    ///
    /// # Cancel safety
    /// No signal is lost.
    pub(super) async fn next(&mut self) -> Wish {
        // `None` never comes from a signal of this runtime.
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => self.hung_up(),
        }
    }

    fn hung_up(&self) -> Wish {
        if !self.has_terminal {
            return Wish::Reload;
        }
        tracing::warn!(
            target: "kube_kms::daemon",
            "SIGHUP, and a terminal is at stdin or stderr: it was closed, so this process ends. To reload, change the file"
        );
        Wish::Stop
    }

    /// Returns when one of them asks to stop; what else they ask for before is dropped.
    ///
    /// # Cancel safety
    /// No signal that asks to stop is lost.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// SIGTERM, SIGINT, a terminal that was closed.
    Stop,
    /// SIGHUP.
    Reload,
}
