//! Item 12: callers that go away leave nothing behind.

use crate::support::fake_kms::Failure;
use crate::support::site::{Running, Site, sealed};
use crate::support::skipped;
use crate::support::wire::{Call, Wire};
use kms_v2_api::v2::DecryptResponse;
use kube_kms_core::limit;
use std::time::{Duration, Instant};

const IN_FLIGHT: &str = "kube_kms_rpc_in_flight{rpc=\"Decrypt\"}";
const CALLS: usize = 1000;

/// Open files; `None` when that is not for us to see, because a process of an ordinary user is not dumpable.
fn files(running: &Running) -> Option<usize> {
    match std::fs::read_dir(format!("/proc/{}/fd", running.pid())) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
        open => Some(open.unwrap().count()),
    }
}

fn resident_kib(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn until_in_flight(running: &Running, wanted: f64) {
    let began = Instant::now();
    loop {
        let now = running.metric(IN_FLIGHT).await;
        if (now - wanted).abs() < f64::EPSILON {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{now} in flight, not {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts Decrypts of which each needs an unwrap of its own, and cancels every one of them in flight.
async fn cancel_all(site: &Site, running: &Running, sealed: &kms_v2_api::v2::EncryptResponse, round: u8) {
    let wire = Wire::connect(&running.target).await;
    let before = site.kms().calls("Decrypt");
    for batch in 0..CALLS / 100 {
        let mut pending = Vec::new();
        site.kms().fail_all("Decrypt", Failure::Hang);
        for n in 0..100 {
            let mut foreign = sealed.clone();
            let blob = foreign.annotations.get_mut("dek.kube-kms").unwrap();
            let end = blob.len();
            blob[end - 3..].copy_from_slice(&[round, u8::try_from(batch).unwrap(), n]);
            pending.push(wire.start(Call::decrypt(&foreign)).await.unwrap());
        }
        until_in_flight(running, 100.0).await;
        drop(pending);
        until_in_flight(running, 0.0).await;
        site.kms().heal("Decrypt");
        site.kms().release_hung();
    }
    // What they had started goes on without them, and ends; what was still waiting for its turn is given up.
    let started = limit::UNWRAPS_IN_FLIGHT_MAX * CALLS / 100;
    site.kms().until(|kms| kms.calls("Decrypt") >= before + started).await;
    wire.status_is_ok().await;
}

#[tokio::test]
async fn item_12_a_thousand_decrypts_cancelled_in_flight_leave_no_task_no_memory_and_no_file_behind() {
    let site = Site::aws();
    let first = site.start().await;
    let (seed, answer) = sealed(&mut first.client().await).await;
    assert!(first.stop().await.success());
    let running = site.start().await;

    // The first thousand fills pools and caches that are meant to stay.
    cancel_all(&site, &running, &answer, 1).await;
    let (files_before, memory_before) = (files(&running), resident_kib(&running));
    cancel_all(&site, &running, &answer, 2).await;

    match files_before {
        // But for those of the page of metrics itself.
        Some(before) => running.until("open files are back", || files(&running).unwrap() <= before + 2).await,
        None => skipped("item_12: open files", "needs root: the process is not dumpable"),
    }
    let memory = resident_kib(&running);
    // 1000 leaked calls would be 3 MiB and more.
    assert!(memory < memory_before + 2048, "{memory_before} KiB before, {memory} KiB after");
    assert!(running.metric(IN_FLIGHT).await.abs() < f64::EPSILON);

    let wire = Wire::connect(&running.target).await;
    assert!(wire.call(Call::decrypt(&answer)).await.unwrap().decode::<DecryptResponse>().plaintext == seed);
}
