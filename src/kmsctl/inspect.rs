//! `kmsctl inspect`: one stored value, every field decoded and explained; and whether it opens.
//!
//! SECURITY: what opens is compared and wiped, never printed. Reads only; without `--decrypt-check` it needs no key.

mod explain;
mod input;
mod opening;

use crate::etcd_access::{EtcdArguments, failure};
use clap::Args;
use explain::Report;
use input::Encoding;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_etcd::value::Value;
use opening::Opener;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kmsctl inspect /registry/secrets/default/s1 --cacert ca.crt --cert client.crt --key client.key\n  \
etcdctl get --print-value-only /registry/secrets/default/s1 | kmsctl inspect\n  \
kmsctl inspect /registry/secrets/default/s1 --file value.b64 --decrypt-check --config /etc/kube-kms/config.yaml\n\n\
Without a key and without --file the value comes from stdin. Plaintext is never printed. Exit status 6 when --decrypt-check \
finds that it does not open, or when kube-apiserver would not read the value."
)]
pub(super) struct Arguments {
    /// The etcd key of the object: where to read the value, and what its encryption is bound to
    #[arg(value_name = "ETCD_KEY")]
    object: Option<String>,
    /// Read the value from this file and not from etcd; - is stdin
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How the file or stdin has the value
    #[arg(long, value_enum, default_value_t)]
    encoding: Encoding,
    /// Say whether the DEK source opens, and with ETCD_KEY whether the object does
    #[arg(long, requires = "opener")]
    decrypt_check: bool,
    /// Try it with the KEKs of this plugin configuration
    #[arg(long, value_name = "FILE", group = "opener", requires = "decrypt_check")]
    config: Option<PathBuf>,
    /// Try it by asking the plugin that listens there, as kube-apiserver would
    #[arg(long, value_name = "SOCKET", group = "opener", requires = "decrypt_check")]
    socket: Option<String>,
    /// How long opening may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    etcd: EtcdArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let runtime = kube_kms_cli::runtime()?;
    let (value, mod_revision) = match (&arguments.object, &arguments.file) {
        (Some(key), None) => {
            let (value, revision) = runtime.block_on(from_etcd(arguments, key))?;
            (value, Some(revision))
        }
        (_, file) => {
            let file = file.as_deref().filter(|path| path.as_os_str() != "-");
            (input::read(file, arguments.encoding)?, None)
        }
    };
    let mut report = Report::of(arguments.object.as_deref(), &value, mod_revision);
    if arguments.decrypt_check {
        let Value::KmsV2(object) = Value::parse(&value) else {
            return Err(Failure::new(Exit::VerificationFailed, "there is nothing for a KMS v2 plugin to open")
                .cause(report.what.clone())
                .hint("leave --decrypt-check out to see what the value is"));
        };
        let opener = match (&arguments.config, &arguments.socket) {
            (Some(path), _) => Opener::Config(path.clone()),
            (None, Some(socket)) => Opener::Socket(socket.clone()),
            (None, None) => {
                return Err(Failure::new(Exit::Usage, "--decrypt-check needs somebody to open it")
                    .cause("neither --config nor --socket is given")
                    .hint("--socket /run/kube-kms/kms.sock asks the plugin that runs"));
            }
        };
        let key = arguments.object.as_deref();
        report.decrypt_check = Some(runtime.block_on(opener.check(&object, key, arguments.timeout))?);
    }
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => report.lines().iter().for_each(output::line),
    }
    let opens =
        report.decrypt_check.as_ref().is_none_or(|check| check.dek_source_opens && check.object_opens != Some(false));
    Ok(if opens && report.problems.is_empty() { Exit::Done } else { Exit::VerificationFailed })
}

async fn from_etcd(arguments: &Arguments, key: &str) -> Result<(Vec<u8>, i64), Failure> {
    let mut client = arguments.etcd.connect().await?;
    let found = client.one(key.as_bytes()).await.map_err(|error| failure(&format!("{key} cannot be read"), &error))?;
    let (value, revision) = found.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("etcd has no key {key}"))
            .cause("etcd answered, and has no such key")
            .hint("keys begin with kube-apiserver's --etcd-prefix: /registry/secrets/NAMESPACE/NAME")
    })?;
    Ok((value.to_vec(), revision))
}
