//! `--take-over`: the path changes hands under load and nobody notices.

use crate::support::fake_kms::{ANY, Failure};
use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use crate::support::wire::{GOAWAY, Wire};
use kms_v2_client::kms::{KmsClient, Target};
use rustix::process::Signal;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Connects anew for every call, for ever.
async fn knock(target: Target, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let mut client = KmsClient::connect(target.clone(), Duration::from_secs(3)).await.expect("there is a socket");
        let (seed, answer) = sealed(&mut client).await;
        assert_eq!(client.decrypt(answer, uid()).await.expect("served").plaintext, seed);
        served.fetch_add(1, Ordering::Relaxed);
    }
}

async fn until_more(served: &AtomicUsize, running: &Running) {
    let enough = served.load(Ordering::Relaxed) + 20;
    running.until("calls on new connections", || served.load(Ordering::Relaxed) >= enough).await;
}

/// A successor that has the path.
async fn successor(site: &Site) -> Running {
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("listening").await;
    new
}

#[tokio::test]
async fn a_take_over_under_load_fails_no_call_on_a_new_connection_and_keeps_the_old_ones_until_the_old_process_ends() {
    let site = Site::local();
    let mut old = site.start().await;
    let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let knocking: Vec<_> =
        (0..3).map(|_| tokio::spawn(knock(old.target.clone(), Arc::clone(&stop), Arc::clone(&served)))).collect();
    for _ in 0..3 {
        let kept = Wire::connect(&old.target).await;
        let inode = std::fs::metadata(site.socket()).unwrap().ino();
        until_more(&served, &old).await;
        let new = successor(&site).await;
        assert_ne!(std::fs::metadata(site.socket()).unwrap().ino(), inode, "the path is the successor's");
        until_more(&served, &new).await;
        kept.status_is_ok().await;
        assert!(!kept.saw(GOAWAY), "the old process goes when it is told, not before");
        assert!(old.stop().await.success());
        assert!(kept.saw(GOAWAY));
        // INVARIANT: the old one took away what was its own, and that is nothing.
        assert!(site.socket().exists());
        until_more(&served, &new).await;
        old = new;
    }
    stop.store(true, Ordering::Relaxed);
    for knocker in knocking {
        knocker.await.expect("no call failed");
    }
    assert!(old.stop().await.success());
    assert!(!site.socket().exists(), "the last one takes its own away");
}

#[tokio::test]
async fn take_over_without_anybody_to_displace_is_an_ordinary_start() {
    let site = Site::local();
    let running = site.spawn_with(&["--take-over"]);
    running.until_ok().await;
    assert!(running.stop().await.success());
    assert!(!site.socket().exists());
}

#[tokio::test]
async fn what_is_not_a_socket_is_never_deleted_not_even_by_a_take_over() {
    let site = Site::local();
    std::fs::write(site.socket(), "somebody's notes").unwrap();
    for arguments in [&[][..], &["--take-over"]] {
        let mut running = site.spawn_with(arguments);
        assert_eq!(running.wait().await.code(), Some(5));
        assert!(running.log().contains("exists and is not a socket"), "{}", running.log());
        assert_eq!(std::fs::read_to_string(site.socket()).unwrap(), "somebody's notes");
    }
}

/// Whoever cannot serve yet does not take anything from whoever does.
#[tokio::test]
async fn a_successor_without_a_data_key_waits_and_the_running_instance_goes_on_serving() {
    let site = Site::aws();
    let old = site.start().await;
    let inode = std::fs::metadata(site.socket()).unwrap().ino();
    site.kms().fail_all(ANY, Failure::Internal);
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("taking over as soon as there is a data key").await;
    new.until_log("the probe of the KEK failed").await;
    old.until_ok().await;
    assert_eq!(std::fs::metadata(site.socket()).unwrap().ino(), inode);
    // Told to stop, it has displaced nobody.
    assert!(new.stop().await.success());
    assert_eq!(std::fs::metadata(site.socket()).unwrap().ino(), inode);

    let new = site.spawn_with(&["--take-over"]);
    new.until_log("the probe of the KEK failed").await;
    site.kms().heal(ANY);
    new.until_log("listening").await;
    assert_ne!(std::fs::metadata(site.socket()).unwrap().ino(), inode);
    new.until_ok().await;
}

/// Then there is nobody to wait for, and an absent socket is worse than one that says "starting".
#[tokio::test]
async fn a_successor_without_a_data_key_takes_the_socket_when_the_running_instance_dies() {
    let site = Site::aws();
    let old = site.start().await;
    site.kms().fail_all(ANY, Failure::Internal);
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("taking over as soon as there is a data key").await;
    old.kill();
    new.until_log("listening").await;
    let status = new.client().await.status().await.unwrap();
    assert!(status.healthz.starts_with("starting"), "{status:?}");
    site.kms().heal(ANY);
    new.until_ok().await;
}

/// Two processes of one node must not seem to be one that goes back: who was connected to the displaced one and comes to a
/// successor that has not seen the rotation yet would be told of a new key_id and then of the one before.
#[tokio::test]
async fn a_displaced_instance_leaves_a_rotation_to_its_successor() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let old = site.start().await;
    let key_id = old.until_ok().await;
    let mut on_the_old_one = old.client().await;
    on_the_old_one.status().await.unwrap();
    let new = successor(&site).await;
    new.signal(Signal::STOP);
    site.kms().rotate(ALIAS);
    old.until_log("another instance has taken over; it follows the KEK version").await;
    // Nor does a reload bring it: a take-over often comes with a new configuration, which it reads as well.
    old.signal(Signal::HUP);
    old.until_log("another instance has taken over and follows the configuration").await;
    assert_eq!(on_the_old_one.status().await.unwrap().key_id, key_id);
    new.signal(Signal::CONT);
    new.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != key_id)).await.unwrap();
    // What it cannot report it can still read.
    let (seed, answer) = sealed(&mut new.client().await).await;
    assert_eq!(on_the_old_one.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    assert!(old.stop().await.success());
}

/// Its socket file stays, and so does whoever is connected to the old instance.
#[tokio::test]
async fn an_instance_whose_successor_died_follows_a_rotation_again() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let old = site.start().await;
    let key_id = old.until_ok().await;
    let mut on_the_old_one = old.client().await;
    let new = successor(&site).await;
    new.signal(Signal::STOP);
    site.kms().rotate(ALIAS);
    old.until_log("another instance has taken over; it follows the KEK version").await;
    assert_eq!(on_the_old_one.status().await.unwrap().key_id, key_id);
    new.kill();
    let began = std::time::Instant::now();
    while on_the_old_one.status().await.unwrap().key_id == key_id {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", old.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
