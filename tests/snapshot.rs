//! The reader of etcd snapshot files: on files of a real etcd, on files written by hand, and on hostile ones.

mod built;
mod compaction;
mod hostile;
mod real;

use kube_kms_etcd::snapshot::{Snapshot, SnapshotError, Summary, Unhashed};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use tempfile::NamedTempFile;

/// Live keys with their values, and both revisions.
type Live = BTreeMap<Vec<u8>, (Vec<u8>, i64, i64)>;

fn on_disk(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(path: &Path, unhashed: Unhashed) -> Result<Snapshot, SnapshotError> {
    Snapshot::open(path, unhashed, |_| {})
}

/// All live keys under a prefix; fails when one comes twice.
fn live_of(snapshot: &Snapshot, prefix: &[u8]) -> Result<(Live, Summary), SnapshotError> {
    let mut live = Live::new();
    let each = |record: kube_kms_etcd::record::Record<'_>| {
        let value = (record.value.to_vec(), record.mod_revision, record.create_revision);
        assert!(live.insert(record.key.to_vec(), value).is_none(), "{:?} came twice", record.key);
        ControlFlow::Continue(())
    };
    let summary = snapshot.records(prefix, each, |_| {})?;
    assert_eq!(summary.live, live.len() as u64);
    Ok((live, summary))
}

/// All live keys of these bytes of a file without a hash.
fn read(bytes: &[u8]) -> Result<(Live, Summary), SnapshotError> {
    let file = on_disk(bytes);
    live_of(&open(file.path(), Unhashed::Accept)?, b"")
}
