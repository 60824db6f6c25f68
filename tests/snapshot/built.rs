//! Files written by hand: every shape that bbolt has.

use super::{live_of, on_disk, open, read};
use crate::support::bolt_file::{
    BoltFile, Element, bucket, hashed, inline, meta_page, plain, put, revision, tombstone,
};
use kube_kms_etcd::snapshot::{Integrity, Progress, Snapshot, SnapshotError, Step, Unhashed};
use std::ops::ControlFlow;

/// Revisions 2 to n + 1, one key each.
fn keys(n: u64) -> Vec<Element> {
    (0..n).map(|i| put(i + 2, 0, format!("/registry/secrets/s{i}").as_bytes(), &[b'v'; 100])).collect()
}

fn with_revisions(root_of: impl FnOnce(&mut BoltFile) -> Element) -> Vec<u8> {
    let mut file = BoltFile::new();
    let revisions = root_of(&mut file);
    let root = file.leaf(&[inline(b"auth", &[]), revisions, inline(b"meta", &[])]);
    file.finish(root)
}

#[test]
fn a_tree_of_any_depth_gives_every_key_once() {
    for (n, on_a_page) in [(1, 20), (20, 20), (21, 20), (500, 20), (500, 2), (3000, 5)] {
        let bytes = with_revisions(|file| bucket(b"key", file.tree(&keys(n), on_a_page)));
        let (live, summary) = read(&bytes).unwrap();
        assert_eq!(live.len() as u64, n);
        assert!((0..n).all(|i| {
            let (value, modified, created) = &live[format!("/registry/secrets/s{i}").as_bytes()];
            value == &[b'v'; 100] && *modified as u64 == i + 2 && created == modified
        }));
        assert!(summary.is_complete && summary.superseded + summary.deleted + summary.markers == 0);
    }
}

#[test]
fn an_inline_bucket_and_an_empty_one_are_read() {
    let (live, _) = read(&with_revisions(|_| inline(b"key", &keys(3)))).unwrap();
    assert_eq!(live.len(), 3);
    let (live, summary) = read(&with_revisions(|_| inline(b"key", &[]))).unwrap();
    assert_eq!((live.len(), summary.live, summary.is_complete), (0, 0, true));
    let (live, _) = read(&with_revisions(|file| bucket(b"key", file.leaf(&[])))).unwrap();
    assert!(live.is_empty());
}

#[test]
fn a_value_on_many_pages_is_whole() {
    let huge: Vec<u8> = (0..1_400_000_u32).map(|i| (i % 251) as u8).collect();
    let elements = [put(2, 0, b"/a", b"1"), put(3, 0, b"/huge", &huge), put(4, 0, b"/z", b"2")];
    let (live, summary) = read(&with_revisions(|file| bucket(b"key", file.leaf(&elements)))).unwrap();
    assert!(live[&b"/huge"[..]].0 == huge && live.len() == 3);
    assert!(summary.pages_read > 340, "{}", summary.pages_read);
}

#[test]
fn what_is_in_other_and_nested_buckets_is_not_taken_for_a_key() {
    let mut file = BoltFile::new();
    let tree = file.tree(&keys(50), 10);
    let nested = file.leaf(&[inline(b"key", &keys(7)), plain(b"other", b"x")]);
    let root = file.leaf(&[bucket(b"alarm", nested), bucket(b"key", tree), plain(b"key2", b"no bucket")]);
    assert_eq!(read(&file.finish(root)).unwrap().0.len(), 50);
    // A plain value of that name is no bucket.
    let mut file = BoltFile::new();
    let root = file.leaf(&[plain(b"key", b"no bucket")]);
    assert!(matches!(read(&file.finish(root)), Err(SnapshotError::NoRevisions)));
}

#[test]
fn the_newest_entry_of_a_key_decides() {
    let elements = [
        put(2, 0, b"/kept", b"old"),
        put(2, 1, b"/deleted", b"old"),
        put(3, 0, b"/again", b"old"),
        tombstone(4, 0, b"/again"),
        put(5, 0, b"/kept", b"new"),
        tombstone(6, 0, b"/deleted"),
        tombstone(6, 1, b"/nothing-left-of-it"),
        put(7, 0, b"/again", b"new"),
        put(8, 0, b"/other/prefix", b"x"),
    ];
    let bytes = with_revisions(|file| bucket(b"key", file.tree(&elements, 2)));
    let (live, summary) = read(&bytes).unwrap();
    let keys: Vec<&[u8]> = live.keys().map(Vec::as_slice).collect();
    assert_eq!(keys, [&b"/again"[..], b"/kept", b"/other/prefix"]);
    assert_eq!((&live[&b"/kept"[..]].0[..], live[&b"/kept"[..]].1), (&b"new"[..], 5));
    assert_eq!((&live[&b"/again"[..]].0[..], live[&b"/again"[..]].1), (&b"new"[..], 7));
    assert_eq!((summary.live, summary.deleted, summary.superseded), (3, 2, 4));
    let file = on_disk(&bytes);
    let snapshot = open(file.path(), Unhashed::Accept).unwrap();
    let (live, summary) = live_of(&snapshot, b"/other/").unwrap();
    assert_eq!((live.len(), summary.live, summary.deleted, summary.elsewhere), (1, 1, 0, 8));
    let (live, _) = live_of(&snapshot, b"/other/prefixes").unwrap();
    assert!(live.is_empty());
}

#[test]
fn the_mark_of_a_bumped_revision_is_no_key_and_counts_as_revision() {
    let elements = [put(2, 0, b"/a", b"1"), plain(&revision(1_000_000_002, 0), b"")];
    let bytes = with_revisions(|file| bucket(b"key", file.leaf(&elements)));
    let (live, summary) = read(&bytes).unwrap();
    assert_eq!((live.len(), summary.live, summary.markers), (1, 1, 1));
    let file = on_disk(&bytes);
    assert_eq!(open(file.path(), Unhashed::Accept).unwrap().facts().revision, 1_000_000_002);
}

#[test]
fn what_the_file_says_about_itself_is_told() {
    let mut file = BoltFile::new();
    let meta = inline(
        b"meta",
        &[
            plain(b"consistent_index", &42_u64.to_be_bytes()),
            plain(b"finishedCompactRev", &revision(7, 0)),
            plain(b"scheduledCompactRev", &revision(90, 0)),
            plain(b"storageVersion", b"3.6.0"),
        ],
    );
    let cluster = inline(b"cluster", &[plain(b"clusterVersion", b"3.6.0")]);
    let root = file.leaf(&[cluster, inline(b"key", &keys(3)), meta]);
    let bytes = file.finish(root);
    let file = on_disk(&hashed(bytes.clone()));
    let snapshot = open(file.path(), Unhashed::Refuse).unwrap();
    assert_eq!(snapshot.integrity(), Integrity::Checked);
    let facts = snapshot.facts();
    // The newest entry is older than the compaction, which may have removed newer ones.
    assert_eq!(facts.revision, 90);
    assert_eq!(facts.consistent_index, Some(42));
    assert_eq!((facts.finished_compaction, facts.scheduled_compaction), (Some(7), Some(90)));
    assert!(facts.is_compacting());
    assert_eq!(facts.cluster_version.as_deref(), Some("3.6.0"));
    assert_eq!(facts.storage_version.as_deref(), Some("3.6.0"));
    assert_eq!((facts.page_size, facts.pages), (4096, 4));
    let file = on_disk(&bytes);
    assert_eq!(open(file.path(), Unhashed::Accept).unwrap().integrity(), Integrity::Missing);
    // Whatever stands there is printed one day: nothing that moves a cursor.
    let mut file = BoltFile::new();
    let cluster = inline(b"cluster", &[plain(b"clusterVersion", b"\x1b[2J3.6.0")]);
    let root = file.leaf(&[cluster, inline(b"key", &[])]);
    let file = on_disk(&file.finish(root));
    let snapshot = open(file.path(), Unhashed::Accept).unwrap();
    assert_eq!((snapshot.facts().cluster_version.as_deref(), snapshot.facts().revision), (None, 1));
    assert!(!snapshot.facts().is_compacting());
}

#[test]
fn the_meta_page_of_the_last_commit_counts_and_one_of_them_may_be_torn() {
    let mut file = BoltFile::new();
    let old = file.leaf(&[inline(b"key", &keys(1))]);
    let new = file.leaf(&[inline(b"key", &keys(2))]);
    let pages = file.next();
    let sound = file.finish(new);
    let with = |first: &[u8], second: &[u8]| {
        let mut bytes = sound.clone();
        bytes[..80].copy_from_slice(first);
        bytes[4096..4096 + 80].copy_from_slice(second);
        read(&bytes).map(|(live, _)| live.len())
    };
    let (even_old, odd_old) = (meta_page(old, pages, 8), meta_page(old, pages, 7));
    let (even_new, odd_new) = (meta_page(new, pages, 8), meta_page(new, pages, 9));
    assert_eq!(with(&even_new, &odd_old).unwrap(), 2);
    assert_eq!(with(&even_old, &odd_new).unwrap(), 2);
    let torn = |page: &[u8]| [&page[..70], &[0xaa; 10]].concat();
    assert_eq!(with(&torn(&even_new), &odd_old).unwrap(), 1);
    assert_eq!(with(&even_old, &torn(&odd_new)).unwrap(), 1);
    assert!(matches!(with(&torn(&even_old), &torn(&odd_new)), Err(SnapshotError::NotBolt(_))));
}

#[test]
fn a_reader_that_has_enough_stops_and_the_summary_says_so() {
    let bytes = with_revisions(|file| bucket(b"key", file.tree(&keys(3000), 10)));
    let file = on_disk(&hashed(bytes));
    let mut hashing = Vec::new();
    let snapshot = Snapshot::open(file.path(), Unhashed::Refuse, |p| hashing.push(p)).unwrap();
    assert!(!hashing.is_empty() && hashing.iter().all(|p| p.step == Step::Hash && p.total > 0));
    assert!(hashing.last().is_some_and(|p| p.done == p.total));
    let mut left = 5;
    let enough = |_: kube_kms_etcd::record::Record<'_>| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let summary = snapshot.records(b"", enough, |_| {}).unwrap();
    assert_eq!((summary.live, summary.is_complete), (5, false));
    assert!(summary.pages_read < 10, "{}", summary.pages_read);
    let mut reading: Vec<Progress> = Vec::new();
    snapshot.records(b"", |_| ControlFlow::Continue(()), |p| reading.push(p)).unwrap();
    assert!(reading.len() > 1 && reading.windows(2).all(|two| two[0].done < two[1].done), "{reading:?}");
    assert!(reading.iter().all(|p| p.step == Step::Read && p.done <= p.total));
    assert!(reading.last().is_some_and(|p| p.done == p.total));
}
