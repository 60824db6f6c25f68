//! docs/conformance.md, items 42, 43, 80 and 81: a plugin under load while its KMS is slow, hangs, or rejects credentials.

use super::socket::{opens, quick, until_state};
use crate::support::beside::Beside;
use crate::support::fake_kms::{ANY, Failure};
use crate::support::hand::{bring_back, kek_calls, on_both_keks, take_away};
use crate::support::replica::Replica;
use crate::support::site::{Running, Site, sealed, seed, uid};
use kms_v2_api::v2::EncryptResponse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;

on_both_keks! {
    item_42_the_encrypts_of_ten_minutes_in_one_go_cost_no_kms_call_and_no_memory: flat;
    item_81_the_process_is_live_throughout_an_outage_and_ready_as_long_as_it_coasts: liveness;
}

/// Resident memory in KiB.
fn resident(running: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn flat(mut site: Site) {
    site.set("probe: {interval: 10m}");
    let running = site.start().await;
    let mut client = running.client().await;
    // Once through, so that what is allocated once is.
    for _ in 0..200 {
        sealed(&mut client).await;
    }
    let (calls, memory) = (kek_calls(&site, &running).await, resident(&running));
    let locked = running.metric("kube_kms_locked_memory_bytes").await;
    for _ in 0..200 {
        sealed(&mut client).await;
    }
    assert_eq!(kek_calls(&site, &running).await, calls);
    assert_eq!(running.metric("kube_kms_locked_memory_bytes").await, locked);
    assert_eq!(running.metric("kube_kms_keyring_entries").await as usize, 1);
    let grown = resident(&running).saturating_sub(memory);
    assert!(grown < 2048, "{grown} KiB");
}

#[tokio::test]
async fn item_43_the_p99_of_encrypt_is_under_100_ms_with_a_kms_that_takes_50_ms() {
    let site = quick("");
    site.kms().set_latency(ANY, Duration::from_millis(50));
    let running = site.start().await;
    let mut client = running.client().await;
    let mut beside = Beside::start().await;
    let asked = site.kms().calls("Encrypt");
    let mut ticks = tokio::time::interval(Duration::from_millis(4));
    for _ in 0..1000 {
        ticks.tick().await;
        beside.time(client.encrypt(seed(), uid())).await.unwrap();
    }
    assert!(site.kms().calls("Encrypt") >= asked + 2, "with probes under way");
    beside.assert_late_at_most("item 43: p99", Duration::from_millis(100), 9);
    beside.assert_late_at_most("item 43: it does not wait for the KMS", Duration::from_millis(50), 499);
}

async fn liveness(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 500ms}").set("outage: {grace: 4s}");
    let running = site.start().await;
    take_away(&site);
    let (code, _) = until_state(&running, "coasting").await;
    assert_eq!((code, running.http("/livez").await), (200, (200, "ok\n".to_owned())));
    let (code, _) = until_state(&running, "degraded").await;
    assert_eq!((code, running.http("/livez").await.0), (503, 200));
    assert_eq!(running.metric("kube_kms_status_ok").await, 0.0);
    bring_back(&site);
    let (code, _) = until_state(&running, "ready").await;
    assert_eq!((code, running.http("/livez").await.0), (200, 200));
}

/// Three clients that call all three RPCs without a pause until they are told to stop.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    pub(super) async fn begin(running: &Running, known: &[(Vec<u8>, EncryptResponse)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for _ in 0..3 {
            let (mut client, stop, known) = (running.client().await, Arc::clone(&stop), known.to_vec());
            clients.push(tokio::spawn(async move {
                let (mut rounds, mut failures) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match client.status().await {
                        Ok(status) if status.healthz == "ok" => {}
                        other => failures.push(format!("{other:?}")),
                    }
                    failures.extend(client.encrypt(seed(), uid()).await.err().map(|s| format!("Encrypt: {s:?}")));
                    let (seed, answer) = &known[rounds % known.len()];
                    match client.decrypt(answer.clone(), uid()).await {
                        Ok(opened) => assert_eq!(&opened.plaintext, seed),
                        Err(status) => failures.push(format!("Decrypt: {status:?}")),
                    }
                    rounds += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (rounds, failures)
            }));
        }
        Self { stop, clients }
    }

    pub(super) async fn end(self, running: &Running) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let (rounds, failures) = client.await.unwrap();
            assert!(rounds > 50, "{rounds}");
            assert!(failures.is_empty(), "{failures:?}\n{}", running.log());
        }
    }
}

/// Values under three key_ids, all opened once, with a cache that forgets quickly: the KMS is asked again and again.
pub(super) async fn known_values(site: &Site, running: &Running) -> Vec<(Vec<u8>, EncryptResponse)> {
    let mut values = vec![sealed(&mut running.client().await).await];
    for _ in 0..2 {
        let old = running.until_ok().await;
        crate::support::hand::rotate(site);
        super::socket::moved(running, &old).await;
        values.push(sealed(&mut running.client().await).await);
    }
    opens(running, &values).await;
    values
}

#[tokio::test]
async fn item_80_credentials_that_expire_and_are_renewed_under_load_fail_no_rpc_of_known_deks() {
    let site = quick("cache: {ttl: 1s}");
    let running = site.start().await;
    let values = known_values(&site, &running).await;
    let load = Load::begin(&running, &values).await;
    for failure in [Failure::ExpiredToken, Failure::UnrecognizedClient] {
        let never_seen = Replica::of(&site).sealed(&[3; 32]).await;
        site.kms().fail_all(ANY, failure);
        until_state(&running, "coasting").await;
        let refused = site.kms().total_calls();
        site.kms().until(|kms| kms.total_calls() >= refused + 3).await;
        // What only the KMS could open says so, and soon.
        let began = Instant::now();
        let refused = running.client().await.decrypt(never_seen.clone(), uid()).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Unavailable | Code::FailedPrecondition), "{refused:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        site.kms().heal(ANY);
        until_state(&running, "ready").await;
        let healed = Instant::now();
        // A refusal is remembered for ten seconds (ARCHITECTURE.md, decision 6).
        while running.client().await.decrypt(never_seen.clone(), uid()).await.is_err() {
            assert!(healed.elapsed() < Duration::from_secs(11), "it never opens\n{}", running.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    load.end(&running).await;
}

/// The short, real one of the hour that `hour` plays.
#[tokio::test]
async fn a_kms_that_swallows_every_call_for_ten_seconds_fails_no_rpc_of_known_deks() {
    let site = quick("cache: {ttl: 1s}");
    let running = site.start().await;
    let values = known_values(&site, &running).await;
    let load = Load::begin(&running, &values).await;
    site.kms().fail_all(ANY, Failure::Hang);
    until_state(&running, "coasting").await;
    running.until_log("failures=5").await;
    assert!(running.metric("kube_kms_keyring_events_total{event=\"served-expired\"}").await > 0.0);
    site.kms().heal(ANY);
    site.kms().release_hung();
    until_state(&running, "ready").await;
    load.end(&running).await;
}
