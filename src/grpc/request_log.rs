//! One log line per Encrypt and Decrypt, with uid, outcome, latency and key_id; Status at debug.
//!
//! A request that was served is logged after its answer has been sent ([`Served`]): nobody waits for a line.
//!
//! SECURITY: plaintext, ciphertext and annotations never get here. Lines about what failed, which a hostile peer or a hostile
//! etcd can cause without end, are limited to a few per second and class; how many were left out is said.

use kube_kms_core::fault::{Class, Fault};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::Moment;
use kube_kms_core::uid::Uid;
use kube_kms_service::observer::Rpc;
use kube_kms_service::write_state::WriteState;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines about requests that failed in one class, in one window.
const PER_WINDOW: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// A request that was served, to be logged.
#[derive(Debug)]
#[must_use = "a request that is not logged cannot be matched with the API server's"]
pub struct Served {
    pub(super) rpc: Rpc,
    pub(super) uid: Uid,
    pub(super) under: Under,
    /// How: for Decrypt, where the DEK came from.
    pub(super) detail: &'static str,
    pub(super) elapsed: Duration,
}

/// What names the key_id, without a copy of it.
#[derive(Debug)]
pub enum Under {
    /// That which sealed.
    WriteState(Arc<WriteState>),
    /// That of the request.
    KeyId(KeyId),
}

impl Under {
    pub(super) fn key_id(&self) -> &KeyId {
        match self {
            Self::WriteState(write) => write.key_id(),
            Self::KeyId(key_id) => key_id,
        }
    }
}

/// Writes the lines.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// By the label of the class, so that a flood of one hides no other.
    windows: Mutex<HashMap<&'static str, Window>>,
}

#[derive(Debug, Default)]
struct Window {
    began: Moment,
    written: u32,
    unreported: u64,
}

impl RequestLog {
    /// A request that was served.
    // Out of line, so that a profile names it (`make counts`).
    #[inline(never)]
    pub fn served(&self, served: &Served) {
        let (rpc, elapsed_us, detail) = (served.rpc.label(), microseconds(served.elapsed), served.detail);
        // Texts and numbers, not things to display: a line of them is written without an allocation for each.
        let (uid, key_id) = (served.uid.as_str(), &*served.under.key_id().loggable());
        tracing::info!(target: "kube_kms::rpc", rpc, uid, outcome = "ok", key_id, dek = detail, elapsed_us, "served");
    }

    /// A Status that was served: nothing to write, nearly always.
    pub fn status(&self, key_id: &KeyId, healthz: &'static str, elapsed: Duration) {
        let (rpc, elapsed_us) = (Rpc::Status.label(), microseconds(elapsed));
        let key_id = &*key_id.loggable();
        tracing::debug!(target: "kube_kms::rpc", rpc, outcome = "ok", key_id, healthz, elapsed_us, "served");
    }

    /// A request that failed.
    pub fn failed(&self, rpc: Rpc, uid: &Uid, fault: &Fault, elapsed: Duration, now: Moment) {
        let (rpc, outcome, code) = (rpc.label(), fault.reason().label(), fault.class().code().label());
        let Some(unreported) = self.admit(fault.class().label(), now) else { return };
        let (elapsed_us, error) = (microseconds(elapsed), fault.known_causes());
        match fault.class() {
            Class::Malformed | Class::PeerRefused => {
                tracing::warn!(target: "kube_kms::rpc", rpc, %uid, outcome, code, elapsed_us, unreported, error, "refused: {fault}");
            }
            Class::KekDead | Class::OpenFailed | Class::Broken => {
                tracing::error!(target: "kube_kms::rpc", rpc, %uid, outcome, code, elapsed_us, unreported, error, "failed: {fault}");
            }
            _ => {
                tracing::warn!(target: "kube_kms::rpc", rpc, %uid, outcome, code, elapsed_us, unreported, error, "failed: {fault}");
            }
        }
    }

    /// A connection that was closed because there are too many.
    pub fn no_place(&self, peer_uid: u32, now: Moment) {
        let Some(unreported) = self.admit("no-place", now) else { return };
        tracing::warn!(target: "kube_kms::rpc", peer_uid, unreported, "too many connections; one more was closed");
    }

    /// `Some` with the number of lines of this class left out before, when this line may be written.
    fn admit(&self, class: &'static str, now: Moment) -> Option<u64> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(class).or_default();
        if now.since(window.began) >= WINDOW {
            window.began = now;
            window.written = 0;
        }
        if window.written >= PER_WINDOW {
            window.unreported = window.unreported.saturating_add(1);
            return None;
        }
        window.written = window.written.saturating_add(1);
        Some(std::mem::take(&mut window.unreported))
    }
}

fn microseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_the_next_line_says_how_much_was_unreported() {
        let log = RequestLog::default();
        let admitted = (0..100).filter(|_| log.admit("malformed", Moment(5)).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(log.admit("open-failed", Moment(5)), Some(0), "another class has lines of its own");
        assert_eq!(log.admit("malformed", Moment(1_100_000_000)), Some(90));
        assert_eq!(log.admit("malformed", Moment(1_100_000_000)), Some(0));
    }
}
