//! The cipher: the floors, `Dek::seal` and `Dek::open` by size, and what the bare cipher would cost beyond the limit.

use crate::fixture;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use criterion::{Criterion, Throughput};
use kube_kms_core::annotation::AdditionalData;
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::envelope::Envelope;
use kube_kms_core::limit::PLAINTEXT_MAX;
use kube_kms_core::port::Entropy;
use kube_kms_os::OsEntropy;
use std::hint::black_box;

/// A seed has 32; Encrypt takes at most 995, so that its answer stays within kube-apiserver's 1 kB.
const SIZES: [usize; 5] = [16, 32, 64, 256, PLAINTEXT_MAX];
/// Refused by the plugin; the cipher alone.
const LARGER: [usize; 3] = [1024, 4096, 16_384];

pub(crate) fn floors(c: &mut Criterion) {
    let mut group = c.benchmark_group("floor");
    let cipher = Aes256Gcm::new(&[7; 32].into());
    group.bench_function("aes-256-gcm seal 32 B", |b| {
        let (plaintext, mut out) = ([1_u8; 32], [0_u8; 32]);
        b.iter(|| {
            let buffer = InOutBuf::new(black_box(&plaintext), &mut out).unwrap();
            cipher.encrypt_inout_detached(&[3; 12].into(), &[5; 32], buffer).unwrap()
        });
    });
    group.bench_function("aes-256-gcm open 32 B", |b| {
        let (plaintext, mut sealed, mut out) = ([1_u8; 32], [0_u8; 32], [0_u8; 32]);
        let buffer = InOutBuf::new(&plaintext, &mut sealed).unwrap();
        let tag = cipher.encrypt_inout_detached(&[3; 12].into(), &[5; 32], buffer).unwrap();
        b.iter(|| {
            let buffer = InOutBuf::new(black_box(&sealed), &mut out).unwrap();
            cipher.decrypt_inout_detached(&[3; 12].into(), &[5; 32], buffer, &tag).unwrap();
        });
    });
    group.bench_function("getrandom 12 B", |b| {
        let mut nonce = [0_u8; 12];
        b.iter(|| OsEntropy.fill(black_box(&mut nonce)).unwrap());
    });
    group.finish();
}

pub(crate) fn larger(c: &mut Criterion) {
    let mut group = c.benchmark_group("bare cipher");
    let cipher = Aes256Gcm::new(&[7; 32].into());
    for size in LARGER {
        let (plaintext, mut out) = (vec![1_u8; size], vec![0_u8; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("aes-256-gcm seal {size} B"), |b| {
            b.iter(|| {
                let buffer = InOutBuf::new(black_box(&plaintext), &mut out).unwrap();
                cipher.encrypt_inout_detached(&[3; 12].into(), &[5; 32], buffer).unwrap()
            });
        });
    }
    group.finish();
}

pub(crate) fn seal_and_open(c: &mut Criterion) {
    let dek = Dek::new(&DekBytes::generate(&OsEntropy).unwrap()).unwrap();
    let aad = AdditionalData::bind(&fixture::key_id(), fixture::annotations(0).all());
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
