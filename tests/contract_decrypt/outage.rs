//! Items 59 and 60: the KMS is away; and a caller whose own time is short.

use super::{calm, give_back, on_both_keks, open, refused, take_away, unwraps};
use crate::support::fake_kms::{ANY, Failure};
use crate::support::replica::Replica;
use crate::support::site::{Running, Site, sealed, seed};
use crate::support::wire::{Call, Wire};
use kms_v2_api::v2::EncryptResponse;
use kube_kms_core::fault::{Class, Reason};
use std::time::{Duration, Instant};

/// What "well within the deadline" of 3 s is here, however busy the machine: a third of it is left.
const WELL_WITHIN: Duration = Duration::from_secs(2);

on_both_keks! {
    item_59_what_was_seen_before_is_served_while_the_kms_is_away
    item_59_what_was_seen_before_is_served_past_its_ttl_while_the_kms_is_away
    item_60_what_was_not_seen_is_refused_well_within_the_deadline_when_nobody_answers
}

async fn item_59_what_was_seen_before_is_served_while_the_kms_is_away(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let (own_seed, own) = sealed(&mut client).await;
    let foreign_seed = seed();
    let foreign = Replica::of(&site).sealed(&foreign_seed).await;
    open(&mut client, &foreign).await;
    take_away(&site);
    let before = unwraps(&running).await;
    for _ in 0..50 {
        assert_eq!(open(&mut client, &own).await, own_seed);
        assert_eq!(open(&mut client, &foreign).await, foreign_seed);
    }
    assert_eq!(unwraps(&running).await, before, "nobody is asked for what is known");
}

async fn item_59_what_was_seen_before_is_served_past_its_ttl_while_the_kms_is_away(mut site: Site) {
    site.set("cache: {ttl: 1s}\nprobe: {interval: 1s, timeout: 500ms}");
    let running = site.start().await;
    let mut client = running.client().await;
    let foreign_seed = seed();
    let foreign = Replica::of(&site).sealed(&foreign_seed).await;
    open(&mut client, &foreign).await;
    take_away(&site);
    let served = || running.metric(r#"kube_kms_keyring_events_total{event="served-expired"}"#);
    let began = Instant::now();
    while served().await < 5.0 {
        assert_eq!(open(&mut client, &foreign).await, foreign_seed);
        assert!(began.elapsed() < Duration::from_secs(20), "never past its ttl");
    }
    assert_eq!(client.status().await.unwrap().healthz, "ok");
    give_back(&site);
    let before = unwraps(&running).await;
    running.until_log("the KEK can be used again").await;
    assert_eq!(open(&mut client, &foreign).await, foreign_seed);
    assert!(unwraps(&running).await > before, "the probe, and the DEK that had expired");
}

/// Calls Decrypt of a value that the plugin cannot know, and returns why and after how long it was refused.
async fn refused_after(running: &Running, value: &EncryptResponse) -> (Reason, Duration) {
    let mut client = running.client().await;
    let began = Instant::now();
    let reason = refused(&mut client, value).await;
    (reason, began.elapsed())
}

/// Before the probe has noticed, and after it.
async fn item_60_what_was_not_seen_is_refused_well_within_the_deadline_when_nobody_answers(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let values = [Replica::of(&site).sealed(&seed()).await, Replica::of(&site).sealed(&seed()).await];
    take_away(&site);
    for value in &values {
        let (reason, after) = refused_after(&running, value).await;
        assert_eq!(reason, Reason::KmsUnreachable);
        assert_eq!(reason.class(), Class::Unreachable);
        assert!(after < WELL_WITHIN, "{after:?}");
    }
    give_back(&site);
    let mut client = running.client().await;
    open(&mut client, &values[0]).await;
}

#[tokio::test]
async fn item_60_a_black_hole_that_the_probe_has_noticed_is_unavailable_well_within_the_deadline() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 300ms}");
    let running = site.start().await;
    let value = Replica::of(&site).sealed(&seed()).await;
    site.kms().fail_all(ANY, Failure::Hang);
    running.until_log("state=coasting").await;
    let (reason, after) = refused_after(&running, &value).await;
    assert_eq!(reason, Reason::KmsUnreachable);
    assert!(after < WELL_WITHIN, "{after:?}");
}

#[tokio::test]
async fn item_60_a_hang_that_nobody_has_noticed_is_unavailable_before_the_deadline() {
    let site = calm(Site::aws());
    let running = site.start().await;
    let value = Replica::of(&site).sealed(&seed()).await;
    site.kms().fail_all(ANY, Failure::Hang);
    // The plugin's own word: at the deadline the client would have given up with another.
    assert_eq!(refused(&mut running.client().await, &value).await, Reason::KmsUnreachable);
}

/// A client without a timer of its own, so that every answer is the plugin's. A timer never fires early: without a margin the
/// quickest of ten would be past the deadline.
#[tokio::test]
async fn item_11_a_short_deadline_is_answered_before_it_and_the_unwrap_still_fills_the_keyring() {
    const SHORT: Duration = Duration::from_millis(200);
    let site = calm(Site::aws());
    let running = site.start().await;
    let hasty = Wire::connect(&running.target).await;
    let mut client = running.client().await;
    let replica = Replica::of(&site);
    let mut values = Vec::new();
    for _ in 0..10 {
        let seed = seed();
        values.push((replica.sealed(&seed).await, seed));
    }
    site.kms().forget_calls();
    site.kms().set_latency("Decrypt", Duration::from_millis(600));
    let mut quickest = Duration::MAX;
    for (value, _) in &values {
        let began = Instant::now();
        let said = hasty.call(Call::decrypt(value).header("grpc-timeout", "200m")).await.unwrap();
        quickest = quickest.min(began.elapsed());
        assert_eq!(said.code(), tonic::Code::DeadlineExceeded as i32, "{}", said.message());
        assert!(said.message().replace("%20", " ").contains(Reason::Deadline.phrase()), "{}", said.message());
    }
    assert!(quickest < SHORT, "none of ten before its deadline: {quickest:?}");
    site.kms().until(|kms| kms.successful_calls("Decrypt") == 10).await;
    for (value, seed) in &values {
        assert_eq!(&open(&mut client, value).await, seed);
    }
    assert_eq!(site.kms().calls("Decrypt"), 10, "nothing was asked twice");
}

/// Counted and not timed, so that a busy machine does not matter: the first Decrypt fails, so does the probe that it calls for, and so
/// do the next calls; then all is well.
#[tokio::test]
async fn a_blip_of_the_kms_is_waited_out_by_a_value_that_was_not_seen() {
    for failure in [Failure::Internal, Failure::Reset] {
        let site = calm(Site::aws());
        let running = site.start().await;
        let mut client = running.client_with(Duration::from_secs(10)).await;
        for _ in 0..5 {
            let expected = seed();
            let value = Replica::of(&site).sealed(&expected).await;
            site.kms().fail_next(ANY, 4, failure);
            assert_eq!(open(&mut client, &value).await, expected, "{failure:?}");
            site.kms().heal(ANY);
        }
    }
}
