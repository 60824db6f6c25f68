//! What can be said about the plugin at one moment: for /readyz, /metrics and the log. Nothing here is secret.

use kube_kms_core::fault::Reason;
use kube_kms_core::kek_ref::KekVersion;
use kube_kms_core::key_id::KeyId;
use std::time::Duration;

/// The state at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// One of [`kube_kms_core::health::State::LABELS`].
    pub state: &'static str,
    /// Why it is not `ready`; in `ready` what the operator should settle: a KEK version that is refused.
    pub because: Option<Reason>,
    /// How long ago began what is wrong, while something is.
    pub since: Option<Duration>,
    /// Whether Status answers `ok`.
    pub is_ok: bool,
    /// How long the KMS has been away, while it is.
    pub outage: Option<Duration>,
    /// The key_id that Status reports.
    pub key_id: Option<KeyId>,
    /// The KEK version behind it.
    pub kek: Option<KekVersion>,
    /// For each recovery KEK, in the order of the configuration: whether the DEK that seals now is wrapped under it.
    pub recovery: Vec<bool>,
    /// Age of the DEK that seals now.
    pub dek_age: Option<Duration>,
    /// Seals under it so far.
    pub dek_uses: Option<u64>,
    /// Time since a probe of the writing KEK last went well.
    pub last_good_probe: Option<Duration>,
    /// When the provider will delete the writing KEK, as a time since the Unix epoch, where it has said so.
    pub deletion: Option<Duration>,
    /// Unwrapped DEKs in the keyring.
    pub keyring_entries: usize,
    /// What `cache.capacity` allows.
    pub keyring_capacity: usize,
}
