//! Item 79: kill -9 loses nothing that was ever returned.

use crate::support::site::{Site, seed, uid};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::{KmsClient, Target};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RESTARTS: usize = 12;
const WRITERS: usize = 4;
/// Each process is killed when it has returned this many.
const EACH: usize = 25;

type Values = Arc<Mutex<Vec<(Vec<u8>, EncryptResponse)>>>;

/// Encrypts for ever, and opens old values between, over whatever connection there is.
async fn load(target: Target, values: Values, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = KmsClient::connect(target.clone(), Duration::from_secs(3)).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let seed = seed();
            let Ok(answer) = client.encrypt(seed.clone(), uid()).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                break;
            };
            let old = {
                let mut values = values.lock().unwrap();
                values.push((seed, answer));
                values[values.len() / 2].clone()
            };
            // The process may die under it; a wrong answer it may never give.
            match client.decrypt(old.1, uid()).await {
                Ok(opened) => assert!(opened.plaintext == old.0, "other bytes"),
                Err(_) => break,
            }
        }
    }
}

async fn nothing_is_lost(site: Site) {
    let values = Values::default();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(load(Target::File(site.socket()), Arc::clone(&values), Arc::clone(&stop))))
        .collect();
    let mut key_ids = std::collections::BTreeSet::new();
    for _ in 0..RESTARTS {
        let running = site.start().await;
        let enough = values.lock().unwrap().len() + EACH;
        running.until("enough values", || values.lock().unwrap().len() >= enough).await;
        running.kill();
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no wrong answer");
    }
    let running = site.start().await;
    let mut client = running.client().await;
    let values = std::mem::take(&mut *values.lock().unwrap());
    assert!(values.len() >= RESTARTS * EACH);
    let began = Instant::now();
    let mut deks = std::collections::BTreeSet::new();
    for (seed, answer) in values {
        key_ids.insert(answer.key_id.clone());
        deks.insert(answer.annotations["dek.kube-kms"].clone());
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    }
    assert_eq!(key_ids.len(), 1, "a restart is no rotation");
    assert_eq!(deks.len(), RESTARTS, "every process has a data key of its own");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(running.stop().await.success());
}

#[tokio::test]
async fn item_79_after_twelve_kills_under_load_every_value_opens_on_the_local_kek() {
    nothing_is_lost(Site::local()).await;
}

#[tokio::test]
async fn item_79_after_twelve_kills_under_load_every_value_opens_on_the_aws_kek() {
    nothing_is_lost(Site::aws()).await;
}
