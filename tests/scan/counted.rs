//! Every object in its group, and none twice.

use super::{assert_exit, etcd, json, scan};
use crate::support::etcd_store::objects::{self, Expected, Kind};
use crate::support::site::KMSCTL;
use serde_json::Value;
use std::process::Stdio;
use std::time::Instant;

const OBJECTS: usize = 100_000;

/// As the report names a directory.
fn resource(directory: &str) -> String {
    directory.split_once('/').map_or_else(|| directory.to_owned(), |(group, plural)| format!("{plural}.{group}"))
}

fn sum(list: &Value, field: &str, holds: impl Fn(&Value) -> bool) -> u64 {
    list.as_array().unwrap().iter().filter(|item| holds(item)).map(|item| item[field].as_u64().unwrap()).sum()
}

fn assert_counts(report: &Value, expected: &Expected) {
    assert_eq!(report["all"]["objects"], expected.live);
    assert_eq!(report["all"]["bytes"], expected.groups.values().map(|g| g.bytes).sum::<u64>());
    let mut sources = 0;
    for ((directory, kind), group) in &expected.groups {
        let resource = resource(directory);
        let here = |item: &Value| item["resource"] == resource.as_str();
        let found = match kind {
            Kind::KmsV2 { dek_type: 7, .. } => {
                let reason = |item: &Value| here(item) && item["reason"] == "unknown type of DEK source";
                sum(&report["damagedGroups"], "objects", reason)
            }
            Kind::KmsV2 { provider, key_id, dek_type } => {
                sources += group.dek_sources;
                let keys = report["keys"].as_array().unwrap();
                let key = keys.iter().find(|k| k["provider"] == *provider && k["keyId"] == *key_id).unwrap();
                sum(&key["resources"], if *dek_type == 1 { "seeds" } else { "keys" }, here)
            }
            Kind::Other(name) => {
                let form = if name.starts_with("kms:v1:") { "kms-v1" } else { name.split(':').next().unwrap() };
                sum(&report["notKmsV2"], "objects", |item| here(item) && item["form"] == form)
            }
            Kind::PlainProtobuf => sum(&report["notKmsV2"], "objects", |item| here(item) && item["form"] == "protobuf"),
            Kind::PlainJson => sum(&report["notKmsV2"], "objects", |item| here(item) && item["form"] == "json"),
            Kind::Corrupt => {
                sum(&report["damagedGroups"], "objects", |i| here(i) && i["reason"] == "not an EncryptedObject")
            }
            Kind::CutShort => sum(&report["damagedGroups"], "objects", |i| here(i) && i["reason"] == "cut short"),
        };
        assert_eq!(found, group.objects, "{directory} {kind:?}: {report:#}");
    }
    let by_resource: u64 = report["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| sum(&key["resources"], "wrappedDekSources", |_| true))
        .sum();
    assert_eq!(by_resource, sources);
    let parts = ["kmsV2", "clear", "otherEncryption", "damaged"].map(|part| report[part]["objects"].as_u64().unwrap());
    assert_eq!(parts.iter().sum::<u64>(), expected.live, "{parts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_objects_are_counted_to_the_last_one_in_seconds() {
    let Some((site, store)) = etcd("scan::a_hundred_thousand_objects").await else { return };
    let expected = objects::fill(&store, OBJECTS).await;
    let began = Instant::now();
    let arguments = ["scan", "--endpoints", store.url(), "--output", "json"];
    let mut child = site.process(KMSCTL, &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut rss = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let high = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
        rss = rss.max(high.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0));
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let took = began.elapsed();
    let output = child.wait_with_output().unwrap();
    assert_exit(&output, 0, &[]);
    eprintln!("scan of {OBJECTS} objects: {took:?}, peak RSS {} MiB, a debug build", rss / 1024);
    let report = json(&output);
    assert_counts(&report, &expected);
    assert!(took.as_secs() < 60, "{took:?}");
    // A page or two, the binary, and the distinct DEK sources; the values together have more than 40 MB.
    assert!(rss < 150 * 1024, "{rss} KiB");
    assert_eq!(report["source"]["kind"], "etcd");
    let revisions = (report["source"]["firstRevision"].clone(), report["source"]["lastRevision"].clone());
    assert_eq!(revisions.0, revisions.1);
    assert_eq!(report["source"]["restarts"], serde_json::json!([]));

    // Only one resource is only that one.
    let secrets = json(&scan(&site, store.url(), &["--resource", "secrets", "--output", "json"]));
    assert_eq!(secrets["all"]["objects"], expected.objects(|resource, _| resource == "secrets"));
    let two = ["--resource", "widgets.example.com", "--resource", "configmaps", "--serializable", "--output", "json"];
    let two = json(&scan(&site, store.url(), &two));
    let both = expected.objects(|resource, _| ["configmaps", "example.com/widgets"].contains(&resource));
    assert_eq!(two["all"]["objects"], both);
}
