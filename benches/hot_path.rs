//! What one request costs without gRPC: the cipher, the use cases, the keyring, and the floors under them.
//!
//! `make bench` runs it. The floors (a bare AES-GCM call, a bare getrandom) are measured in the same run, so that a figure
//! can be judged on any machine: see benches/README.md.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kube_kms::core::annotation::{AdditionalData, Annotations, WrappedDek};
use kube_kms::core::context::WrapContext;
use kube_kms::core::dek::{Dek, DekBytes};
use kube_kms::core::envelope::Envelope;
use kube_kms::core::health::{OnDenied, Policy};
use kube_kms::core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms::core::key_id::KeyId;
use kube_kms::core::port::Entropy;
use kube_kms::core::uid::Uid;
use kube_kms::kek::local::{LocalKek, operation};
use kube_kms::os::{MonotonicClock, OsEntropy, wall_clock};
use kube_kms::service::decrypt::DecryptInput;
use kube_kms::service::kek_set::{KekEntry, KekSet};
use kube_kms::service::observer::Unobserved;
use kube_kms::service::plugin::{Parts, Plugin};
use kube_kms::service::settings::Settings;
use kube_kms::service::state_file::{Remembered, StateFile};
use kube_kms::service::supervisor::Supervisor;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const SIZES: [usize; 4] = [16, 32, 256, 995];

fn key_id() -> KeyId {
    let kek =
        KekRef::new(KekKind::AWS, "arn:aws:kms:eu-central-1:111122223333:key/0d1f6a52-5c3e-4f0a-9d2e-1b2c3d4e5f60");
    KeyId::derive(&KekVersion { kek: kek.unwrap(), version: "a1".repeat(32) }, 0)
}

fn annotations() -> Annotations {
    let kek =
        KekRef::new(KekKind::AWS, "arn:aws:kms:eu-central-1:111122223333:key/0d1f6a52-5c3e-4f0a-9d2e-1b2c3d4e5f60");
    Annotations::new(&kek.unwrap(), &WrappedDek::parse(vec![7; 184]).unwrap())
}

fn floors(c: &mut Criterion) {
    let mut group = c.benchmark_group("floor");
    let cipher = Aes256Gcm::new(&[7; 32].into());
    group.bench_function("aes-256-gcm, 32 B, 32 B of additional data", |b| {
        let (plaintext, mut out) = ([1_u8; 32], [0_u8; 32]);
        b.iter(|| {
            let buffer = InOutBuf::new(black_box(&plaintext), &mut out).unwrap();
            cipher.encrypt_inout_detached(&[3; 12].into(), &[5; 32], buffer).unwrap()
        });
    });
    group.bench_function("getrandom, 12 B", |b| {
        let mut nonce = [0_u8; 12];
        b.iter(|| OsEntropy.fill(black_box(&mut nonce)).unwrap());
    });
    group.finish();
}

fn cipher(c: &mut Criterion) {
    let dek = Dek::new(&DekBytes::generate(&OsEntropy).unwrap()).unwrap();
    let aad = AdditionalData::bind(&key_id(), annotations().all());
    let mut group = c.benchmark_group("cipher");
    for size in SIZES {
        let plaintext = vec![1_u8; size];
        group.bench_function(format!("seal {size} B"), |b| {
            b.iter(|| dek.seal(&OsEntropy, &aad, black_box(&plaintext)).unwrap())
        });
        let sealed = dek.seal(&OsEntropy, &aad, &plaintext).unwrap();
        group.bench_function(format!("open {size} B"), |b| {
            b.iter(|| dek.open(Envelope::parse(black_box(&sealed)).unwrap(), &aad).unwrap());
        });
    }
    group.finish();
}

fn identity(c: &mut Criterion) {
    let mut group = c.benchmark_group("identity");
    let (key_id, annotations) = (key_id(), annotations());
    group.bench_function("additional data", |b| b.iter(|| AdditionalData::bind(black_box(&key_id), annotations.all())));
    let version = KekVersion { kek: annotations.kek().clone(), version: "a1".repeat(32) };
    group.bench_function("key_id", |b| b.iter(|| KeyId::derive(black_box(&version), 0)));
    group.finish();
}

/// A plugin on this keyring file, with a write state.
async fn plugin(keyring: &Path) -> Arc<Plugin> {
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let kek = Arc::new(LocalKek::new(keyring.to_owned(), Arc::clone(&entropy)));
    let settings = Settings {
        epoch: 0,
        dek_max_age: Duration::from_secs(86_400),
        dek_max_uses: 1 << 32,
        cache_capacity: 4096,
        cache_ttl: Duration::from_secs(3600),
        probe_interval: Duration::from_secs(3600),
        probe_timeout: Duration::from_secs(2),
        observations: 2,
        policy: Policy {
            grace: Duration::from_secs(3600),
            on_denied: OnDenied::Coast,
            stop_after: None,
            confirmations: 2,
        },
    };
    let parts = Parts {
        keks: KekSet::new(KekEntry { kek, context: WrapContext::new(BTreeMap::new()) }, Vec::new()),
        settings,
        clock: Arc::new(MonotonicClock::new()),
        entropy,
        observer: Arc::new(Unobserved),
    };
    let plugin = Arc::new(Plugin::new(parts, None));
    let (keep, reloads) = mpsc::channel(1);
    let supervisor =
        Supervisor::new(Arc::clone(&plugin), StateFile::new(&keyring.with_extension("state")), Remembered::default());
    tokio::spawn(async move {
        let _keep = keep;
        supervisor.run(reloads).await;
    });
    while plugin.published().write.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    plugin
}

fn use_cases(c: &mut Criterion) {
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
    for (name, sealed) in [("Decrypt 32 B, write state", &own), ("Decrypt 32 B, keyring", &foreign)] {
        let uid = Uid::parse("8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234");
        let decrypt = |(key_id, annotations)| {
            let ciphertext = black_box(&sealed.ciphertext);
            let input = DecryptInput { ciphertext, key_id, annotations, uid: &uid, patience: Duration::from_secs(3) };
            runtime.block_on(first.decrypt(input)).unwrap()
        };
        let request = || (sealed.write.key_id().as_str().to_owned(), sealed.write.annotations().all().clone());
        decrypt(request());
        group.bench_function(name, |b| b.iter_batched(request, decrypt, BatchSize::SmallInput));
    }
    group.finish();
}

criterion_group!(benches, floors, cipher, identity, use_cases);
criterion_main!(benches);
