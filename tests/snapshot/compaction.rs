//! What compaction leaves behind at any moment never changes which keys live.
//!
//! A model of etcd's compaction (`key_index.go`, `kvstore_compaction.go`): which entries it keeps, and in which order it
//! removes the others. Every file that a snapshot could show while it runs is built and read.

use super::{on_disk, open, read};
use crate::support::bolt_file::{BoltFile, Element, bucket, inline, plain, put, revision, tombstone};
use kube_kms_etcd::snapshot::Unhashed;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
enum Write {
    Put(u8),
    Delete(u8),
}

/// One revision each; a deletion of what is not there is none, as in etcd.
fn history(writes: &[Write]) -> Vec<(u64, u8, bool)> {
    let mut alive = BTreeSet::new();
    let mut all = Vec::new();
    for write in writes {
        let (key, deletes) = match *write {
            Write::Put(key) => (key, false),
            Write::Delete(key) => (key, true),
        };
        // A write always happens.
        let was_there = if deletes { alive.remove(&key) } else { !alive.insert(key) };
        if was_there || !deletes {
            all.push((all.len() as u64 + 2, key, deletes));
        }
    }
    all
}

fn element(&(main, key, deletes): &(u64, u8, bool)) -> Element {
    let name = format!("/registry/secrets/s{key}");
    if deletes { tombstone(main, 0, name.as_bytes()) } else { put(main, 0, name.as_bytes(), &main.to_be_bytes()) }
}

/// Live keys with the revision that made them so: what etcd answers.
fn truth(history: &[(u64, u8, bool)]) -> BTreeMap<u8, u64> {
    let mut live = BTreeMap::new();
    for &(main, key, deletes) in history {
        if deletes {
            live.remove(&key)
        } else {
            live.insert(key, main)
        };
    }
    live
}

/// What a compaction at `at` removes, in its order. `keeps_tombstone`: since etcd 3.5.20 a deletion at exactly `at` stays.
fn removed(history: &[(u64, u8, bool)], at: u64, keeps_tombstone: bool) -> Vec<u64> {
    let mut newest = BTreeMap::new();
    for &(main, key, deletes) in history.iter().filter(|(main, ..)| *main <= at) {
        newest.insert(key, (main, deletes));
    }
    let keep: BTreeSet<u64> = newest
        .values()
        .filter(|(main, deletes)| !deletes || (keeps_tombstone && *main == at))
        .map(|(main, _)| *main)
        .collect();
    history.iter().map(|(main, ..)| *main).filter(|main| *main <= at && !keep.contains(main)).collect()
}

fn file(entries: &[(u64, u8, bool)], scheduled: u64) -> Vec<u8> {
    let mut file = BoltFile::new();
    let elements: Vec<Element> = entries.iter().map(element).collect();
    let tree = file.tree(&elements, 3);
    let meta = inline(b"meta", &[plain(b"scheduledCompactRev", &revision(scheduled, 0))]);
    let root = file.leaf(&[bucket(b"key", tree), meta]);
    file.finish(root)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_moment_of_a_compaction_brings_a_deleted_key_back_or_loses_a_live_one(
        writes in proptest::collection::vec((0_u8..5, any::<bool>()), 1..24),
        at in 0_usize..24,
        keeps_tombstone: bool,
    ) {
        let writes: Vec<Write> =
            writes.into_iter().map(|(key, put)| if put { Write::Put(key) } else { Write::Delete(key) }).collect();
        let history = history(&writes);
        prop_assume!(!history.is_empty());
        let at = history[at % history.len()].0;
        let removed = removed(&history, at, keeps_tombstone);
        // Not one, one, …, all of them gone.
        for gone in 0..=removed.len() {
            let left: Vec<_> = history.iter().filter(|(main, ..)| !removed[..gone].contains(main)).copied().collect();
            let (live, _) = read(&file(&left, at)).unwrap();
            let found: BTreeMap<u8, u64> = live
                .iter()
                .map(|(key, (value, modified, _))| {
                    assert_eq!(value[..], modified.to_be_bytes());
                    (key.last().unwrap() - b'0', *modified as u64)
                })
                .collect();
            prop_assert_eq!(found, truth(&history), "{:?} compacted at {}, {} gone", history, at, gone);
        }
    }
}

#[test]
fn when_compaction_took_the_newest_entry_the_revision_is_still_known() {
    let history = history(&[Write::Put(1), Write::Delete(1)]);
    assert_eq!(removed(&history, 3, false), [2, 3]);
    let file = on_disk(&file(&[], 3));
    let snapshot = open(file.path(), Unhashed::Accept).unwrap();
    assert_eq!(snapshot.facts().revision, 3);
    assert!(snapshot.facts().is_compacting());
}
