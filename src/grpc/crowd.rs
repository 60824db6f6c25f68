//! How many connections there are at once, and of whom.
//!
//! Guarantees: a crowd of strangers takes no place from those who are allowed, and all together take no more memory and file
//! descriptors than so many connections do; a place is free again when its connection ends. Refuses to know what a connection
//! is. SPEC: kube-apiserver has one connection, two for a while during a reload.

use kube_kms_service::peer::Peer;
use kube_kms_service::waiting_room::{Place, WaitingRoom};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of allowed peers at once; SECURITY.md says what each of them may hold.
const ALLOWED_MAX: usize = 64;
/// Connections of others at once: enough to tell each of them that he is refused.
const STRANGERS_MAX: usize = 32;
/// Connections at once that have not said hello: fewer than there are places, so that they cannot take all of them.
const SILENT_MAX: usize = 24;

/// The places that are left.
#[derive(Debug)]
pub(super) struct Crowd {
    allowed: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    silent: Arc<WaitingRoom>,
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self {
            allowed: Arc::new(Semaphore::new(ALLOWED_MAX)),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            silent: WaitingRoom::new(SILENT_MAX),
        }
    }

    /// A place for a connection of this peer, to keep as long as it lives; `None` when it has to go.
    /// With it comes the place among those who have said nothing yet.
    pub(super) fn admit(&self, peer: &Peer) -> Option<(OwnedSemaphorePermit, Place)> {
        // Our own user's liveness probe is refused in words where he may not call, and is never crowded out by strangers.
        let is_ours = peer.uid == rustix::process::geteuid().as_raw();
        let places = if peer.allowed || is_ours { &self.allowed } else { &self.strangers };
        Some((Arc::clone(places).try_acquire_owned().ok()?, self.silent.enter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(allowed: bool) -> Peer {
        Peer { uid: 65_534, pid: None, allowed, session: Arc::default() }
    }

    #[test]
    fn strangers_take_no_place_of_those_who_are_allowed_and_a_place_is_free_again() {
        let crowd = Crowd::new();
        let mut strangers: Vec<_> = (0..STRANGERS_MAX).map(|_| crowd.admit(&peer(false)).unwrap()).collect();
        assert!(crowd.admit(&peer(false)).is_none());
        let _served = crowd.admit(&peer(true)).unwrap();
        strangers.pop();
        assert!(crowd.admit(&peer(false)).is_some());
    }
}
