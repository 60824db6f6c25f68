//! Finding a DEK: by how many there are, and by how many look at once.

use crate::fixture;
use criterion::Criterion;
use kube_kms_core::annotation::Annotations;
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::port::Moment;
use kube_kms_os::OsEntropy;
use kube_kms_service::keyring::{Found, Keyring};
use kube_kms_service::observer::Unobserved;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZES: [usize; 3] = [1, 100, 4096];
const TASKS: usize = 64;

/// A keyring with so many names in it. One DEK stands for all: what is measured is the look-up.
fn keyring(size: usize) -> (Arc<Keyring>, Arc<Vec<Annotations>>) {
    let keyring = Keyring::new(size, Duration::from_secs(3600), Arc::new(Unobserved));
    let dek = Arc::new(Dek::new(&DekBytes::generate(&OsEntropy).unwrap()).unwrap());
    let names: Vec<_> = (0..size).map(fixture::annotations).collect();
    for name in &names {
        keyring.insert(name, Arc::clone(&dek), Moment(0));
    }
    (Arc::new(keyring), Arc::new(names))
}

fn find(keyring: &Keyring, names: &[Annotations], n: usize) {
    // A step that is coprime to every size, so that neighbours in time are none in memory.
    let name = &names[n.wrapping_mul(1_000_003) % names.len()];
    assert!(matches!(black_box(keyring.find(name, Moment(1))), Found::Fresh(_)));
}

pub(crate) fn look_ups(c: &mut Criterion) {
    let mut group = c.benchmark_group("keyring");
    for size in SIZES {
        let (keyring, names) = keyring(size);
        let mut n = 0_usize;
        group.bench_function(format!("find 1 of {size}"), |b| {
            b.iter(|| {
                n = n.wrapping_add(1);
                find(&keyring, &names, n);
            });
        });
    }
    let (keyring, names) = keyring(4096);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    group.bench_function(format!("find 1 of 4096, {TASKS} tasks on 2 threads"), |b| {
        b.iter_custom(|looks| {
            let each = looks.div_ceil(TASKS as u64) as usize;
            let began = Instant::now();
            runtime.block_on(async {
                let tasks: Vec<_> = (0..TASKS)
                    .map(|task| {
                        let (keyring, names) = (Arc::clone(&keyring), Arc::clone(&names));
                        tokio::spawn(async move {
                            for n in 0..each {
                                find(&keyring, &names, task * each + n);
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
            });
            began.elapsed()
        });
    });
    group.finish();
}
