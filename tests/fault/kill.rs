//! kill -9 in a loop, under load, on a network that flaps, with rotations in between: nothing that was ever returned is lost,
//! the state file never goes back, and nobody hears of a key_id that no rotation made.

use super::load::Value;
use crate::support::fault_proxy::Fault;
use crate::support::hand::{bring_back, rotate, take_away};
use crate::support::site::{KekKind, Site, seed, uid};
use kms_v2_client::kms::{KmsClient, Target};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RESTARTS: usize = 21;
/// So many restarts lie between two rotations.
const ROTATE_EVERY: usize = 7;
const WRITERS: usize = 3;
/// Each process is killed when it has returned this many.
const EACH: usize = 15;

#[derive(Default)]
struct Seen {
    values: Mutex<Vec<Value>>,
    key_ids: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
}

/// Encrypts for ever over whatever connection there is, and opens old values between.
async fn load(target: Target, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let Ok(mut client) = KmsClient::connect(target.clone(), Duration::from_secs(3)).await else { continue };
        while !seen.stop.load(Ordering::Relaxed) {
            if let Ok(status) = client.status().await {
                seen.key_ids.lock().unwrap().insert(status.key_id);
            }
            let seed = seed();
            let Ok(answer) = client.encrypt(seed.clone(), uid()).await else { break };
            let old = {
                let mut values = seen.values.lock().unwrap();
                values.push((seed, answer));
                values[values.len() / 2].clone()
            };
            if let Ok(opened) = client.decrypt(old.1, uid()).await {
                assert!(opened.plaintext == old.0, "other bytes");
            }
        }
    }
}

/// key_ids of the state file, oldest first; `None` while there is no file.
fn history(site: &Site) -> Option<Vec<String>> {
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(site.state_file()).ok()?).expect("never half a file");
    let mut all: Vec<String> = serde_json::from_value(state["left"].clone()).unwrap();
    all.push(state["keyId"].as_str().unwrap().to_owned());
    Some(all)
}

/// The KMS comes and goes until `stop`: the proxy flaps, or the keyring file is moved away and back.
async fn flap(site: Arc<Site>, seen: Arc<Seen>) {
    let each = Duration::from_millis;
    if let KekKind::Aws(_) = site.kek() {
        let schedule = [
            (Fault::None, each(150)),
            (Fault::Refuse, each(60)),
            (Fault::None, each(150)),
            (Fault::ResetMidBody, each(60)),
        ];
        site.proxy().flap(&schedule);
        return;
    }
    while !seen.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(each(150)).await;
        // Only this task moves the file; rotations wait for the lock that it holds not, so they are done while it is there.
        let _here = HERE.lock().await;
        take_away(&site);
        tokio::time::sleep(each(60)).await;
        bring_back(&site);
    }
}

/// Held while the keyring file is away, and while it is rotated.
static HERE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn killed_over_and_over(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 900ms}\ndek: {maxUses: 20}");
    let site = Arc::new(site);
    let seen = Arc::new(Seen::default());
    let mut tasks: Vec<_> =
        (0..WRITERS).map(|_| tokio::spawn(load(Target::File(site.socket()), Arc::clone(&seen)))).collect();
    tasks.push(tokio::spawn(flap(Arc::clone(&site), Arc::clone(&seen))));
    let (mut rotations, mut last) = (0, Vec::new());
    let began = Instant::now();
    for restart in 1..=RESTARTS {
        let running = site.spawn();
        let enough = seen.values.lock().unwrap().len() + EACH;
        running.until("enough values", || seen.values.lock().unwrap().len() >= enough).await;
        if restart % ROTATE_EVERY == 0 && restart < RESTARTS {
            let old = running.until_ok().await;
            {
                let _here = HERE.lock().await;
                rotate(&site);
            }
            rotations += 1;
            running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != old)).await.unwrap();
        }
        running.kill();
        let now = history(&site).expect("what was reported is on disk");
        assert!(now.starts_with(&last), "the state file went back: {last:?}, {now:?}");
        last = now;
    }
    println!("{RESTARTS} kills, {rotations} rotations: {:?}", began.elapsed());
    seen.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no wrong answer");
    }
    if let KekKind::Aws(_) = site.kek() {
        site.proxy().set(Fault::None);
    }
    assert_eq!(last.len(), rotations + 1, "one key_id for each rotation: {last:?}");
    let expected: BTreeSet<_> = last.into_iter().collect();
    assert_eq!(*seen.key_ids.lock().unwrap(), expected, "what Status said");

    // A fresh replica, with nothing but the KEK.
    let replica = site.replica().without_proxy();
    let running = replica.start().await;
    let mut client = running.client().await;
    let values = std::mem::take(&mut *seen.values.lock().unwrap());
    assert!(values.len() >= RESTARTS * EACH);
    for (seed, value) in values {
        assert!(expected.contains(&value.key_id));
        assert_eq!(client.decrypt(value, uid()).await.unwrap().plaintext, seed);
    }
}

#[tokio::test]
async fn after_twenty_kills_on_a_flapping_network_every_value_opens_on_a_fresh_replica() {
    killed_over_and_over(Site::aws_behind_proxy()).await;
}

#[tokio::test]
async fn after_twenty_kills_with_a_keyring_that_comes_and_goes_every_value_opens_on_a_fresh_replica() {
    killed_over_and_over(Site::local()).await;
}
