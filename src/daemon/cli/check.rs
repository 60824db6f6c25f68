//! `kube-kms check`: everything that `serve` needs, without serving: the file, the host, the socket, the KEK, and on request
//! kube-apiserver's side of it.

mod kek;
mod running;

use crate::doctor::apiserver::{self, Coverage, Verdict};
use crate::doctor::encryption_configuration;
use crate::doctor::finding::{Finding, Severity};
use crate::doctor::{host, socket};
use crate::process;
use clap::Args;
use kek::{RecoveryReport, Tried};
use kms_v2_api::address::SocketAddress;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_cli::{SOCKET_HINT, target};
use kube_kms_config as config;
use kube_kms_os as os;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kube-kms check --config /etc/kube-kms/config.yaml\n  \
kube-kms check --encryption-config /etc/kubernetes/encryption/configuration.yaml\n  \
kube-kms check --config config.yaml --output json\n\nRun it as the user who serves. It makes one wrap and one unwrap at the \
KEK and changes nothing. Every finding has a remedy.\nExit status: 3 the configuration or the EncryptionConfiguration cannot be \
read as one, 4 the KMS cannot be reached, 5 it refuses,\n6 something else keeps kube-kms or kube-apiserver from working (an ERROR \
of the report).")]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "KUBE_KMS_CONFIG", default_value = "/etc/kube-kms/config.yaml")]
    config: PathBuf,
    /// kube-apiserver's EncryptionConfiguration, to be checked against this plugin
    #[arg(long, value_name = "FILE")]
    encryption_config: Option<PathBuf>,
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
    /// Stanza by stanza of the EncryptionConfiguration, when one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<Vec<Coverage>>,
    findings: Vec<Finding>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let path = process::absolute(&arguments.config);
    let config = config::load(&path).map_err(|problems| super::configuration_failure(&problems))?;
    let base = std::env::current_dir().unwrap_or_default();
    let address = SocketAddress::parse(&config.listen.socket, &base).map_err(|e| {
        Failure::new(Exit::Configuration, "listen.socket is not the address of a unix socket")
            .because(&e)
            .hint(SOCKET_HINT)
    })?;
    let verdict = arguments.encryption_config.as_deref().map(|file| encryption(file, &config, &address)).transpose()?;
    let socket::Look { mut findings, is_served } = socket::look(&config, &address);
    findings.extend(host::look(&config, &path, is_served, os::wall_clock()));
    let (encryption, of_apiserver) = verdict.map_or((None, Vec::new()), |v| (Some(v.coverage), v.findings));
    findings.extend(of_apiserver);
    let runtime = kube_kms_cli::runtime()?;
    let tried = runtime.block_on(kek::try_all(&config)).map_err(|failure| with_findings(failure, &findings))?;
    if is_served {
        findings.extend(runtime.block_on(running::compare(target(&address), &tried.candidate.key_id)));
    }
    findings.extend(kek::findings(&config, &tried));
    let Tried { candidate, millis, recovery, .. } = tried;
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
        encryption,
        findings,
    };
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => print(&report),
    }
    let is_well = report.findings.iter().all(|f| f.severity < Severity::Error);
    Ok(if is_well { Exit::Done } else { Exit::VerificationFailed })
}

fn encryption(file: &Path, config: &config::Config, ours: &SocketAddress) -> Result<Verdict, Failure> {
    let document = encryption_configuration::load(file).map_err(|e| {
        Failure::new(Exit::Configuration, format!("{} is no EncryptionConfiguration", file.display()))
            .cause(e.to_string())
            .hint("kube-apiserver would not take it; `kube-kms manifests --kind encryption-configuration` prints one that it does")
    })?;
    Ok(apiserver::judge(&document, file, config, ours))
}

/// A KEK that does not answer must not hide what else was found.
fn with_findings(failure: Failure, findings: &[Finding]) -> Failure {
    let worth = findings.iter().filter(|f| f.severity > Severity::Note);
    worth
        .fold(failure, |failure, f| failure.cause(format!("also found: {}: {}; remedy: {}", f.about, f.what, f.remedy)))
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
    for stanza in report.encryption.iter().flatten() {
        let stage = stanza.stage.map(|stage| format!(" (stage {stage})")).unwrap_or_default();
        let reads = match stanza.reads.as_slice() {
            [] => String::new(),
            readers => format!("; also read by {}", readers.join(", ")),
        };
        output::line(format!("encrypts  {}: {} writes{reads}{stage}", stanza.resources.join(", "), stanza.writes));
    }
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    for f in &findings {
        output::line(format!("{:<9} {}: {}", f.severity.as_str(), f.about, f.what));
        // `nothing: serve makes it`: for a program the remedy is always there, a reader is spared it.
        if !f.remedy.starts_with("nothing") {
            output::line(format!("          remedy: {}", f.remedy));
        }
    }
    if findings.iter().all(|f| f.severity == Severity::Note) {
        output::line("ready to serve");
    }
}
