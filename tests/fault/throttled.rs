//! A KMS with a small quota and a storm of unknown DEKs: no more calls than it can bear, and all of them come through.

use super::load::{Load, try_open};
use crate::support::fake_kms::{ANY, Failure, Outcome};
use crate::support::replica::Replica;
use crate::support::site::{Site, sealed, seed};
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use tonic::Code;

const DEKS: usize = 200;
const PER_SECOND: f64 = 5.0;

#[tokio::test]
async fn two_hundred_unknown_deks_at_five_calls_a_second_all_open_in_the_end() {
    let site = Site::aws();
    let deks = Replica::of(&site).deks(DEKS).await;
    let running = site.start().await;
    // More time than kube-apiserver gives: two hundred answers at once keep a small machine busy.
    let client = running.client_with(Duration::from_secs(10)).await;
    let load = Load::begin(&running, vec![sealed(&mut client.clone()).await]).await;
    let kms = site.kms();
    kms.limit_rate(PER_SECOND, PER_SECOND);
    kms.forget_calls();
    let began = Instant::now();
    // As an API server: each object is asked for again and again until it opens.
    join_all(deks.iter().map(|dek| {
        let mut client = client.clone();
        async move {
            let seed = seed();
            let value = (seed.clone(), dek.seal(&seed));
            let allowed = [Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded];
            while try_open(&mut client, &value, &allowed).await.is_err() {
                assert!(began.elapsed() < Duration::from_secs(100), "not after {:?}", began.elapsed());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }))
    .await;
    let took = began.elapsed();
    let throttled = kms.requests().iter().filter(|call| matches!(call.outcome, Outcome::Refused(_))).count();
    println!("{DEKS} DEKs at {PER_SECOND} calls/s: {took:?}, {} calls, {throttled} refused", kms.total_calls());
    assert_eq!(kms.successful_calls("Decrypt"), DEKS, "each once");
    // Pace is learned by being refused; callers that come again, probes and calls without time must not add to that.
    assert!(kms.total_calls() < 3 * DEKS, "{} calls: it does not keep within the quota", kms.total_calls());
    // The quota alone takes 40 s.
    assert!(took < Duration::from_secs(70), "{took:?}");
    load.finish("throttled").await;
}

#[tokio::test]
async fn a_kms_that_throttles_is_probed_less_than_one_that_is_well() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let kms = site.kms();
    let calls_in = |time| {
        kms.forget_calls();
        async move {
            tokio::time::sleep(time).await;
            kms.total_calls()
        }
    };
    let well = calls_in(Duration::from_secs(8)).await;
    kms.fail_all(ANY, Failure::Throttled);
    kms.until(|kms| kms.requests().last().is_some_and(|call| matches!(call.outcome, Outcome::Refused(_)))).await;
    let throttled = calls_in(Duration::from_secs(8)).await;
    println!("probes in 8 s at 1 s: {well} calls, throttled {throttled}");
    assert!(throttled * 3 <= well && throttled > 0, "{throttled} calls, {well} when all is well");
    kms.heal(ANY);
    let began = Instant::now();
    while !running.http("/readyz").await.1.contains("state=ready") {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
