//! `kube-kms manifests`: what runs the plugin beside kube-apiserver, rendered from the configuration.

use crate::manifests::{self, ManifestError, Options, PROVIDER_DEFAULT, Stage, USER_DEFAULT};
use crate::process;
use clap::{Args, ValueEnum};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output;
use kube_kms_config as config;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kube-kms manifests --kind static-pod --image registry.example.com/kube-kms:0.1.0\n  \
kube-kms manifests --kind encryption-configuration --stage write\n  \
kube-kms manifests --kind iam\n\nIt prints one file and changes nothing; where the format has comments, \
the first says where the file goes. docs/install.md has the order."
)]
pub(super) struct Arguments {
    /// What to render
    #[arg(long, value_enum)]
    kind: Kind,
    /// The configuration file to render from; the manifests name it by this path unless --config-path is given
    #[arg(long, value_name = "FILE", env = "KUBE_KMS_CONFIG", default_value = "/etc/kube-kms/config.yaml")]
    config: PathBuf,
    /// Where the configuration is on the nodes, when that is not where it is now
    #[arg(long, value_name = "PATH")]
    config_path: Option<PathBuf>,
    /// The image of the pods; without a registry in its name it must be on the node already
    #[arg(long, default_value = concat!("localhost/kube-kms:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// The uid and gid that the plugin runs as
    #[arg(long, value_name = "UID", default_value_t = USER_DEFAULT)]
    user: u32,
    /// A seccomp profile of the node for the pods, relative to kubelet's seccomp folder [default: the runtime's own]
    #[arg(long, value_name = "PATH")]
    seccomp_profile: Option<String>,
    /// An environment variable of the plugin; never a secret
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// One more directory of the node that the pods may read, such as that of a credentials file
    #[arg(long, value_name = "DIR")]
    mount: Vec<PathBuf>,
    /// The stage of an EncryptionConfiguration
    #[arg(long, value_enum, required_if_eq("kind", "encryption-configuration"))]
    stage: Option<StageName>,
    /// The provider's name in EncryptionConfiguration; part of every stored value, so never rename it
    #[arg(long, value_name = "NAME", default_value = PROVIDER_DEFAULT)]
    provider: String,
    /// What is encrypted
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "secrets")]
    resources: Vec<String>,
    /// The provider that is moved away from, for the stages move-read and move-write
    #[arg(long, value_name = "NAME=ENDPOINT")]
    from: Option<String>,
    /// The AWS account of the keys, where their names do not tell it
    #[arg(long, value_name = "DIGITS")]
    account: Option<String>,
    /// The key that an alias of the configuration points to, or pointed to when stored values were sealed; repeatable
    #[arg(long, value_name = "ARN", value_parser = key_arn)]
    key_arn: Vec<String>,
    /// The ARN of the plugin's role, for a key policy
    #[arg(long, value_name = "ARN")]
    role: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A pod of its own beside kube-apiserver
    StaticPod,
    /// A kubeadm patch: a native sidecar in the pod of kube-apiserver
    Sidecar,
    /// Flags and mounts of kube-apiserver, for kubeadm
    Kubeadm,
    /// The directories of the pods, for systemd-tmpfiles
    Tmpfiles,
    /// A systemd service
    Systemd,
    /// The socket of that service, so that it outlives the process
    SystemdSocket,
    /// The user of that service
    Sysusers,
    /// kube-apiserver's EncryptionConfiguration, at a --stage
    EncryptionConfiguration,
    /// The IAM policy of the plugin: serve and check
    Iam,
    /// What the drill needs on top of it
    IamDrill,
    /// The policy of the key that writes, for a --role
    KeyPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StageName {
    /// Roll-out 1, roll-back 2: identity writes, kube-kms reads
    Read,
    /// Roll-out 2, roll-back 1: kube-kms writes, identity reads
    Write,
    /// Roll-out 3: kube-kms alone
    Only,
    /// Roll-back 3: identity alone
    Off,
    /// Move 1: another provider writes, kube-kms reads
    MoveRead,
    /// Move 2: kube-kms writes, the other provider reads
    MoveWrite,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let path = process::absolute(&arguments.config);
    let config = config::load(&path).map_err(|problems| super::configuration_failure(&problems))?;
    let options = Options {
        config_path: arguments.config_path.clone().unwrap_or(path),
        image: arguments.image.clone(),
        user: arguments.user,
        seccomp: arguments.seccomp_profile.clone(),
        env: arguments.env.iter().map(|text| pair("--env", text)).collect::<Result<_, _>>()?,
        mounts: arguments.mount.clone(),
        provider: arguments.provider.clone(),
        resources: arguments.resources.clone(),
        from: arguments.from.as_deref().map(|text| pair("--from", text)).transpose()?,
        account: arguments.account.clone(),
        key_arns: arguments.key_arn.clone(),
        role: arguments.role.clone(),
    };
    let kind = kind(arguments.kind, arguments.stage);
    let text = manifests::render(kind, &config, &options).map_err(|error| failure(&error))?;
    output::raw(text.as_bytes());
    Ok(Exit::Done)
}

fn key_arn(text: &str) -> Result<String, &'static str> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match parts.as_slice() {
        ["arn", partition, "kms", region, account, key]
            if [*partition, *region, *account].into_iter().all(plain)
                && key.strip_prefix("key/").is_some_and(plain) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("not the ARN of a key: arn:aws:kms:REGION:ACCOUNT:key/ID"),
    }
}

fn kind(kind: Kind, stage: Option<StageName>) -> manifests::Kind {
    match kind {
        Kind::StaticPod => manifests::Kind::StaticPod,
        Kind::Sidecar => manifests::Kind::Sidecar,
        Kind::Kubeadm => manifests::Kind::Kubeadm,
        Kind::Tmpfiles => manifests::Kind::Tmpfiles,
        Kind::Systemd => manifests::Kind::Systemd,
        Kind::SystemdSocket => manifests::Kind::SystemdSocket,
        Kind::Sysusers => manifests::Kind::Sysusers,
        Kind::EncryptionConfiguration => manifests::Kind::EncryptionConfiguration(match stage {
            // clap asks for it; were it not to, the first stage is the one that harms nothing.
            None | Some(StageName::Read) => Stage::Read,
            Some(StageName::Write) => Stage::Write,
            Some(StageName::Only) => Stage::Only,
            Some(StageName::Off) => Stage::Off,
            Some(StageName::MoveRead) => Stage::MoveRead,
            Some(StageName::MoveWrite) => Stage::MoveWrite,
        }),
        Kind::Iam => manifests::Kind::Iam,
        Kind::IamDrill => manifests::Kind::IamDrill,
        Kind::KeyPolicy => manifests::Kind::KeyPolicy,
    }
}

/// SECURITY: what is not a pair is not printed; it could be a secret alone.
fn pair(option: &str, text: &str) -> Result<(String, String), Failure> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        Failure::new(Exit::Usage, format!("{option} cannot be used"))
            .cause("there is no `=` in it")
            .hint("give a name, `=` and a value; `kube-kms manifests --help` has them all")
    })?;
    Ok((name.to_owned(), value.to_owned()))
}

fn failure(error: &ManifestError) -> Failure {
    let what = "the manifest cannot be rendered";
    match error {
        ManifestError::Config { .. } => {
            Failure::new(Exit::Configuration, what).because(error).hint(super::CONFIGURATION_HINT)
        }
        ManifestError::Option { .. } => {
            Failure::new(Exit::Usage, what).because(error).hint("`kube-kms manifests --help` has all options")
        }
    }
}
