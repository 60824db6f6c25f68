//! Snapshots of a real etcd, compared with what etcd itself answers.

use super::hostile::damaged;
use super::{live_of, open};
use crate::support::etcd_store::objects::{FOREIGN, Group, Kind, NEW, OLD};
use crate::support::etcd_store::{EtcdStore, Stored, has_flag, objects};
use crate::support::skipped;
use kms_v2_api::stored;
use kube_kms_etcd::snapshot::{Integrity, Snapshot, SnapshotError, Unhashed};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::tempdir;

macro_rules! or_skip {
    ($test:expr, $made:expr) => {
        match $made {
            Ok(made) => made,
            Err(reason) => return skipped($test, &reason),
        }
    };
}

/// What the reader finds, as etcd would answer it.
fn found(snapshot: &Snapshot, prefix: &[u8]) -> Vec<Stored> {
    let (live, _) = live_of(snapshot, prefix).unwrap();
    live.into_iter()
        .map(|(key, (value, mod_revision, create_revision))| Stored { key, value, mod_revision, create_revision })
        .collect()
}

/// Not `assert_eq`: a hundred thousand values on the terminal help nobody.
fn assert_same(found: &[Stored], truth: &[Stored]) {
    assert_eq!(found.len(), truth.len());
    for (found, truth) in found.iter().zip(truth) {
        assert_eq!(found, truth);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_objects_are_read_as_etcd_has_them() {
    const TEST: &str = "a_hundred_thousand_objects_are_read_as_etcd_has_them";
    const OBJECTS: usize = 100_000;
    let dir = tempdir().unwrap();
    let store = or_skip!(TEST, EtcdStore::start(dir.path(), &[]).await);
    let began = Instant::now();
    let expected = objects::fill(&store, OBJECTS).await;
    let filled = began.elapsed();
    let file = dir.path().join("snapshot.db");
    or_skip!(TEST, store.snapshot(&file));
    let truth = store.range(objects::PREFIX.as_bytes()).await;
    assert_eq!(store.count(objects::PREFIX.as_bytes()).await, expected.live);
    assert_eq!(expected.live, OBJECTS as u64);

    let snapshot = open(&file, Unhashed::Refuse).unwrap();
    assert_eq!(snapshot.integrity(), Integrity::Checked);
    assert_eq!(snapshot.facts().revision, store.revision().await);
    assert!(snapshot.facts().consistent_index.is_some_and(|index| index > 0));
    assert!(snapshot.facts().cluster_version.as_deref().is_some_and(|version| version.starts_with("3.")));
    assert!(!snapshot.facts().is_compacting());
    let (_, summary) = live_of(&snapshot, objects::PREFIX.as_bytes()).unwrap();
    assert_eq!((summary.live, summary.deleted), (expected.live, expected.deleted));
    assert_same(&found(&snapshot, objects::PREFIX.as_bytes()), &truth);
    for prefix in ["/registry/secrets/", "/registry/secrets/ns1/", "/registry/nothing/"] {
        assert_eq!(live_of(&snapshot, prefix.as_bytes()).unwrap().0.len() as u64, store.count(prefix.as_bytes()).await);
    }
    // The generator says what the readers of these tests must find: counted again, from what etcd has.
    assert_eq!(recount(&truth), expected.groups);
    assert_eq!(expected.objects(|_, _| true), expected.live);
    let huge = truth.iter().find(|kv| kv.key == objects::HUGE_KEY).unwrap();
    assert!(huge.value.len() > objects::HUGE);
    assert!(truth.iter().any(|kv| kv.key == objects::ODD_KEY));

    // In a process of its own, so that its memory is the reader's.
    let measured = measure(&file);
    println!("{TEST}: filled in {filled:.1?}, file of {} bytes; {measured}", fs::metadata(&file).unwrap().len());
    // The reader's own share is 4 MB of keys, the largest page of 1.4 MB and a buffer; the test binary has 20 MB by itself.
    assert!(measured.peak_kib < 40_000, "{measured}");
    assert_eq!(measured.live, expected.live);

    let mut altered = fs::read(&file).unwrap();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(&file, &altered).unwrap();
    assert!(matches!(open(&file, Unhashed::Accept), Err(SnapshotError::HashMismatch)));
}

/// The same groups as the generator's, made from the values.
fn recount(truth: &[Stored]) -> BTreeMap<(&'static str, Kind), Group> {
    let mut groups = BTreeMap::<_, Group>::new();
    let mut deks = BTreeSet::new();
    for Stored { key, value, .. } in truth {
        let resource = ["secrets", "configmaps", "events", "example.com/widgets"]
            .into_iter()
            .find(|resource| key.starts_with(format!("/registry/{resource}/").as_bytes()));
        let kind = kind_of(key, value);
        let group = groups.entry((resource.unwrap(), kind.clone())).or_default();
        group.objects += 1;
        group.bytes += value.len() as u64;
        if matches!(kind, Kind::KmsV2 { .. }) {
            let (_, object) = stored::decode(value).unwrap();
            let source = (object.encrypted_dek_source, object.annotations, resource, kind);
            group.dek_sources += u64::from(deks.insert(source));
        }
    }
    groups
}

fn kind_of(key: &[u8], value: &[u8]) -> Kind {
    let others = ["kms:v1:old:name", "aescbc:v1:key1", "aesgcm:v1:key1", "secretbox:v1:key1"];
    match stored::decode(value) {
        Ok((provider, object)) => Kind::KmsV2 {
            provider: ["primary", "elsewhere"].into_iter().find(|name| *name == provider).unwrap(),
            key_id: [NEW, OLD, FOREIGN].into_iter().find(|id| *id == object.key_id).unwrap(),
            dek_type: object.encrypted_dek_source_type,
        },
        Err(stored::NotStored::Message) if key.ends_with(b"/corrupt") => Kind::Corrupt,
        Err(stored::NotStored::Message) => Kind::CutShort,
        Err(_) if value.starts_with(b"k8s\0") => Kind::PlainProtobuf,
        Err(_) if value.starts_with(b"{") => Kind::PlainJson,
        Err(_) => {
            let starts = |name: &&str| value.starts_with(format!("k8s:enc:{name}:").as_bytes());
            Kind::Other(others.into_iter().find(starts).unwrap())
        }
    }
}

struct Measured {
    live: u64,
    opened: Duration,
    read: Duration,
    peak_kib: u64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { live, opened, read, peak_kib } = self;
        write!(f, "{live} live keys, hash {opened:.2?}, walk {read:.2?}, peak RSS {peak_kib} KiB")
    }
}

/// What the child below wrote.
fn measure(file: &Path) -> Measured {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "snapshot::real::child_that_reads_a_snapshot", "--ignored", "--nocapture"]);
    let ran = child.env(CHILD, file).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let numbers = said.lines().find_map(|line| line.split_once("MEASURED ")).unwrap_or_else(|| panic!("{said}")).1;
    let numbers: Vec<u64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
    let [live, opened, read, peak_kib] = numbers[..] else { panic!("{said}") };
    Measured { live, opened: Duration::from_micros(opened), read: Duration::from_micros(read), peak_kib }
}

const CHILD: &str = "KUBE_KMS_TEST_SNAPSHOT";

/// Not a test: what [`measure`] runs in a process of its own.
#[test]
#[ignore = "run by another test in a process of its own"]
fn child_that_reads_a_snapshot() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let began = Instant::now();
    let snapshot = open(Path::new(&file), Unhashed::Refuse).unwrap();
    let opened = began.elapsed();
    let summary = snapshot.records(objects::PREFIX.as_bytes(), |_| ControlFlow::Continue(()), |_| {}).unwrap();
    let read = began.elapsed() - opened;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.trim().trim_end_matches(" kB");
    println!("\nMEASURED {} {} {} {peak}", summary.live, opened.as_micros(), read.as_micros());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_of_a_stopped_member_is_read_when_that_is_allowed() {
    let test = "the_database_of_a_stopped_member_is_read_when_that_is_allowed";
    let dir = tempdir().unwrap();
    let mut store = or_skip!(test, EtcdStore::start(dir.path(), &[]).await);
    let expected = objects::fill(&store, 1_000).await;
    let truth = store.range(objects::PREFIX.as_bytes()).await;
    let database = store.stop();
    assert!(matches!(open(&database, Unhashed::Refuse), Err(SnapshotError::HashMissing)));
    let snapshot = open(&database, Unhashed::Accept).unwrap();
    assert_eq!(snapshot.integrity(), Integrity::Missing);
    assert_eq!(live_of(&snapshot, b"").unwrap().1.live, expected.live);
    assert_same(&found(&snapshot, objects::PREFIX.as_bytes()), &truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_store_has_no_keys() {
    let dir = tempdir().unwrap();
    let store = or_skip!("an_empty_store_has_no_keys", EtcdStore::start(dir.path(), &[]).await);
    let file = dir.path().join("snapshot.db");
    or_skip!("an_empty_store_has_no_keys", store.snapshot(&file));
    let snapshot = open(&file, Unhashed::Refuse).unwrap();
    let (live, summary) = live_of(&snapshot, b"").unwrap();
    assert!(live.is_empty() && summary.is_complete);
    assert_eq!(snapshot.facts().revision, store.revision().await);
    assert_eq!(summary.superseded + summary.deleted + summary.markers, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_in_the_middle_of_a_compaction_has_the_same_live_keys() {
    const TEST: &str = "a_snapshot_in_the_middle_of_a_compaction_has_the_same_live_keys";
    let dir = tempdir().unwrap();
    // Ten entries, then a pause of at least 10 ms: seconds for what is in here.
    let new = or_skip!(TEST, has_flag("--compaction-batch-limit"));
    let slow = if new { "--compaction-batch-limit=10" } else { "--experimental-compaction-batch-limit=10" };
    let store = or_skip!(TEST, EtcdStore::start(dir.path(), &[slow]).await);
    let expected = objects::fill(&store, 5_000).await;
    let truth = store.range(b"/").await;
    store.compact(store.revision().await, false).await;
    let mut between = 0;
    let mut seen = Vec::new();
    let began = Instant::now();
    loop {
        let file = dir.path().join(format!("snapshot{}.db", seen.len()));
        or_skip!(TEST, store.snapshot(&file));
        let snapshot = open(&file, Unhashed::Refuse).unwrap();
        let (_, summary) = live_of(&snapshot, b"/").unwrap();
        assert_eq!(summary.live, expected.live);
        assert_same(&found(&snapshot, b"/"), &truth);
        assert_eq!(snapshot.facts().revision, store.revision().await);
        let leftovers = summary.superseded + summary.deleted;
        between += usize::from(snapshot.facts().is_compacting() && leftovers > 0);
        seen.push(leftovers);
        if !snapshot.facts().is_compacting() {
            // Newer etcds keep a deletion at the very revision of the compaction, which is the last write here.
            assert!(summary.superseded == 0 && (new || summary.deleted == 0), "{summary:?}");
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the compaction does not end: {seen:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    println!("{TEST}: entries that are no live key, from snapshot to snapshot: {seen:?}");
    assert!(between >= 2 && seen[0] > seen[between - 1], "no snapshot fell into the compaction: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_to_a_real_snapshot_makes_the_reader_panic_or_hang() {
    let test = "no_damage_to_a_real_snapshot_makes_the_reader_panic_or_hang";
    let dir = tempdir().unwrap();
    let store = or_skip!(test, EtcdStore::start(dir.path(), &[]).await);
    for i in 0..60 {
        store.put([(format!("/registry/secrets/s{}", i % 40).into_bytes(), vec![b'v'; 200 + i * 20])]).await;
    }
    store.delete((0..5).map(|i| format!("/registry/secrets/s{i}").into_bytes())).await;
    let file = dir.path().join("snapshot.db");
    or_skip!(test, store.snapshot(&file));
    drop(store);
    let mut sound = fs::read(&file).unwrap();
    sound.truncate(sound.len() - 32);
    let whole = super::read(&sound).unwrap().0.len();
    assert_eq!(whole, 35);
    let damage = proptest::collection::vec((any::<u32>(), any::<u8>(), prop_oneof![0_u64..40, any::<u64>()]), 1..16);
    let mut runner = TestRunner::new(Config { cases: 800, failure_persistence: None, ..Config::default() });
    let (refused, read) = (Cell::new(0_u32), Cell::new(0_u32));
    let ran = runner.run(&damage, |damage| {
        let began = Instant::now();
        match super::read(&damaged(&sound, &damage)) {
            Ok(_) => read.set(read.get() + 1),
            Err(_) => refused.set(refused.get() + 1),
        }
        prop_assert!(began.elapsed() < Duration::from_secs(10));
        Ok(())
    });
    ran.unwrap();
    let (refused, read) = (refused.get(), read.get());
    println!("{test}: {} bytes; {refused} refused, {read} read", sound.len());
    assert!(refused > 100 && read > 20, "the damage is not where it matters: {refused} refused, {read} read");
}
