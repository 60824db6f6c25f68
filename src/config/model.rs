//! The configuration as the rest of the program sees it: lifted, bounded, without a secret in it.
//!
//! Guarantees: built by [`crate::parse`], every rule of docs/configuration.md holds. Refuses to know: YAML,
//! files, and whether a KEK can be reached.

use kube_kms_core::context::WrapContext;
use kube_kms_core::kek_ref::KekKind;
use kube_kms_service::settings::Settings;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `listen`: where kube-apiserver reaches us.
    pub listen: Listen,
    /// `kek`: the one KEK that writes.
    pub kek: KekConfig,
    /// `read`: KEKs that may only unwrap.
    pub read: Vec<KekConfig>,
    /// `recovery`: KEKs that every DEK is wrapped under as well.
    pub recovery: RecoveryConfig,
    /// `epoch`, `dek`, `cache`, `probe`, `rotation`, `revocation`, `outage`.
    pub settings: Settings,
    /// `http.listen`: metrics and health; `None` for `none`.
    pub http: Option<SocketAddr>,
    /// `otlp.endpoint`; `None` when it is empty, and the environment decides.
    pub otlp: Option<String>,
    /// `log`.
    pub log: Log,
    /// `stateDir`: absolute.
    pub state_dir: PathBuf,
    /// `harden`.
    pub harden: Harden,
}

/// What the process takes from itself once it has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harden {
    /// `harden.landlock`: files and TCP ports.
    pub landlock: Enforce,
    /// `harden.seccomp`: system calls.
    pub seccomp: Enforce,
}

/// How much a restriction matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforce {
    /// As far as the kernel can; a warning says what it cannot.
    Auto,
    /// Not at all.
    None,
    /// Without it there is no start.
    Required,
}

/// The socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `listen.socket` as written: a path, or `@name` for an abstract socket.
    pub socket: String,
    /// `listen.mode`: read and write bits.
    pub mode: u32,
    /// `listen.allowUids`; `None`: root and our own uid.
    pub allow_uids: Option<Vec<u32>>,
}

/// Recovery KEKs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryConfig {
    /// `recovery.keks`: up to three, in this order.
    pub keks: Vec<KekConfig>,
    /// `recovery.breakGlass`: they unwrap also when the primary is dead.
    pub break_glass: bool,
}

/// One KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KekConfig {
    /// In AWS KMS. It parses in a build without the provider too; the daemon says that the build lacks it.
    Aws(AwsKekConfig),
    /// In a keyring file on this host.
    Local(LocalKekConfig),
}

/// A KEK in AWS KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsKekConfig {
    /// Key id, key ARN, alias name or alias ARN; of a valid shape.
    pub key: String,
    /// The region; `None`: that of the ARN, or the SDK's own chain.
    pub region: Option<String>,
    /// Another endpoint than AWS's own; `https`, or `http` to this host.
    pub endpoint: Option<String>,
    /// The operator's pairs of the encryption context.
    pub context: BTreeMap<String, String>,
}

/// A KEK in a keyring file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalKekConfig {
    /// The file; absolute.
    pub keyring: PathBuf,
    /// The operator's pairs that every wrap is bound to.
    pub context: BTreeMap<String, String>,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// `log.format`.
    pub format: LogFormat,
    /// `log.level`.
    pub level: LogLevel,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The least important level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// An operator has to act.
    Error,
    /// Something did not go as it should.
    Warn,
    /// Changes of state.
    Info,
    /// Every request.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word as it is configured.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl KekConfig {
    /// The kind of provider.
    #[must_use]
    pub const fn kind(&self) -> KekKind {
        match self {
            Self::Aws(_) => KekKind::AWS,
            Self::Local(_) => KekKind::LOCAL,
        }
    }

    /// What every wrap under this KEK is bound to: the operator's pairs and our own.
    #[must_use]
    pub fn context(&self) -> WrapContext {
        let (Self::Aws(AwsKekConfig { context, .. }) | Self::Local(LocalKekConfig { context, .. })) = self;
        WrapContext::new(context.clone())
    }
}

impl Config {
    /// The keys that differ and that only a restart can change: a reload leaves them as they were and says so.
    #[must_use]
    pub fn restart_only_changes(&self, new: &Self) -> Vec<&'static str> {
        let changes = [
            ("listen.socket", self.listen.socket != new.listen.socket),
            ("listen.mode", self.listen.mode != new.listen.mode),
            ("listen.allowUids", self.listen.allow_uids != new.listen.allow_uids),
            ("http.listen", self.http != new.http),
            ("otlp.endpoint", self.otlp != new.otlp),
            ("log.format", self.log.format != new.log.format),
            ("stateDir", self.state_dir != new.state_dir),
            ("harden.landlock", self.harden.landlock != new.harden.landlock),
            ("harden.seccomp", self.harden.seccomp != new.harden.seccomp),
        ];
        changes.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }
}

impl fmt::Display for KekConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws(aws) => {
                write!(f, "aws {}", aws.key)?;
                if let Some(region) = &aws.region {
                    write!(f, " in {region}")?;
                }
                if let Some(endpoint) = &aws.endpoint {
                    write!(f, " at {endpoint}")?;
                }
                Ok(())
            }
            Self::Local(local) => write!(f, "local {}", local.keyring.display()),
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {}, kek {}, {} KEKs to read", self.listen.socket, self.kek, self.read.len())?;
        write!(f, ", epoch {}", self.settings.epoch)?;
        match self.http {
            Some(address) => write!(f, ", http {address}"),
            None => f.write_str(", http none"),
        }
    }
}
