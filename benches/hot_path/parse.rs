//! What is parsed at a start (the configuration) and by a scan (stored values, counted).

use crate::fixture;
use criterion::{Criterion, Throughput};
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptedObject;
use kube_kms_etcd::record::Record;
use kube_kms_etcd::tally::Tally;
use kube_kms_etcd::value::Value;
use std::hint::black_box;

/// Bytes of a Secret as kube-apiserver encrypts it.
const OBJECT_LEN: usize = 1024;
const OBJECTS: usize = 1000;

pub(crate) fn configuration(c: &mut Criterion) {
    let mut group = c.benchmark_group("configuration");
    for (name, text) in [
        ("parse deploy/config/aws.yaml", include_str!("../../deploy/config/aws.yaml")),
        ("parse deploy/config/quickstart.yaml", include_str!("../../deploy/config/quickstart.yaml")),
    ] {
        let text = text.replace("@DIR@", "/var/lib/kube-kms");
        kube_kms_config::parse(&text).unwrap();
        group.bench_function(name, |b| b.iter(|| kube_kms_config::parse(black_box(&text)).unwrap()));
    }
    group.finish();
}

/// What kube-apiserver stores for one object under the `n`th wrapped DEK.
fn value(n: usize) -> Vec<u8> {
    let object = EncryptedObject {
        encrypted_data: vec![5; OBJECT_LEN],
        key_id: fixture::key_id().as_str().to_owned(),
        encrypted_dek_source: vec![6; 61],
        annotations: fixture::annotations(n).all().clone().into_iter().collect(),
        encrypted_dek_source_type: 1,
    };
    stored::encode("kube-kms", &object)
}

pub(crate) fn stored_values(c: &mut Criterion) {
    let mut group = c.benchmark_group("stored value");
    let one = value(0);
    assert!(matches!(Value::parse(&one), Value::KmsV2(_)));
    group.throughput(Throughput::Bytes(one.len() as u64));
    group.bench_function("decode, 1 KiB object", |b| b.iter(|| stored::decode(black_box(&one)).unwrap()));
    group.bench_function("classify, 1 KiB object", |b| b.iter(|| Value::parse(black_box(&one))));
    // Ten wrapped DEKs in a thousand objects: a few starts of three API servers.
    let all: Vec<_> =
        (0..OBJECTS).map(|n| (format!("/registry/secrets/team-{}/token-{n}", n % 50), value(n % 10))).collect();
    group.throughput(Throughput::Elements(OBJECTS as u64));
    group.bench_function(format!("scan of {OBJECTS} objects"), |b| {
        b.iter(|| {
            let mut tally = Tally::new(b"/registry");
            for (key, value) in &all {
                tally.add(&Record { key: key.as_bytes(), value, mod_revision: 7, create_revision: 3 });
            }
            assert_eq!(tally.distinct_sources().number, 10);
            tally
        });
    });
    group.finish();
}
