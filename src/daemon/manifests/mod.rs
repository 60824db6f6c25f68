//! Everything that runs kube-kms beside a kube-apiserver, rendered from its configuration, so that nobody edits YAML by hand.
//!
//! Guarantees: pure text out of [`Config`] and [`Options`]; paths, ports, modes and endpoints are those that `serve` will
//! use; what cannot be said safely in a manifest is refused, never guessed; no secret can come in. Refuses to know: files,
//! clusters, whether an image exists. The samples in deploy/ are rendered by this, and a test holds them equal.
//! SPEC: Kubernetes core/v1 Pod, kubeadm v1beta4, apiserver.config.k8s.io/v1; systemd.exec(5), tmpfiles.d(5); AWS KMS policies.

mod encryption;
mod facts;
mod iam;
mod kubeadm;
mod pod;
mod systemd;

use facts::Facts;
use kube_kms_config::Config;
use std::path::PathBuf;

/// The uid and gid of the plugin, the same in the image, the pods and the systemd user.
pub const USER_DEFAULT: u32 = 10_001;
/// The provider's name in EncryptionConfiguration.
pub const PROVIDER_DEFAULT: &str = "kube-kms";
/// Where the EncryptionConfiguration is, in a directory of its own so that it can be replaced by rename.
const ENCRYPTION_CONFIGURATION: &str = "/etc/kubernetes/encryption/configuration.yaml";
/// Where the binary is, on a host and in the image.
const BINARY: &str = "/usr/local/bin/kube-kms";

/// What to render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A static pod of its own on every control-plane node.
    StaticPod,
    /// A kubeadm patch that puts a native sidecar into the pod of kube-apiserver.
    Sidecar,
    /// The flags and mounts of kube-apiserver, as a part of kubeadm's ClusterConfiguration.
    Kubeadm,
    /// The directories of the pods on the host.
    Tmpfiles,
    /// A service unit.
    Systemd,
    /// A socket unit for it.
    SystemdSocket,
    /// The user of the service unit.
    Sysusers,
    /// kube-apiserver's EncryptionConfiguration at one stage.
    EncryptionConfiguration(Stage),
    /// The IAM policy of the plugin's role: `serve` and `check`.
    Iam,
    /// The IAM policy of whoever runs the drill, on top of [`Kind::Iam`].
    IamDrill,
    /// The policy of the key that writes.
    KeyPolicy,
}

/// Where a roll-out, a roll-back or a move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `identity` writes, this provider reads.
    Read,
    /// This provider writes, `identity` reads.
    Write,
    /// This provider alone.
    Only,
    /// `identity` alone.
    Off,
    /// Another KMS provider writes, this one reads.
    MoveRead,
    /// This provider writes, the other one reads.
    MoveWrite,
}

/// What the configuration does not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the configuration is on the nodes; absolute.
    pub config_path: PathBuf,
    /// The image of the pods.
    pub image: String,
    /// The uid and gid that the plugin runs as.
    pub user: u32,
    /// A seccomp profile below kubelet's seccomp directory, in place of the runtime's own.
    pub seccomp: Option<String>,
    /// Environment variables that are no secrets.
    pub env: Vec<(String, String)>,
    /// Directories of the host that the plugin reads besides its own: a credentials file, certificates.
    pub mounts: Vec<PathBuf>,
    /// The provider's name in EncryptionConfiguration.
    pub provider: String,
    /// What is encrypted.
    pub resources: Vec<String>,
    /// Name and endpoint of the provider that is moved away from.
    pub from: Option<(String, String)>,
    /// The AWS account, where the key's name does not tell it.
    pub account: Option<String>,
    /// The ARNs of the keys that an alias of the configuration means, for a policy.
    pub key_arns: Vec<String>,
    /// The ARN of the plugin's role, for a key policy.
    pub role: Option<String>,
}

/// Why something cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The configuration says something that has no place in a manifest.
    #[error("{key}: {what}")]
    Config {
        /// The key of the configuration.
        key: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// An option is missing or wrong.
    #[error("--{option}: {what}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong, and what to do.
        what: String,
    },
}

impl ManifestError {
    fn config(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Config { key: key.into(), what: what.into() }
    }

    fn option(option: &'static str, what: impl Into<String>) -> Self {
        Self::Option { option, what: what.into() }
    }
}

/// Renders one file.
///
/// # Errors
/// [`ManifestError`], which names the key or the option.
pub fn render(kind: Kind, config: &Config, options: &Options) -> Result<String, ManifestError> {
    match kind {
        Kind::EncryptionConfiguration(stage) => encryption::render(stage, config, options),
        Kind::Iam => iam::role(config, options),
        Kind::IamDrill => iam::drill(config, options),
        Kind::KeyPolicy => iam::key(config, options),
        Kind::StaticPod => Ok(pod::static_pod(&Facts::of(config, options)?)),
        Kind::Sidecar => Ok(pod::sidecar(&Facts::of(config, options)?)),
        Kind::Kubeadm => Ok(kubeadm::render(&Facts::of(config, options)?)),
        Kind::Tmpfiles => Ok(systemd::tmpfiles(&Facts::of(config, options)?)),
        Kind::Systemd => Ok(systemd::service(&Facts::of(config, options)?)),
        Kind::SystemdSocket => Ok(systemd::socket(&Facts::of(config, options)?)),
        Kind::Sysusers => Ok(systemd::sysusers(&Facts::of(config, options)?)),
    }
}
