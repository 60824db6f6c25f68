//! Known records in, known counts out.

use super::*;
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptedObject;
use std::collections::BTreeMap;

fn object(key_id: &str, source: &[u8], kind: i32) -> Vec<u8> {
    let object = EncryptedObject {
        encrypted_data: vec![7; 100],
        key_id: key_id.to_owned(),
        encrypted_dek_source: source.to_vec(),
        annotations: BTreeMap::from([("kek.kube-kms".to_owned(), b"local:one".to_vec())]),
        encrypted_dek_source_type: kind,
    };
    stored::encode("demo", &object)
}

fn record<'a>(key: &'a [u8], value: &'a [u8], mod_revision: i64) -> Record<'a> {
    Record { key, value, mod_revision, create_revision: 1 }
}

fn mixed() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut put = |key: &str, value: Vec<u8>| all.push((format!("/registry/{key}").into_bytes(), value));
    put("secrets/a/1", object("old", b"s1", 1));
    put("secrets/a/2", object("old", b"s1", 1));
    put("secrets/a/3", object("old", b"s2", 0));
    put("secrets/a/4", object("new", b"s3", 1));
    put("configmaps/a/1", object("new", b"s3", 1));
    put("configmaps/a/2", b"k8s\0plain".to_vec());
    put("configmaps/a/3", b"k8s:enc:aescbc:v1:key1:xx".to_vec());
    put("configmaps/a/4", object("new", b"s3", 9));
    put("example.com/widgets/a/1", b"{}".to_vec());
    put("masterleases/10.0.0.1", b"k8s\0lease".to_vec());
    all
}

fn tally(records: &[(Vec<u8>, Vec<u8>)]) -> Tally {
    let mut tally = Tally::new(b"/registry");
    for ((key, value), revision) in records.iter().zip(10..) {
        tally.add(&record(key, value, revision));
    }
    tally
}

fn assert_mixed(tally: &Tally) {
    assert_eq!((tally.all().objects, tally.all().oldest, tally.all().newest), (10, 10, 19));
    let groups: Vec<_> = tally
        .groups()
        .into_iter()
        .map(|g| (g.resource.clone(), g.key_id.clone(), g.extent.objects, g.seeds, g.keys, g.distinct_sources()))
        .collect();
    let of = |r: &str, k: &str, o, s, t, d| (r.to_owned(), k.to_owned(), o, s, t, d);
    assert_eq!(
        groups,
        [of("configmaps", "new", 1, 1, 0, 1), of("secrets", "new", 1, 1, 0, 1), of("secrets", "old", 3, 2, 1, 2)]
    );
    assert_eq!(tally.groups()[2].extent.oldest..=tally.groups()[2].extent.newest, 10..=12);
    assert_eq!(tally.groups()[0].kek.as_deref(), Some("local:one"));
    // s3 is in two resources and is one Decrypt.
    assert_eq!(tally.distinct_sources(), Count { number: 3, exact: true });
    let others: Vec<_> = tally
        .others()
        .into_iter()
        .map(|g| (g.form, g.resource.as_str(), g.name.as_str(), g.extent.objects, g.clear, g.never_encrypted))
        .collect();
    assert_eq!(
        others,
        [
            ("aescbc", "configmaps", "key1", 1, false, false),
            ("json", "widgets.example.com", "", 1, true, false),
            ("protobuf", "configmaps", "", 1, true, false),
            ("protobuf", "masterleases", "", 1, true, true),
        ]
    );
    assert_eq!(tally.damaged().len(), 1);
    assert_eq!(tally.damaged()[0].damage, Damage::DekSourceType);
    assert_eq!(tally.damaged()[0].examples, ["/registry/configmaps/a/4"]);
}

#[test]
fn every_record_is_counted_in_its_group() {
    assert_mixed(&tally(&mixed()));
}

#[test]
fn parts_put_together_are_the_whole() {
    let records = mixed();
    for at in 0..records.len() {
        let (first, second) = records.split_at(at);
        let mut all = tally(first);
        let mut rest = Tally::new(b"/registry");
        for ((key, value), revision) in second.iter().zip(10 + i64::try_from(at).unwrap()..) {
            rest.add(&record(key, value, revision));
        }
        all.merge(rest);
        assert_mixed(&all);
    }
}

#[test]
fn too_many_groups_are_counted_and_not_kept() {
    let mut tally = Tally::new(b"/registry");
    for n in 0..GROUPS_MAX + 5 {
        let value = object(&format!("key-{n}"), b"s", 1);
        tally.add(&record(b"/registry/secrets/a/1", &value, 1));
    }
    assert_eq!((tally.groups().len(), tally.ungrouped()), (GROUPS_MAX, 5));
    assert_eq!(tally.all().objects, 10_005);
    assert!(!tally.distinct_sources().exact);
}

#[test]
fn examples_are_three_and_escaped() {
    let mut tally = Tally::new(b"/registry");
    for n in 0..10_u8 {
        tally.add(&record(&[b"/registry/pods/\xff", [n].as_slice()].concat(), b"k8s\0", 1));
    }
    assert_eq!(
        tally.others()[0].examples,
        ["/registry/pods/\\xff\\x00", "/registry/pods/\\xff\\x01", "/registry/pods/\\xff\\x02"]
    );
}
