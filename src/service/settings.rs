//! What the operator decides about the use cases, already validated.

use kube_kms_core::health::Policy;
use std::time::Duration;

/// Settings of the service; a reload replaces them as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `epoch`: goes into every key_id.
    pub epoch: u64,
    /// `dek.maxAge`: a DEK is replaced in the background after this time.
    pub dek_max_age: Duration,
    /// `dek.maxUses`: a DEK is replaced in the background after this many seals; at most 2^32.
    pub dek_max_uses: u64,
    /// `cache.capacity`: unwrapped DEKs that are kept at most.
    pub cache_capacity: usize,
    /// `cache.ttl`: an unwrapped DEK is unwrapped again after this time.
    pub cache_ttl: Duration,
    /// `probe.interval`: time between two probes of a healthy KEK.
    pub probe_interval: Duration,
    /// `probe.timeout`: how long each KMS call of a probe may take.
    pub probe_timeout: Duration,
    /// `rotation.observations`: equal answers in a row before a changed KEK version is believed.
    pub observations: u32,
    /// `outage` and `revocation`.
    pub policy: Policy,
}
