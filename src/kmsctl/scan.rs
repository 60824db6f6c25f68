//! `kmsctl scan`: which keys are in use in etcd, and whether one of them is all that is.
//!
//! Reads only. Needs no key, and works on the values of any KMS v2 plugin.

mod listing;
mod report;
mod snapshot_file;
mod text;

use crate::etcd_access::{EtcdArguments, failure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_etcd::census::Census;
use kube_kms_etcd::scan::{Outcome, Progress, Settings, scan};
use kube_kms_etcd::tally::Tally;
use kube_kms_etcd::verdict::Verdict;
use kube_kms_os::Stopwatch;
use listing::{Listing, Wanted};
use report::{EtcdSource, Report, Source};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
kmsctl scan --endpoints https://127.0.0.1:2379 --cacert /etc/kubernetes/pki/etcd/ca.crt \\\n    \
--cert /etc/kubernetes/pki/apiserver-etcd-client.crt --key /etc/kubernetes/pki/apiserver-etcd-client.key\n  \
kmsctl scan --unencrypted --resource secrets\n  kmsctl scan --snapshot backup.db\n  kmsctl scan --expect-only k1-0123456789abcdef0123456789abcdef\n\n\
It reads at one revision, changes nothing and needs no key. Exit status: 4 etcd cannot be reached, 5 it refuses, 6 \
--expect-only does not hold. docs/scan.md says how to read the output.")]
pub(super) struct Arguments {
    /// The etcd prefix of the cluster: --etcd-prefix of kube-apiserver
    #[arg(long, value_name = "PREFIX", default_value = "/registry")]
    prefix: String,
    /// Read only this resource: secrets, deployments.apps, widgets.example.com; can be repeated
    #[arg(long = "resource", value_name = "RESOURCE")]
    resources: Vec<String>,
    /// List the objects under this key_id (or its sha256:… hash), one key a line
    #[arg(long, value_name = "KEY_ID", group = "wanted")]
    key_id: Option<String>,
    /// List the objects whose DEK this KEK can unwrap, as primary or as recovery KEK
    #[arg(long, value_name = "KEK", group = "wanted")]
    kek: Option<String>,
    /// List the objects that etcd has in clear
    #[arg(long, group = "wanted")]
    unencrypted: bool,
    /// Exit with 6 unless this key_id (or its sha256:… hash) is the only key in use: then the others may be retired
    #[arg(long, value_name = "KEY_ID", group = "wanted", conflicts_with_all = ["resources", "serializable"])]
    expect_only: Option<String>,
    /// Read this file, made by `etcdctl snapshot save`, and no live etcd
    #[arg(long, value_name = "FILE", conflicts_with = "serializable")]
    snapshot: Option<PathBuf>,
    /// Take a snapshot file that has no hash: a copy of a stopped member's member/snap/db
    #[arg(long, requires = "snapshot")]
    without_hash: bool,
    /// Let one member answer from its own store, which may be behind: no load on the leader
    #[arg(long)]
    serializable: bool,
    /// How to print; a list is one JSON object a line
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    etcd: EtcdArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut settings = Settings::new(arguments.prefix.as_bytes());
    settings.resources.clone_from(&arguments.resources);
    settings.serializable = arguments.serializable;
    let runtime = kube_kms_cli::runtime()?;
    if let Some(wanted) = Wanted::of(arguments) {
        if let Some(path) = &arguments.snapshot {
            let listing = Listing::new(wanted, arguments.output, &settings.prefix);
            snapshot_file::each(path, arguments, &settings, &ProgressBar::hidden(), |record| {
                listing.show(record);
            })?;
            return Ok(Exit::Done);
        }
        let mut listing = Listing::new(wanted, arguments.output, &settings.prefix);
        let outcome = runtime.block_on(async {
            let mut client = arguments.etcd.connect().await?;
            scan(&mut client, &settings, &mut listing).await.map_err(|error| failure(INTERRUPTED, &error))
        })?;
        not_empty(&outcome, arguments)?;
        return Ok(Exit::Done);
    }
    let (tally, source) = match &arguments.snapshot {
        Some(path) => snapshot_file::tally(path, arguments, &settings)?,
        None => runtime.block_on(from_etcd(arguments, &settings))?,
    };
    let verdict = arguments.expect_only.as_ref().map(|expected| Verdict::expect_only(&tally, expected));
    let holds = verdict.as_ref().is_none_or(|verdict| verdict.holds);
    let report = Report::new(&tally, source, verdict);
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => text::lines(&report).iter().for_each(output::line),
    }
    Ok(if holds { Exit::Done } else { Exit::VerificationFailed })
}

const INTERRUPTED: &str = "the scan of etcd could not be finished";

const PREFIX_HINT: &str =
    "--prefix is kube-apiserver's --etcd-prefix; with --etcd-servers-overrides, events are in another etcd";

async fn from_etcd(arguments: &Arguments, settings: &Settings) -> Result<(Tally, Source), Failure> {
    let mut client = arguments.etcd.connect().await?;
    let bar = bar("objects");
    let watch = Stopwatch::start();
    let mut census = Census::new(&settings.prefix, Box::new(|progress| show(&bar, progress)));
    let outcome = scan(&mut client, settings, &mut census).await;
    bar.finish_and_clear();
    let outcome = outcome.map_err(|error| failure(INTERRUPTED, &error))?;
    not_empty(&outcome, arguments)?;
    let tally = census.tally();
    let (member, version) = client.member().unwrap_or_default();
    let source = EtcdSource {
        member: member.to_owned(),
        version: version.to_owned(),
        prefix: arguments.prefix.clone(),
        resources: arguments.resources.clone(),
        serializable: arguments.serializable,
        first_revision: outcome.first_revision,
        last_revision: outcome.last_revision,
        restarts: outcome.restarts.iter().map(|r| format!("{} at revision {}", r.resource, r.from)).collect(),
        interruptions: outcome.interruptions,
        millis: u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok((tally, Source::Etcd(source)))
}

fn not_empty(outcome: &Outcome, arguments: &Arguments) -> Result<(), Failure> {
    if outcome.keys > 0 {
        return Ok(());
    }
    let what = match arguments.resources.as_slice() {
        [] => String::new(),
        resources => format!(" of {}", resources.join(", ")),
    };
    Err(Failure::new(Exit::Failed, format!("no key under {}{what}", arguments.prefix))
        .cause(format!("etcd answered, and has none at revision {}", outcome.first_revision))
        .hint(PREFIX_HINT))
}

fn bar(what: &str) -> ProgressBar {
    // Drawn on stderr, and only when that is a terminal.
    let bar = ProgressBar::new(0);
    let template = format!("{{wide_bar}} {{human_pos}} of {{human_len}} {what}, {{eta}} left");
    bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.all);
    bar.set_position(progress.done);
}
