//! Items 56 to 58 and the claim of the README: however many Decrypts come at once, the KMS is asked once per distinct
//! wrapped DEK, at a pace that it can bear.

use crate::contract_decrypt::{calm, on_both_keks, open, unwraps};
use crate::support::beside::Beside;
use crate::support::fake_kms::{Failure, Outcome};
use crate::support::replica::{Replica, ReplicaDek};
use crate::support::site::{KekKind, PATIENCE, Running, Site, seed, uid};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use std::time::{Duration, Instant};

/// So long that only what never ends is caught: the machine may be busy.
const BOUNDED: Duration = Duration::from_secs(60);

on_both_keks! {
    item_57_five_hundred_equal_decrypts_cost_one_unwrap
    item_58_a_first_caller_that_goes_away_takes_nobody_with_it
    ten_thousand_decrypts_over_five_deks_cost_five_unwraps
}

/// The fake KMS needs 20 ms and allows 50 calls a second; counting begins now.
fn make_slow_and_strict(site: &Site) {
    if let KekKind::Aws(kms) = site.kek() {
        kms.set_latency(crate::support::fake_kms::ANY, Duration::from_millis(20));
        kms.limit_rate(50.0, 10.0);
        kms.forget_calls();
    }
}

async fn item_57_five_hundred_equal_decrypts_cost_one_unwrap(site: Site) {
    let site = calm(site);
    let value = Replica::of(&site).sealed(b"the same for all of them, 32 byt").await;
    let running = site.start().await;
    let client = running.client().await;
    make_slow_and_strict(&site);
    let before = unwraps(&running).await;
    let calls = (0..500).map(|_| {
        let (mut client, value) = (client.clone(), value.clone());
        async move { client.decrypt(value, uid()).await.unwrap().plaintext.clone() }
    });
    for plaintext in join_all(calls).await {
        assert_eq!(plaintext, b"the same for all of them, 32 byt");
    }
    assert_eq!(unwraps(&running).await - before, 1);
    if let KekKind::Aws(kms) = site.kek() {
        assert_eq!(kms.total_calls(), 1);
    }
}

/// Waits until this series is at least that much.
async fn until_metric(running: &Running, series: &str, least: f64) {
    let began = Instant::now();
    while running.metric(series).await < least {
        assert!(began.elapsed() < PATIENCE, "{series} is never {least}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn item_58_a_first_caller_that_goes_away_takes_nobody_with_it(site: Site) {
    let site = calm(site);
    let expected = seed();
    let value = Replica::of(&site).sealed(&expected).await;
    let running = site.start().await;
    let client = running.client().await;
    let before = unwraps(&running).await;
    if let KekKind::Aws(kms) = site.kek() {
        kms.forget_calls();
        kms.fail_next("Decrypt", 1, Failure::Hang);
    }
    let mut first = { (client.clone(), value.clone()) };
    let first = tokio::spawn(async move { first.0.decrypt(first.1, uid()).await });
    match site.kek() {
        KekKind::Aws(kms) => kms.until(|kms| kms.hung_calls() == 1).await,
        // Too quick to be caught in between; that it does no harm is still worth asking.
        KekKind::Local(_) => tokio::task::yield_now().await,
    }
    let others: Vec<_> = (0..499)
        .map(|_| {
            let (mut client, value) = (client.clone(), value.clone());
            tokio::spawn(async move { client.decrypt(value, uid()).await.unwrap().plaintext.clone() })
        })
        .collect();
    if let KekKind::Aws(_) = site.kek() {
        // No more fit into a connection at once.
        until_metric(&running, "kube_kms_rpc_in_flight{rpc=\"Decrypt\"}", 200.0).await;
    }
    // kube-apiserver's own way to go away: the stream is reset.
    first.abort();
    assert!(matches!(site.kek(), KekKind::Local(_)) || first.await.is_err(), "it was gone before its answer");
    if let KekKind::Aws(kms) = site.kek() {
        // The one that has ended.
        until_metric(&running, "kube_kms_rpc_duration_seconds_count{rpc=\"Decrypt\"}", 1.0).await;
        kms.release_hung();
    }
    for other in others {
        assert_eq!(other.await.unwrap(), expected);
    }
    assert_eq!(unwraps(&running).await - before, 1);
    if let KekKind::Aws(kms) = site.kek() {
        assert_eq!(kms.calls("Decrypt"), 1, "neither aborted nor repeated");
        assert_eq!(kms.successful_calls("Decrypt"), 1);
    }
}

async fn ten_thousand_decrypts_over_five_deks_cost_five_unwraps(site: Site) {
    let site = calm(site);
    let deks = Replica::of(&site).deks(5).await;
    let running = site.start().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(running.client_with(Duration::from_secs(30)).await);
    }
    make_slow_and_strict(&site);
    let before = unwraps(&running).await;
    let began = Instant::now();
    let calls = (0..10_000).map(|n| {
        let expected = seed();
        let value = deks[n % deks.len()].seal(&expected);
        let mut client = clients[n % clients.len()].clone();
        async move { (client.decrypt(value, uid()).await.map(|answer| answer.plaintext.clone()), expected) }
    });
    for (answer, expected) in join_all(calls).await {
        assert_eq!(answer.unwrap(), expected);
    }
    println!("10,000 Decrypts over 5 cold DEKs: {:?}", began.elapsed());
    assert_eq!(unwraps(&running).await - before, 5);
    if let KekKind::Aws(kms) = site.kek() {
        assert_eq!(kms.calls("Decrypt"), 5, "{:?}", kms.requests());
        assert_eq!(kms.total_calls(), 5);
    }
    assert!(began.elapsed() < BOUNDED);
}

/// One Decrypt, and how long it took.
async fn timed(mut client: KmsClient, value: EncryptResponse, expected: Vec<u8>) -> Duration {
    let began = Instant::now();
    assert_eq!(open(&mut client, &value).await, expected);
    began.elapsed()
}

fn sealed_by_each(deks: &[ReplicaDek]) -> Vec<(EncryptResponse, Vec<u8>)> {
    deks.iter().map(|dek| (seed(), dek)).map(|(seed, dek)| (dek.seal(&seed), seed)).collect()
}

/// On the AWS KEK only: a keyring file has no limit that could be respected.
#[tokio::test]
async fn item_56_a_thousand_deks_a_hundred_at_a_time_stay_within_the_limit_of_the_kms() {
    let site = calm(Site::aws());
    let values = sealed_by_each(&Replica::of(&site).deks(1000).await);
    let running = site.start().await;
    let client = running.client_with(Duration::from_secs(30)).await;
    make_slow_and_strict(&site);
    let kms = site.kms();
    let began = Instant::now();
    let cold: Vec<Duration> = stream::iter(values.clone())
        .map(|(value, expected)| timed(client.clone(), value, expected))
        .buffer_unordered(100)
        .collect()
        .await;
    let took = began.elapsed();
    let throttled = kms.requests().iter().filter(|c| matches!(&c.outcome, Outcome::Refused(_))).count();
    println!(
        "1,000 DEKs at 50 calls/s: {took:?}, slowest {:?}, {} calls, {throttled} throttled, {} at most at once",
        cold.iter().max().unwrap(),
        kms.calls("Decrypt"),
        kms.max_concurrency()
    );
    assert_eq!(cold.len(), 1000);
    assert_eq!(kms.successful_calls("Decrypt"), 1000, "each once");
    assert!(took < BOUNDED, "{took:?}");
    assert!(throttled < 250, "{throttled} of {} calls were throttled", kms.calls("Decrypt"));

    // All of them are known now: nobody is asked, and an answer takes the time of a look-up.
    kms.forget_calls();
    let mut beside = Beside::start().await;
    for (value, expected) in values {
        beside.time(timed(client.clone(), value, expected)).await;
    }
    assert_eq!(kms.total_calls(), 0);
    beside.assert_late_at_most("cached", Duration::from_millis(50), 9);
}
