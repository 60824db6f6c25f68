//! What the service tells whoever counts: one trait, implemented by the telemetry and wired by the daemon.

use kube_kms_core::fault::Reason;
use std::fmt;
use std::time::Duration;

/// One of the three RPCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// Status
    Status,
    /// Encrypt
    Encrypt,
    /// Decrypt
    Decrypt,
}

impl Rpc {
    /// As it is spelled in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Status => "Status",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
        }
    }
}

impl Rpc {
    /// Its whole name.
    #[must_use]
    pub const fn method(self) -> &'static str {
        match self {
            Self::Status => "v2.KeyManagementService/Status",
            Self::Encrypt => "v2.KeyManagementService/Encrypt",
            Self::Decrypt => "v2.KeyManagementService/Decrypt",
        }
    }
}

/// One of the two calls to a KEK provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KekOperation {
    /// wrap_dek
    Wrap,
    /// unwrap_dek
    Unwrap,
}

impl KekOperation {
    /// As it is spelled in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
        }
    }

    /// As its span is called.
    #[must_use]
    pub const fn span(self) -> &'static str {
        match self {
            Self::Wrap => "kek.wrap",
            Self::Unwrap => "kek.unwrap",
        }
    }
}

/// What happened in the keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyringEvent {
    /// A DEK was there.
    Hit,
    /// It was not, and an unwrap was started.
    Miss,
    /// It was not, and an unwrap was already on its way.
    Joined,
    /// It was there but past its time, and served because its KEK does not answer.
    ServedExpired,
    /// One had to go because the keyring was full.
    Evicted,
    /// One was wiped because its KEK was revoked or left the configuration.
    Wiped,
    /// The KMS had refused this blob a moment ago, so it was not asked again.
    RefusedAgain,
}

impl KeyringEvent {
    /// As it is spelled in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::ServedExpired => "served-expired",
            Self::Evicted => "evicted",
            Self::Wiped => "wiped",
            Self::RefusedAgain => "refused-again",
        }
    }
}

/// Receives events; called on the request path, so it must be quick and must not block.
pub trait Observer: Send + Sync + fmt::Debug {
    /// An RPC ended. `Err` holds why it failed.
    fn rpc(&self, rpc: Rpc, outcome: Result<(), Reason>, elapsed: Duration);
    /// An RPC began (`1`) or ended (`-1`).
    fn rpc_in_flight(&self, rpc: Rpc, change: i64);
    /// A call to a KEK provider ended. `kind` is the provider's kind: `aws`, `local`.
    fn kek_call(&self, kind: &'static str, operation: KekOperation, outcome: Result<(), Reason>, elapsed: Duration);
    /// Something happened in the keyring.
    fn keyring(&self, event: KeyringEvent);
    /// A write state was published; `rotated` when its key_id differs from the one before.
    fn published(&self, rotated: bool);
    /// A peer that is not allowed was refused.
    fn peer_refused(&self) {}
}

/// Counts nothing: for commands and tests that do not look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn rpc(&self, _: Rpc, _: Result<(), Reason>, _: Duration) {}
    fn rpc_in_flight(&self, _: Rpc, _: i64) {}
    fn kek_call(&self, _: &'static str, _: KekOperation, _: Result<(), Reason>, _: Duration) {}
    fn keyring(&self, _: KeyringEvent) {}
    fn published(&self, _: bool) {}
}

#[cfg(test)]
mod tests {
    use super::KeyringEvent::{Evicted, Hit, Joined, Miss, RefusedAgain, ServedExpired, Wiped};
    use super::*;

    #[test]
    fn the_names_in_metrics_logs_and_spans_are_those_of_the_documents() {
        let rpcs = [Rpc::Status, Rpc::Encrypt, Rpc::Decrypt];
        assert_eq!(rpcs.map(Rpc::label), ["Status", "Encrypt", "Decrypt"]);
        assert!(rpcs.iter().all(|rpc| rpc.method() == format!("v2.KeyManagementService/{}", rpc.label())));
        let operations = [KekOperation::Wrap, KekOperation::Unwrap];
        assert_eq!(operations.map(KekOperation::label), ["wrap", "unwrap"]);
        assert_eq!(operations.map(KekOperation::span), ["kek.wrap", "kek.unwrap"]);
        assert_eq!(
            [Hit, Miss, Joined, ServedExpired, Evicted, Wiped, RefusedAgain].map(KeyringEvent::label),
            ["hit", "miss", "joined", "served-expired", "evicted", "wiped", "refused-again"]
        );
    }
}
