//! Item 78: SIGTERM with calls in flight.

use crate::support::fake_kms::Failure;
use crate::support::site::{Running, Site, sealed};
use crate::support::wire::{Answer, Call, GOAWAY, Pending, Wire};
use futures_util::future::join_all;
use kms_v2_api::v2::{DecryptResponse, EncryptResponse};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const CALLS: usize = 50;
const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;
/// What the plugin gives its running calls, and a little for the machine.
const GRACE: Duration = Duration::from_secs(11);

/// Values under data keys that the next process does not know: each start makes a new one.
async fn sealed_by_earlier_processes(site: &Site, count: usize) -> Vec<(Vec<u8>, EncryptResponse)> {
    let mut all = Vec::new();
    for _ in 0..count {
        let running = site.start().await;
        all.push(sealed(&mut running.client().await).await);
        assert!(running.stop().await.success());
    }
    all
}

/// 50 Decrypts that the plugin has accepted and that wait for the KMS.
async fn in_flight(running: &Running, wire: &Wire, values: &[(Vec<u8>, EncryptResponse)]) -> Vec<Pending> {
    let mut pending = Vec::new();
    for n in 0..CALLS {
        let call = Call::decrypt(&values[n % values.len()].1).header("grpc-timeout", "3S");
        pending.push(wire.start(call).await.unwrap());
    }
    let began = Instant::now();
    while running.metric("kube_kms_rpc_in_flight{rpc=\"Decrypt\"}").await < CALLS as f64 {
        assert!(began.elapsed() < Duration::from_secs(5), "all in flight\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pending
}

async fn answers(pending: Vec<Pending>) -> Vec<Answer> {
    let all = join_all(pending.into_iter().map(Pending::answer)).await;
    all.into_iter().map(|answer| answer.expect("an answer, not a broken connection")).collect()
}

#[tokio::test]
async fn item_78_at_sigterm_50_calls_in_flight_complete_goaway_is_sent_and_the_exit_code_is_0() {
    let site = Site::aws();
    let values = sealed_by_earlier_processes(&site, 3).await;
    let mut running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    site.kms().fail_all("Decrypt", Failure::Hang);
    let pending = in_flight(&running, &wire, &values).await;
    assert!(!wire.saw(GOAWAY));

    let began = Instant::now();
    running.signal(Signal::TERM);
    running.until_log("stopping: no new connections").await;
    site.kms().heal("Decrypt");
    site.kms().release_hung();
    for (n, answer) in answers(pending).await.into_iter().enumerate() {
        assert!(answer.decode::<DecryptResponse>().plaintext == values[n % values.len()].0, "call {n}");
    }
    assert!(wire.saw(GOAWAY), "a client must know that it has to connect anew");
    assert_eq!(running.wait().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "it waits for calls, not for its limit: {:?}", began.elapsed());
    assert!(!site.socket().exists());
}

#[tokio::test]
async fn item_78_calls_that_the_kms_never_answers_get_a_clean_status_and_the_exit_keeps_the_grace() {
    let site = Site::aws();
    let values = sealed_by_earlier_processes(&site, 1).await;
    let mut running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    site.kms().fail_all("Decrypt", Failure::Hang);
    let pending = in_flight(&running, &wire, &values).await;
    let began = Instant::now();
    running.signal(Signal::TERM);
    for answer in answers(pending).await {
        assert!(matches!(answer.code(), DEADLINE_EXCEEDED | UNAVAILABLE), "{}: {}", answer.code(), answer.message());
    }
    assert!(wire.saw(GOAWAY));
    assert_eq!(running.wait().await.code(), Some(0));
    assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn item_78_a_client_that_keeps_an_idle_connection_does_not_hold_up_the_end() {
    let site = Site::local();
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = site.start().await;
        let wire = Wire::connect(&running.target).await;
        wire.status_is_ok().await;
        let began = Instant::now();
        running.signal(signal);
        assert_eq!(running.wait().await.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert!(wire.saw(GOAWAY));
    }
}

#[tokio::test]
async fn item_78_a_second_signal_ends_it_at_once() {
    let site = Site::aws();
    let values = sealed_by_earlier_processes(&site, 1).await;
    let mut running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    site.kms().fail_all("Decrypt", Failure::Hang);
    let pending = in_flight(&running, &wire, &values).await;
    let began = Instant::now();
    running.signal(Signal::TERM);
    running.until_log("stopping: no new connections").await;
    running.signal(Signal::TERM);
    assert_eq!(running.wait().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(pending);
}
