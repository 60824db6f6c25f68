//! `kube-kms check`: everything that `serve` needs, without serving: the file, the socket's address, the KEK.

use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Format};
use crate::cli::{CONFIGURATION_HINT, SOCKET_HINT};
use crate::config::{self, Config};
use crate::core::fault::Fault;
use crate::core::port::{Entropy, KekCall, Notice};
use crate::daemon::{self, StartError, keks};
use crate::os::{MonotonicClock, OsEntropy, Stopwatch};
use crate::service::observer::Unobserved;
use crate::service::prepare::{Candidate, prepare};
use crate::service::recovery::wrap_under;
use crate::service::state_file::StateFile;
use crate::transport::address::SocketAddress;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kube-kms check --config /etc/kube-kms/config.yaml\n  \
kube-kms check --config config.yaml --output json\n\nIt makes one wrap and one unwrap at the KEK and changes nothing. Exit \
status: 3 the configuration is wrong, 4 the KMS cannot be reached, 5 it refuses.")]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "KUBE_KMS_CONFIG", default_value = "/etc/kube-kms/config.yaml")]
    config: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    config: String,
    endpoint: String,
    key_id: String,
    key_id_hash: String,
    kek: String,
    kek_version: String,
    wrapped_dek_bytes: usize,
    wrap_and_unwrap_millis: u64,
    read_keks: usize,
    recovery: Vec<RecoveryReport>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RecoveryReport {
    number: usize,
    /// The KEK, when it wrapped and unwrapped.
    kek: Option<String>,
    /// Why not.
    problem: Option<String>,
}

/// What was found at the KEKs.
struct Tried {
    candidate: Candidate,
    millis: u64,
    recovery: Vec<RecoveryReport>,
    notices: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let path = daemon::absolute(&arguments.config);
    let config = config::load(&path).map_err(|problems| super::configuration_failure(&problems))?;
    let base = std::env::current_dir().unwrap_or_default();
    let address = SocketAddress::parse(&config.listen.socket, &base).map_err(|e| {
        Failure::new(Exit::Configuration, "listen.socket is not the address of a unix socket")
            .because(&e)
            .hint(SOCKET_HINT)
    })?;
    let Tried { candidate, millis, recovery, notices } = super::runtime()?.block_on(try_keks(&config))?;
    let mut warnings = notices;
    warnings.extend(remembered_warnings(&config, &candidate));
    for lost in recovery.iter().filter(|r| r.kek.is_none()) {
        warnings.push(format!("recovery KEK {} would not wrap data keys; serving goes on without it", lost.number));
    }
    let report = Report {
        config: path.display().to_string(),
        endpoint: address.endpoint(),
        key_id: candidate.key_id.as_str().to_owned(),
        key_id_hash: candidate.key_id.metric_hash(),
        kek: candidate.version().kek.to_string(),
        kek_version: candidate.version().version.clone(),
        wrapped_dek_bytes: candidate.wrapped().as_bytes().len(),
        wrap_and_unwrap_millis: millis,
        read_keks: config.read.len(),
        recovery,
        warnings,
    };
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => print(&report),
    }
    Ok(Exit::Done)
}

async fn try_keks(config: &Config) -> Result<Tried, Failure> {
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let keks = keks::connect(config, &entropy).await.map_err(|error| {
        let mut failure = match &error {
            StartError::Kek { fault, .. } => Failure::of_fault(error.to_string(), fault),
            _ => Failure::new(Exit::Configuration, error.to_string()),
        };
        // Whatever its class: nothing has been asked yet, so it is the configuration's fault.
        failure.exit = Exit::Configuration;
        failure.hint(CONFIGURATION_HINT)
    })?;
    let clock = MonotonicClock::new();
    let watch = Stopwatch::start();
    let candidate = prepare(keks.write(), &config.settings, &clock, &*entropy, &Unobserved)
        .await
        .map_err(|fault| Failure::of_fault("the KEK cannot wrap and unwrap a data key", &fault).hint(advice(&fault)))?;
    let millis = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX);
    let timeout = config.settings.probe_timeout;
    let call = KekCall { timeout, uid: None };
    let notices = match keks.write().kek.notices(&call).await {
        Ok(notices) => notices.into_iter().map(|Notice(text)| text).collect(),
        Err(fault) => vec![format!("the KMS did not say more about the key: {fault}")],
    };
    let mut recovery = Vec::new();
    for (number, entry) in (1..).zip(keks.recovery()) {
        let (kek, problem) = match wrap_under(entry, candidate.bytes(), timeout, &clock, &Unobserved).await {
            Ok(wrap) => (Some(wrap.kek.to_string()), None),
            Err(fault) => (None, Some(format!("{fault} {}", fault.causes()).trim_end().to_owned())),
        };
        recovery.push(RecoveryReport { number, kek, problem });
    }
    Ok(Tried { candidate, millis, recovery, notices })
}

fn advice(fault: &Fault) -> &'static str {
    use crate::core::fault::Reason::{
        CredentialsRejected, KekDisabled, KekFileRefused, KekGone, KekPendingDeletion, KmsThrottled, PolicyDenied,
    };
    match fault.reason() {
        PolicyDenied => "for AWS the role needs kms:Encrypt and kms:Decrypt on the key, by IAM policy or key policy",
        CredentialsRejected => "see what credentials the provider finds; for AWS `aws sts get-caller-identity` tells",
        KekDisabled => "enable the key, or configure another one",
        KekPendingDeletion => "cancel the deletion now: when it happens, everything under this key is lost for good",
        KekGone => "see whether the key, alias, region and account are the ones you mean",
        KekFileRefused => "the cause says what to do with the keyring file",
        KmsThrottled => "the KMS is asked too often, by this or by another client; try again later",
        _ => "see whether this host reaches the KMS, and kek.*.endpoint and region",
    }
}

fn remembered_warnings(config: &Config, candidate: &Candidate) -> Vec<String> {
    let mut warnings = Vec::new();
    let file = StateFile::new(&config.state_dir);
    // A damaged file is left to `serve` to set aside: check changes nothing.
    let Ok(remembered) = file.peek() else {
        warnings.push(format!("{} cannot be read; serve will set it aside", file.path().display()));
        return warnings;
    };
    let digest = hex::encode(config.kek.context().digest());
    if remembered.context_digest.is_some_and(|old| old != digest) {
        warnings.push(
            "the KEK's `context` differs from the one that this node used last: what was wrapped under the old one opens \
             only with an entry under `read` that has it"
                .to_owned(),
        );
    }
    if remembered.left.contains(&candidate.key_id) {
        warnings.push(
            "this node reported this key_id before and left it; serve will refuse it. Raise `epoch` to reinstate the KEK"
                .to_owned(),
        );
    } else if remembered.key_id.is_some_and(|old| old != candidate.key_id) {
        warnings.push("the key_id differs from the one that this node reported last: serving will rotate".to_owned());
    }
    warnings
}

fn print(report: &Report) {
    output::line(format!("config    {}", report.config));
    output::line(format!("endpoint  {}", report.endpoint));
    output::line(format!("KEK       {}", report.kek));
    if !report.kek_version.is_empty() {
        output::line(format!("version   {}", report.kek_version));
    }
    output::line(format!("key_id    {}", report.key_id));
    output::line(format!("          {}", report.key_id_hash));
    output::line(format!(
        "wrapped and unwrapped a data key in {} ms; {} bytes in the annotation of every object",
        report.wrap_and_unwrap_millis, report.wrapped_dek_bytes
    ));
    if report.read_keks > 0 {
        output::line(format!("{} KEK(s) under `read`, not tried: that takes a stored value", report.read_keks));
    }
    for r in &report.recovery {
        let what = r.kek.as_deref().or(r.problem.as_deref()).unwrap_or_default();
        output::line(format!("recovery {} {what}", r.number));
    }
    for warning in &report.warnings {
        output::line(format!("WARNING   {warning}"));
    }
    if report.warnings.is_empty() {
        output::line("ready to serve");
    }
}
