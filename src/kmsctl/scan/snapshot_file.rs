//! The same scan from a file that `etcdctl snapshot save` made: backups hold keys in use as well.
//!
//! Records come in the order of their writes and not of their keys, each once. Memory is that of the tally, and some
//! bytes for each key: see [`kube_kms_etcd::snapshot`].

use crate::scan::report::{SnapshotSource, Source};
use crate::scan::{Arguments, PREFIX_HINT, bar, show};
use indicatif::ProgressBar;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_etcd::record::Record;
use kube_kms_etcd::resource::{Directory, directories};
use kube_kms_etcd::scan::{Progress, Settings};
use kube_kms_etcd::snapshot::{Integrity, Snapshot, SnapshotError, Unhashed};
use kube_kms_etcd::tally::Tally;
use kube_kms_os::Stopwatch;
use std::ops::ControlFlow;
use std::path::Path;

/// Counts what is in the file.
pub(super) fn tally(path: &Path, arguments: &Arguments, settings: &Settings) -> Result<(Tally, Source), Failure> {
    let watch = Stopwatch::start();
    let bar = bar("bytes");
    let mut tally = Tally::new(&settings.prefix);
    let read = each(path, arguments, settings, &bar, |record| tally.add(record));
    bar.finish_and_clear();
    let snapshot = read?;
    let source = SnapshotSource {
        file: path.display().to_string(),
        hash_checked: snapshot.integrity() == Integrity::Checked,
        revision: snapshot.facts().revision,
        cluster_version: snapshot.facts().cluster_version.clone(),
        prefix: arguments.prefix.clone(),
        resources: arguments.resources.clone(),
        millis: u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok((tally, Source::Snapshot(source)))
}

/// Gives every record that is asked for; an error when there is none.
pub(super) fn each(
    path: &Path,
    arguments: &Arguments,
    settings: &Settings,
    bar: &ProgressBar,
    mut each: impl FnMut(&Record<'_>),
) -> Result<Snapshot, Failure> {
    let unhashed = if arguments.without_hash { Unhashed::Accept } else { Unhashed::Refuse };
    let file = path.display();
    let failed = |error: SnapshotError| {
        // The reader's words, and the name of our flag for one of them.
        let hint = match error {
            SnapshotError::HashMissing => {
                "a copy of member/snap/db of a stopped member has none: --without-hash; else take it again"
            }
            _ => error.hint(),
        };
        Failure::new(Exit::Failed, format!("the snapshot {file} cannot be read")).because(&error).hint(hint)
    };
    let progress = |progress: kube_kms_etcd::snapshot::Progress| {
        show(bar, Progress { done: progress.done, all: progress.total });
    };
    let snapshot = Snapshot::open(path, unhashed, progress).map_err(failed)?;
    let wanted: Vec<String> = settings.resources.iter().flat_map(|resource| directories(resource)).collect();
    let prefix = [settings.prefix.as_slice(), b"/"].concat();
    let mut found = false;
    let take = |record: Record<'_>| {
        let directory = Directory::of(record.key, &settings.prefix).as_bytes();
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted.as_bytes() == directory) {
            found = true;
            each(&record);
        }
        ControlFlow::Continue(())
    };
    snapshot.records(&prefix, take, progress).map_err(failed)?;
    if !found {
        return Err(Failure::new(Exit::Failed, format!("no key under {} that is asked for", arguments.prefix))
            .cause(format!("the snapshot is whole, and has none at revision {}", snapshot.facts().revision))
            .hint(PREFIX_HINT));
    }
    Ok(snapshot)
}
