//! Why an evaluation failed: all of it, because kube-apiserver collects the errors and stops at none.

use crate::apiserver::finding::{FindingCode, quoted};
use kms_v2_client::limit::Violation;
use kube_kms_core::fault::Fault;
use std::fmt;
use tonic::Status;

/// One thing that was wrong.
#[derive(Clone, Debug)]
pub enum Problem {
    /// Status failed with this status; nothing else was looked at.
    Status(Status),
    /// Status.healthz is this.
    Healthz(String),
    /// Status.version is this.
    VersionNotAccepted(String),
    /// Status.version was the first and is the second.
    VersionChanged(String, String),
    /// Status.key_id breaks a rule, so that there was no rotation and no extension.
    KeyId(Violation),
    /// Encrypt failed with this status.
    Encrypt(Status),
    /// What Encrypt returned breaks these rules.
    Sealed(Vec<Violation>),
    /// Encrypt.key_id (the second) is not Status.key_id.
    Mismatch(String, String),
    /// No seed could be drawn.
    Seed(Fault),
}

impl Problem {
    /// What the problem says against the plugin, when it says something: an RPC that fails says nothing by itself.
    pub(super) fn codes(&self) -> Vec<FindingCode> {
        match self {
            Self::Status(_) | Self::Encrypt(_) | Self::Seed(_) => Vec::new(),
            Self::Healthz(_) => vec![FindingCode::HealthzNotOk],
            Self::VersionNotAccepted(_) => vec![FindingCode::VersionNotAccepted],
            Self::VersionChanged(..) => vec![FindingCode::VersionChanged],
            Self::KeyId(violation) => vec![violation.into()],
            Self::Sealed(violations) => violations.iter().map(FindingCode::from).collect(),
            Self::Mismatch(..) => vec![FindingCode::EncryptKeyIdMismatch],
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "Status failed: {}", describe(status)),
            Self::Healthz(healthz) => write!(f, "got unexpected healthz status: {}", quoted(healthz)),
            Self::VersionNotAccepted(version) => write!(f, "expected KMSv2 API version v2, got {}", quoted(version)),
            Self::VersionChanged(first, now) => write!(
                f,
                "KMSv2 API version should not change after the initial status response version {first}, got {}",
                quoted(now)
            ),
            Self::KeyId(violation) => f.write_str(&violation.describe("Status")),
            Self::Encrypt(status) => write!(f, "failed to encrypt DEK, error: {}", describe(status)),
            Self::Sealed(violations) => {
                let all: Vec<_> = violations.iter().map(|v| v.describe("Encrypt")).collect();
                f.write_str(&all.join(", "))
            }
            Self::Mismatch(status, encrypt) => {
                write!(f, "Status.key_id is {} and Encrypt.key_id is {}", quoted(status), quoted(encrypt))
            }
            Self::Seed(fault) => write!(f, "no seed: {fault}"),
        }
    }
}

/// A status for people, on one line.
pub(super) fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), quoted(status.message()))
}

/// Why the API server is not ready. Never empty.
#[derive(Clone, Debug)]
pub struct Unhealthy(pub(super) Vec<Problem>);

impl Unhealthy {
    /// All that was wrong.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for Unhealthy {}
