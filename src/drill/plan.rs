//! What an operator asks a rehearsal to do, and why it could not begin.

use kube_kms_kek_local::KeyringError;
use std::path::PathBuf;
use std::time::Duration;

/// What to rehearse.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Under which KEK.
    pub kek: KekPlan,
    /// How many objects; at least 10.
    pub objects: usize,
    /// Whether the sandbox stays for inspection.
    pub keep: bool,
    /// The program `kube-kms`, which is asked what a KEK gives.
    pub program: PathBuf,
    /// What is started as a plugin: program and first arguments, before `serve --config FILE`.
    pub command: Vec<String>,
    /// How long an operator has to rotate when the drill may not.
    pub wait: Duration,
}

/// Which KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KekPlan {
    /// A keyring file of the sandbox.
    Local,
    /// A key in AWS KMS, or in whatever speaks its API.
    Aws {
        /// Id, ARN, alias or alias ARN.
        key: String,
        /// The region, when the key does not name it.
        region: Option<String>,
        /// Another endpoint than AWS's own.
        endpoint: Option<String>,
        /// Rotate by pointing the alias at this key, in place of new material for the same key.
        rotate_to: Option<String>,
        /// Disable the old key for a moment in step 8.
        disable_old: bool,
    },
}

/// Why a drill gave no report.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The sandbox could not be made.
    #[error("the sandbox cannot be made")]
    Sandbox(#[source] std::io::Error),
    /// Its keyring could not be made.
    #[error("the sandbox's keyring cannot be made")]
    Keyring(#[source] KeyringError),
    /// `kube-kms` cannot be run.
    #[error("{} cannot be run", .0.display())]
    Program(PathBuf, #[source] std::io::Error),
    /// The KEK does not wrap and unwrap, or cannot be used as it is named.
    #[error("the KEK cannot be used:\n{said}")]
    Kek {
        /// The exit status of `kube-kms check`.
        status: i32,
        /// What it said.
        said: String,
    },
    /// `rotate_to` without an alias.
    #[error("--rotate-to points an alias at another key, and --kek is not an alias")]
    NoAlias,
    /// The operator ended it.
    #[error("the drill was interrupted; {0}")]
    Interrupted(String),
}
