//! Status, Encrypt and Decrypt as gRPC calls them, without gRPC.

use crate::fixture::plugin;
use criterion::{BatchSize, Criterion};
use kube_kms_core::uid::Uid;
use kube_kms_kek_local::operation;
use kube_kms_os::{OsEntropy, wall_clock};
use kube_kms_service::decrypt::{DecryptInput, DekSource};
use std::hint::black_box;
use std::time::Duration;

pub(crate) fn use_cases(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keyring = dir.path().join("keyring.json");
    operation::init(&keyring, wall_clock(), &OsEntropy).unwrap();
    let first = runtime.block_on(plugin(&keyring));
    let own = first.encrypt(&[1; 32]).unwrap();
    // Sealed by another replica: opens from the keyring and not from the write state.
    let foreign = runtime.block_on(plugin(&keyring)).encrypt(&[1; 32]).unwrap();
    let mut group = c.benchmark_group("use case");
    group.bench_function("Status", |b| b.iter(|| first.status().unwrap()));
    group.bench_function("Encrypt 32 B", |b| b.iter(|| first.encrypt(black_box(&[1; 32])).unwrap()));
    let both = [("write state", &own, DekSource::WriteState), ("keyring", &foreign, DekSource::Keyring)];
    for (name, sealed, source) in both {
        let uid = Uid::parse("8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234");
        let decrypt = |(key_id, annotations)| {
            let ciphertext = black_box(&sealed.ciphertext);
            let input = DecryptInput { ciphertext, key_id, annotations, uid: &uid, patience: Duration::from_secs(3) };
            runtime.block_on(first.decrypt(input)).unwrap()
        };
        let request = || (sealed.write.key_id().as_str().to_owned(), sealed.write.annotations().all().clone());
        decrypt(request());
        assert_eq!(decrypt(request()).source, source);
        group.bench_function(format!("Decrypt 32 B, {name}"), |b| {
            b.iter_batched(request, decrypt, BatchSize::SmallInput);
        });
    }
    group.finish();
}
