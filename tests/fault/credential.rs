//! Credentials that end and are renewed, permissions that are taken away and given back.

use super::load::{Load, try_open};
use crate::support::fake_kms::{ANY, Failure};
use crate::support::replica::Replica;
use crate::support::site::{Running, Site, sealed, seed, uid};
use std::time::{Duration, Instant};
use tonic::Code;

pub(super) const QUICK: &str = "probe: {interval: 1s, timeout: 900ms}";
pub(super) const RECOVERY: Duration = Duration::from_secs(10);

pub(super) async fn until_state(running: &Running, state: &str, patience: Duration) {
    let began = Instant::now();
    while !running.http("/readyz").await.1.contains(&format!("state={state} ")) {
        assert!(began.elapsed() < patience, "never {state}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn credentials_that_expire_and_are_renewed_cost_no_known_request() {
    let mut site = Site::aws();
    site.set(QUICK);
    let cold = Replica::of(&site).deks(2).await;
    let running = site.start().await;
    let mut client = running.client().await;
    let load = Load::begin(&running, vec![sealed(&mut client).await]).await;
    site.kms().fail_all(ANY, Failure::ExpiredToken);
    until_state(&running, "coasting", RECOVERY).await;
    let seed = seed();
    let value = (seed.clone(), cold[0].seal(&seed));
    // Passes by itself, so it is an outage and not a denial.
    assert_eq!(try_open(&mut client, &value, &[Code::Unavailable]).await.unwrap_err().code(), Code::Unavailable);
    site.kms().heal(ANY);
    until_state(&running, "ready", RECOVERY).await;
    try_open(&mut client, &value, &[]).await.unwrap();
    load.finish("expired credentials").await;
}

/// With `outage.onDenied: coast`: what is known goes on; what is not is refused in words that name the permission.
#[tokio::test]
async fn a_permission_that_is_taken_away_by_accident_costs_nothing_known_and_coming_back_is_enough() {
    for taken in [&["Encrypt"][..], &["Decrypt"], &["Encrypt", "Decrypt"], &["DescribeKey"]] {
        let mut site = Site::aws();
        site.set(QUICK);
        let cold = Replica::of(&site).deks(2).await;
        let running = site.start().await;
        let mut client = running.client().await;
        let load = Load::begin(&running, vec![sealed(&mut client).await]).await;
        taken.iter().for_each(|op| site.kms().revoke(op));
        let seed = seed();
        let value = (seed.clone(), cold[0].seal(&seed));
        if taken.contains(&"DescribeKey") {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert!(running.http("/readyz").await.1.contains("state=ready"), "it is for diagnosis only");
        } else {
            until_state(&running, "coasting", RECOVERY).await;
            assert!(running.http("/readyz").await.1.contains("reason=policy-denied"));
        }
        let opened = try_open(&mut client, &value, &[Code::FailedPrecondition]).await;
        assert_eq!(opened.is_err(), taken.contains(&"Decrypt"), "{taken:?}: {opened:?}");
        taken.iter().for_each(|op| site.kms().grant(op));
        until_state(&running, "ready", RECOVERY).await;
        try_open(&mut client, &value, &[]).await.unwrap();
        load.finish(&format!("without {taken:?}")).await;
    }
}

#[tokio::test]
async fn a_permission_that_is_taken_away_revokes_when_the_operator_says_so_and_coming_back_is_enough() {
    let mut site = Site::aws();
    site.set(QUICK).set("outage: {onDenied: revoke}");
    let running = site.start().await;
    let mut client = running.client().await;
    let value = sealed(&mut client).await;
    site.kms().revoke("Decrypt");
    until_state(&running, "revoked", RECOVERY).await;
    assert_eq!(client.status().await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.encrypt(seed(), uid()).await.unwrap_err().code(), Code::FailedPrecondition);
    try_open(&mut client, &value, &[Code::FailedPrecondition]).await.unwrap_err();
    site.kms().grant("Decrypt");
    until_state(&running, "ready", RECOVERY).await;
    try_open(&mut client, &value, &[]).await.unwrap();
    sealed(&mut client).await;
}
