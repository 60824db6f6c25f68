//! `kube-kms probe`: one Status, Encrypt and Decrypt against any KMS v2 plugin, judged as kube-apiserver judges.

use clap::Args;
use kms_v2_api::address::SocketAddress;
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::{KmsClient, Target};
use kms_v2_client::limit;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_core::dek::DekBytes;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::printable::printable;
use kube_kms_os::{OsEntropy, Stopwatch};
use serde::Serialize;
use std::borrow::Cow;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tonic::Status;

/// Bytes that kube-apiserver adds to each stored object besides key_id, ciphertext and annotations, without the prefix.
const FRAMING: usize = 60;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kube-kms probe --socket unix:///run/kube-kms/kms.sock\n  \
kube-kms probe --socket unix:///@kms --output json\n  \
kube-kms probe --live --socket unix:///run/kube-kms/kms.sock   # for a liveness probe\n\nExit status 4 when nobody answers, 6 when an answer is not as \
kube-apiserver needs it.")]
pub(super) struct Arguments {
    /// Where the plugin listens: unix:///PATH, /PATH, or unix:///@NAME for an abstract socket
    #[arg(long, value_name = "SOCKET", env = "KUBE_KMS_SOCKET")]
    socket: String,
    /// Deadline of each call, as `timeout` in the EncryptionConfiguration
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Only ask whether the plugin answers at all, whatever it says of itself and of its KMS: what a restart could change
    #[arg(long, conflicts_with = "output")]
    live: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// What was found. `problems` is empty when the plugin did everything as it should.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    socket: String,
    status: StatusReport,
    encrypt: Option<EncryptReport>,
    decrypt: Option<DecryptReport>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusReport {
    version: String,
    healthz: String,
    key_id: String,
    key_id_hash: String,
    micros: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptReport {
    plaintext_bytes: usize,
    ciphertext_bytes: usize,
    key_id: String,
    annotations: Vec<AnnotationReport>,
    /// Bytes that each object in etcd grows by, without the prefix with the provider's name.
    bytes_per_object: usize,
    micros: u64,
}

#[derive(Debug, Serialize)]
struct AnnotationReport {
    name: String,
    bytes: usize,
    /// The value, when it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DecryptReport {
    same_plaintext: bool,
    micros: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let (address, target) = kube_kms_cli::socket(&arguments.socket)?;
    if arguments.live {
        return kube_kms_cli::runtime()?.block_on(live(&address, target, arguments.timeout));
    }
    let report = kube_kms_cli::runtime()?.block_on(probe(&address, target, arguments.timeout))?;
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => print(&report),
    }
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::VerificationFailed })
}

async fn connect(address: &SocketAddress, target: Target, timeout: Duration) -> Result<KmsClient, Failure> {
    KmsClient::connect(target, timeout).await.map_err(|e| {
        Failure::new(Exit::Unreachable, format!("nobody answers on {address}"))
            .because(&e)
            .hint("is the plugin running, and may this user open its socket?")
    })
}

/// A Status in which the plugin says that it is starting, that its KMS is away or that this user may not ask is an answer too.
async fn live(address: &SocketAddress, target: Target, timeout: Duration) -> Result<Exit, Failure> {
    let said = match connect(address, target, timeout).await?.status().await {
        Ok(status) => format!("healthz {:?}", status.healthz),
        // A status with a source is none of the plugin's: the connection or the clock of this end made it.
        Err(status) if std::error::Error::source(&status).is_none() => describe(&status),
        Err(status) => {
            return Err(Failure::new(Exit::Unreachable, format!("no answer on {address}"))
                .because(&status)
                .hint("a plugin that hangs has to be restarted; its log says what it did last"));
        }
    };
    output::line(format!("alive: {said}"));
    Ok(Exit::Done)
}

async fn probe(address: &SocketAddress, target: Target, timeout: Duration) -> Result<Report, Failure> {
    let mut client = connect(address, target, timeout).await?;
    let mut problems = Vec::new();

    let watch = Stopwatch::start();
    let status = client.status().await.map_err(|status| refused("Status", &status))?;
    let micros = micros(watch);
    if !limit::is_accepted_version(&status.version) {
        problems.push(format!("Status.version is {:?}; kube-apiserver takes v2 and v2beta1", status.version));
    }
    if status.healthz != limit::HEALTHY {
        problems.push(format!("Status.healthz is {:?}, not \"ok\": the API server is not ready", status.healthz));
    }
    problems.extend(limit::check_key_id(&status.key_id).err().map(|violation| violation.describe("Status")));
    let key_id_hash = KeyId::parse(status.key_id.clone()).map(|k| k.metric_hash()).unwrap_or_default();
    let status =
        StatusReport { version: status.version, healthz: status.healthz, key_id: status.key_id, key_id_hash, micros };

    let seed = DekBytes::generate(&OsEntropy).map_err(|fault| {
        Failure::of_fault("a seed cannot be made", &fault).hint("the operating system gives no memory or no randomness")
    })?;
    let watch = Stopwatch::start();
    let sealed = client.encrypt(seed.expose_bytes().to_vec(), new_uid()).await;
    let micros_encrypt = self::micros(watch);
    let sealed = match sealed {
        Ok(sealed) => sealed,
        Err(status_error) => {
            problems.push(format!("Encrypt failed: {}", describe(&status_error)));
            return Ok(Report { socket: address.endpoint(), status, encrypt: None, decrypt: None, problems });
        }
    };
    check_sealed(&sealed, &status.key_id, &mut problems);
    let encrypt = report_sealed(&sealed, micros_encrypt);

    let watch = Stopwatch::start();
    let opened = client.decrypt(sealed, new_uid()).await;
    let micros = self::micros(watch);
    let decrypt = match opened {
        Ok(opened) => {
            let same_plaintext: bool = opened.plaintext.ct_eq(seed.expose_bytes()).into();
            if !same_plaintext {
                problems.push("Decrypt returned other bytes than were given to Encrypt".to_owned());
            }
            Some(DecryptReport { same_plaintext, micros })
        }
        Err(status_error) => {
            problems.push(format!("Decrypt failed: {}", describe(&status_error)));
            None
        }
    };
    Ok(Report { socket: address.endpoint(), status, encrypt: Some(encrypt), decrypt, problems })
}

fn check_sealed(sealed: &EncryptResponse, status_key_id: &str, problems: &mut Vec<String>) {
    let broken = limit::check_sealed(&sealed.key_id, &sealed.ciphertext, &sealed.annotations);
    problems.extend(broken.iter().map(|violation| violation.describe("Encrypt")));
    if sealed.key_id != status_key_id {
        problems.push("Encrypt.key_id differs from Status.key_id: kube-apiserver throws the answer away".to_owned());
    }
}

fn report_sealed(sealed: &EncryptResponse, micros: u64) -> EncryptReport {
    let annotations = sealed
        .annotations
        .iter()
        .map(|(name, value)| AnnotationReport {
            name: name.clone(),
            bytes: value.len(),
            text: std::str::from_utf8(value)
                .ok()
                .filter(|t| t.chars().all(|c| c.is_ascii_graphic()))
                .map(str::to_owned),
        })
        .collect();
    let bytes_per_object = FRAMING
        .saturating_add(sealed.key_id.len())
        .saturating_add(sealed.ciphertext.len())
        .saturating_add(limit::annotations_size(&sealed.annotations));
    EncryptReport {
        plaintext_bytes: kube_kms_core::dek::DEK_LEN,
        ciphertext_bytes: sealed.ciphertext.len(),
        key_id: sealed.key_id.clone(),
        annotations,
        bytes_per_object,
        micros,
    }
}

fn refused(rpc: &str, status: &Status) -> Failure {
    let exit = match status.code() {
        tonic::Code::Unavailable
        | tonic::Code::DeadlineExceeded
        | tonic::Code::ResourceExhausted
        | tonic::Code::Cancelled => Exit::Unreachable,
        tonic::Code::PermissionDenied | tonic::Code::FailedPrecondition => Exit::Refused,
        _ => Exit::Failed,
    };
    let hint = match status.code() {
        tonic::Code::PermissionDenied => "run this as a user that `listen.allowUids` names",
        _ => "the plugin's log and its /readyz say more",
    };
    Failure::new(exit, format!("{rpc} failed")).cause(describe(status)).hint(hint)
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn micros(watch: Stopwatch) -> u64 {
    u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// On one line, whatever the plugin says.
fn shown(text: &str) -> Cow<'_, str> {
    printable(text.as_bytes())
}

fn print(report: &Report) {
    output::line(format!("socket   {}", report.socket));
    let s = &report.status;
    output::line(format!("Status   {:>7} µs  version {}, healthz {}", s.micros, shown(&s.version), shown(&s.healthz)));
    output::line(format!("                     key_id {}", shown(&s.key_id)));
    output::line(format!("                     key_id_hash {}", s.key_id_hash));
    if let Some(e) = &report.encrypt {
        output::line(format!(
            "Encrypt  {:>7} µs  {} bytes in, {} bytes of ciphertext out; each object in etcd grows by {} bytes",
            e.micros, e.plaintext_bytes, e.ciphertext_bytes, e.bytes_per_object
        ));
        for a in &e.annotations {
            output::line(
                format!(
                    "                     {} {} bytes {}",
                    shown(&a.name),
                    a.bytes,
                    shown(a.text.as_deref().unwrap_or(""))
                )
                .trim_end(),
            );
        }
    }
    if let Some(d) = &report.decrypt {
        let same = if d.same_plaintext { "the same bytes came back" } else { "OTHER BYTES CAME BACK" };
        output::line(format!("Decrypt  {:>7} µs  {same}", d.micros));
    }
    for problem in &report.problems {
        output::line(format!("PROBLEM  {}", shown(problem)));
    }
    if report.problems.is_empty() {
        output::line("all as kube-apiserver needs it");
    }
}
