//! What is derived once for a write state or a keyring entry, and on a request only when it is unlike the one before.

use crate::fixture;
use criterion::Criterion;
use kube_kms_core::annotation::AdditionalData;
use kube_kms_core::key_id::KeyId;
use std::hint::black_box;

pub(crate) fn derivations(c: &mut Criterion) {
    let mut group = c.benchmark_group("identity");
    let (key_id, annotations) = (fixture::key_id(), fixture::annotations(0));
    group.bench_function("additional data", |b| b.iter(|| AdditionalData::bind(black_box(&key_id), annotations.all())));
    let version = fixture::version();
    group.bench_function("key_id", |b| b.iter(|| KeyId::derive(black_box(&version), 0)));
    group.finish();
}
