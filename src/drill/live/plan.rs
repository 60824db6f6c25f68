//! What an operator asks a drill on a cluster to do, and why it could not begin or go on.

use kms_v2_client::kms::Target;
use kube_kms_etcd::scan::Settings;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// How objects are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrate {
    /// By StorageVersionMigration where the API server serves it; else as [`Migrate::Print`].
    Auto,
    /// By StorageVersionMigration, or not at all.
    Svm,
    /// The operator does it, with commands that are printed.
    Print,
}

/// A KEK that the drill rotates itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateKek {
    /// Key id or ARN; with `to` the alias.
    pub key: String,
    /// Its region.
    pub region: String,
    /// Another endpoint than AWS's own.
    pub endpoint: Option<String>,
    /// Point the alias at this key, in place of new material for the same key.
    pub to: Option<String>,
}

/// What the drill may be asked to confirm, by the name of its step.
pub const CONFIRMED: [&str; 5] = ["seed", "rotate", "restart", "migrate", "retire"];

/// See the module.
#[derive(Clone, Debug)]
pub struct LivePlan {
    /// Plugins that are reached directly, each with its name.
    pub sockets: Vec<(String, Target)>,
    /// Where the API servers are, when they are asked.
    pub cluster: Option<ClusterPlan>,
    /// How etcd is scanned.
    pub scan: Settings,
    /// Providers of the EncryptionConfiguration; those that are under the old key when there is none.
    pub providers: Vec<String>,
    /// An EncryptionConfiguration to check.
    pub encryption_config: Option<PathBuf>,
    /// How many objects of its own the drill writes.
    pub objects: usize,
    /// Of which resource.
    pub objects_of: String,
    /// In which namespace.
    pub namespace: String,
    /// The drill rotates this KEK; without it, it waits for the operator.
    pub rotate: Option<RotateKek>,
    /// How long anything is waited for.
    pub wait: Duration,
    /// Do not ask the API servers whether they have moved: wait 3 minutes + this + 5 minutes.
    pub passive: Option<Duration>,
    /// See there.
    pub migrate: Migrate,
    /// Resources to migrate; those that are under the old key when there is none.
    pub resources: Vec<String>,
    /// Restarts every plugin: program and arguments.
    pub restart_command: Vec<String>,
    /// Retires the old key: program and arguments.
    pub retire_command: Vec<String>,
    /// Steps that are confirmed already.
    pub yes: BTreeSet<String>,
    /// Whether somebody is there who can be asked.
    pub terminal: bool,
    /// Look, change nothing.
    pub dry_run: bool,
    /// Where the drill keeps what it has done.
    pub state: PathBuf,
    /// How often anything is looked at.
    pub poll: Duration,
}

/// How the API servers are reached.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// The file; where `kubectl` looks when there is none.
    pub kubeconfig: Option<PathBuf>,
    /// Its context; the current one when there is none.
    pub context: Option<String>,
    /// Each API server; that of the kubeconfig when there is none.
    pub servers: Vec<String>,
}

impl LivePlan {
    /// The steps that this drill asks about.
    #[must_use]
    pub fn asks(&self) -> Vec<&'static str> {
        let asked = |step: &str| match step {
            "seed" => self.objects > 0,
            "rotate" => self.rotate.is_some(),
            "restart" => !self.restart_command.is_empty(),
            "migrate" => self.migrate != Migrate::Print && self.cluster.is_some(),
            _ => !self.retire_command.is_empty(),
        };
        CONFIRMED.into_iter().filter(|step| asked(step)).collect()
    }
}

/// Why a drill gave no report.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The kubeconfig is not usable.
    #[error("the API servers cannot be reached as the kubeconfig says: {0}")]
    Kubeconfig(String),
    /// There is a state of a drill that has not ended.
    #[error("a drill that began {0} has not ended")]
    UnderWay(String),
    /// There is no state to go on from.
    #[error("there is no drill to go on with: {0}")]
    Nothing(String),
    /// The drill has ended already.
    #[error("the drill has ended: {0}")]
    Ended(String),
    /// The state is of another cluster.
    #[error("the drill was begun with other nodes: {0}")]
    Other(String),
    /// The state cannot be used.
    #[error("the state of the drill cannot be used: {0}")]
    State(String),
    /// The state cannot be kept.
    #[error("the state of the drill cannot be written")]
    Unwritable(#[source] std::io::Error),
    /// Nobody can be asked.
    #[error("nobody can be asked about {0}: there is no terminal")]
    NotConfirmed(String),
    /// The operator ended it.
    #[error("the drill was interrupted in step {0}")]
    Interrupted(usize),
}
