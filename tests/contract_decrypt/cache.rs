//! `cache.ttl` and `cache.capacity`: how a revocation bites within a known time, and how the keyring stays small.

use super::{calm, misses, on_both_keks, open, refused, unwraps};
use crate::support::fake_kms::Failure;
use crate::support::replica::Replica;
use crate::support::site::{ALIAS, KekKind, Running, Site, seed};
use futures_util::future::join_all;
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use kube_kms_core::fault::{Class, Reason};
use kube_kms_kek_local::operation;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

on_both_keks! {
    an_expired_dek_is_unwrapped_again
    an_expired_dek_of_a_dead_kek_is_refused
    a_keyring_of_sixteen_serves_a_hundred_deks
}

fn short_lived(site: Site) -> Site {
    let mut site = calm(site);
    site.set("cache: {ttl: 1s}");
    site
}

/// Opens this value until the plugin has unwrapped its DEK once more.
async fn until_unwrapped_again(running: &Running, client: &mut KmsClient, value: &EncryptResponse) {
    let (before, began) = (misses(running).await, Instant::now());
    while misses(running).await == before {
        open(client, value).await;
        assert!(began.elapsed() < PATIENCE, "it was never unwrapped again");
    }
}

async fn an_expired_dek_is_unwrapped_again(site: Site) {
    let site = short_lived(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let value = Replica::of(&site).sealed(&seed()).await;
    let began = Instant::now();
    open(&mut client, &value).await;
    until_unwrapped_again(&running, &mut client, &value).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "it was unwrapped again within its time");
    until_unwrapped_again(&running, &mut client, &value).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "the second life was too short");
}

/// The local KEK's own version must stay in use, so it is an older one that is retired.
async fn an_expired_dek_of_a_dead_kek_is_refused(site: Site) {
    let site = short_lived(site);
    let value = Replica::of(&site).sealed(&seed()).await;
    if let KekKind::Local(_) = site.kek() {
        super::rotate(&site);
    }
    let running = site.start().await;
    let mut client = running.client().await;
    open(&mut client, &value).await;
    match site.kek() {
        KekKind::Local(path) => {
            let versions = operation::list(path, 0).unwrap().versions;
            let old = versions.iter().find(|version| !version.current).unwrap();
            operation::retire(path, &old.version.to_string()).unwrap();
        }
        KekKind::Aws(kms) => kms.disable(ALIAS),
    }
    let (began, uid) = (Instant::now(), crate::support::site::uid());
    let status = loop {
        match client.decrypt(value.clone(), uid.clone()).await {
            Ok(_) => assert!(began.elapsed() < PATIENCE, "the revocation never bites"),
            Err(status) => break status,
        }
    };
    assert_eq!(super::reason_of(&status, &uid), Reason::KekDisabled);
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert_eq!(refused(&mut client, &value).await.class(), Class::KekDead, "and stays");
}

#[tokio::test]
async fn an_expired_dek_is_served_through_a_transient_failure_and_renewed_after_it() {
    let failures =
        [Failure::Internal, Failure::Throttled, Failure::Reset, Failure::ExpiredToken, Failure::AccessDenied];
    join_all(failures.map(serves_through)).await;
}

async fn serves_through(failure: Failure) {
    let site = short_lived(Site::aws());
    let running = site.start().await;
    let mut client = running.client().await;
    let expected = seed();
    let value = Replica::of(&site).sealed(&expected).await;
    open(&mut client, &value).await;
    site.kms().fail_all("Decrypt", failure);
    let began = Instant::now();
    while running.metric(r#"kube_kms_keyring_events_total{event="served-expired"}"#).await < 1.0 {
        assert_eq!(open(&mut client, &value).await, expected, "{failure:?}");
        assert!(began.elapsed() < PATIENCE, "{failure:?}: never past its ttl");
    }
    site.kms().heal("Decrypt");
    until_unwrapped_again(&running, &mut client, &value).await;
}

async fn a_keyring_of_sixteen_serves_a_hundred_deks(site: Site) {
    let mut site = calm(site);
    site.set("cache: {capacity: 16}");
    let running = site.start().await;
    let mut client = running.client().await;
    let deks = Replica::of(&site).deks(100).await;
    let values: Vec<_> = deks.iter().map(|dek| (seed(), dek)).map(|(seed, dek)| (dek.seal(&seed), seed)).collect();
    let before = unwraps(&running).await;
    for _ in 0..2 {
        for (value, seed) in &values {
            assert_eq!(&open(&mut client, value).await, seed);
            assert_eq!(&open(&mut client, value).await, seed);
        }
    }
    assert_eq!(unwraps(&running).await - before, 200, "each twice: it had gone before its second turn");
    assert!(running.metric("kube_kms_keyring_entries").await <= 16.0);
    assert!(running.metric(r#"kube_kms_keyring_events_total{event="evicted"}"#).await >= 184.0);
    // What is in use stays: the last sixteen, less the write state's own.
    let before = unwraps(&running).await;
    for (value, seed) in &values[90..] {
        assert_eq!(&open(&mut client, value).await, seed);
    }
    assert_eq!(unwraps(&running).await, before);
}
