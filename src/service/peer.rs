//! Who is at the other end of a connection, and what it was told: what the transport learns and the gRPC face judges by.

use crate::plugin::{Encrypted, Plugin, Published};
use arc_swap::Guard;
use kube_kms_core::fault::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One connection's peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The user id of the process that connected; the kernel vouches for it (SO_PEERCRED).
    pub uid: u32,
    /// Its process id, when the kernel tells. Pids are reused: for logs, never for a decision.
    pub pid: Option<i32>,
    /// Whether `listen.allowUids` has the uid.
    pub allowed: bool,
    /// What Status told on this connection.
    pub session: Arc<Session>,
}

/// What one connection was told last: which write state Status answered from.
///
/// kube-apiserver calls Encrypt right after the Status that made it do so, and throws the answer away when the key_ids differ. So
/// an Encrypt in the moments after a rotation is answered from the write state that its own connection was told of.
#[derive(Debug, Default)]
pub struct Session(AtomicU64);

impl Session {
    /// Status for this connection: the answer is in what it returns.
    // Out of line, so that a profile names it (`make counts`).
    #[inline(never)]
    #[must_use]
    pub fn status(&self, plugin: &Plugin) -> Guard<Arc<Published>> {
        let published = plugin.published();
        let told = published.write.as_ref().map_or(0, |write| write.mark());
        self.0.store(told, Ordering::Relaxed);
        published
    }

    /// Encrypt for this connection.
    ///
    /// # Errors
    /// As [`Plugin::encrypt`].
    // Out of line, so that a profile names it (`make counts`).
    #[inline(never)]
    pub fn encrypt(&self, plugin: &Plugin, plaintext: &[u8]) -> Result<Encrypted, Fault> {
        let published = plugin.published();
        let told = self.0.load(Ordering::Relaxed);
        match &published.previous {
            Some(previous) if previous.write.mark() == told && plugin.clock().now() < previous.until => {
                published.state.may_seal()?;
                plugin.seal(&previous.write, plaintext)
            }
            _ => plugin.encrypt(plaintext),
        }
    }
}
