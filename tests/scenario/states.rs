//! Every state of ARCHITECTURE.md "Failure policy" on the real binary: what Status, Encrypt and Decrypt do in it, and that
//! one good probe ends it, whatever it was.

use super::socket::{QUICK, opens, until_state, without_age};
use crate::support::fake_kms::{ANY, Failure};
use crate::support::hand::{bring_back, on_both_keks, take_away};
use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use kms_v2_api::v2::EncryptResponse;
use tonic::Code;

on_both_keks! {
    the_way_back_from_starting: from_starting;
    the_way_back_from_starting_known: from_starting_known;
    the_way_back_from_coasting_and_degraded: from_coasting_and_degraded;
    the_way_back_from_stopped: from_stopped;
}

type Value = (Vec<u8>, EncryptResponse);

/// What each RPC does now: healthz or a code, then codes.
async fn answers(running: &Running, value: &Value) -> (Result<String, Code>, Result<(), Code>, Result<(), Code>) {
    let mut client = running.client().await;
    let status = client.status().await.map(|s| s.healthz).map_err(|s| s.code());
    let encrypt = client.encrypt(vec![1; 32], uid()).await.map(|_| ()).map_err(|s| s.code());
    let decrypt = client.decrypt(value.1.clone(), uid()).await.map(|_| ()).map_err(|s| s.code());
    (status, encrypt, decrypt)
}

fn ok() -> (Result<String, Code>, Result<(), Code>, Result<(), Code>) {
    (Ok("ok".to_owned()), Ok(()), Ok(()))
}

/// A node, and a value that it sealed.
async fn with_value(site: &Site) -> (Running, Value) {
    let running = site.start().await;
    let value = sealed(&mut running.client().await).await;
    (running, value)
}

/// The state is over, everything works, and it is the same key_id.
async fn is_back(running: &Running, value: &Value) {
    until_state(running, "ready").await;
    assert_eq!(running.until_ok().await, value.1.key_id);
    assert_eq!(answers(running, value).await, ok());
    opens(running, std::slice::from_ref(value)).await;
    assert_eq!(running.metric("kube_kms_state{state=\"ready\"}").await as usize, 1);
    assert_eq!(running.metric("kube_kms_outage_seconds").await, 0.0);
}

async fn from_starting(mut site: Site) {
    site.set(QUICK);
    let (running, value) = with_value(&site).await;
    assert!(running.stop().await.success());
    let new_node = site.replica();
    take_away(&site);
    let running = new_node.spawn();
    running.until_log("the probe of the KEK failed").await;
    let (code, _) = until_state(&running, "starting").await;
    assert_eq!(code, 503);
    let refused = Code::Unavailable;
    assert_eq!(answers(&running, &value).await, (Err(refused), Err(refused), Err(refused)));
    bring_back(&site);
    is_back(&running, &value).await;
}

async fn from_starting_known(mut site: Site) {
    site.set(QUICK);
    let (running, value) = with_value(&site).await;
    running.kill();
    take_away(&site);
    let running = site.spawn();
    running.until_log("the probe of the KEK failed").await;
    let (code, page) = until_state(&running, "starting-known").await;
    assert!(code == 503 && page.contains(&value.1.key_id), "{page}");
    let healthz = Ok("starting: kms-unreachable".to_owned());
    assert_eq!(answers(&running, &value).await, (healthz, Err(Code::Unavailable), Err(Code::Unavailable)));
    bring_back(&site);
    is_back(&running, &value).await;
}

async fn from_coasting_and_degraded(mut site: Site) {
    site.set(QUICK).set("outage: {grace: 4s}");
    let (running, value) = with_value(&site).await;
    take_away(&site);
    until_state(&running, "coasting").await;
    assert_eq!(answers(&running, &value).await, ok());
    bring_back(&site);
    is_back(&running, &value).await;
    take_away(&site);
    let (code, _) = until_state(&running, "degraded").await;
    assert_eq!(code, 503);
    let (healthz, encrypt, decrypt) = answers(&running, &value).await;
    let healthz = healthz.map(|text| without_age(&text));
    assert_eq!(
        (healthz.as_deref(), encrypt, decrypt),
        (Ok("kms-unreachable for # s, serving from memory"), Ok(()), Ok(()))
    );
    assert!(running.metric("kube_kms_outage_seconds").await >= 4.0);
    bring_back(&site);
    is_back(&running, &value).await;
}

async fn from_stopped(mut site: Site) {
    site.set(QUICK).set("outage: {grace: 1s, stopAfter: 3s}");
    let (running, value) = with_value(&site).await;
    take_away(&site);
    let (code, page) = until_state(&running, "stopped").await;
    assert!(code == 503 && page.contains("reason=kms-unreachable"), "{page}");
    let refused = Err(Code::Unavailable);
    assert_eq!(
        answers(&running, &value).await,
        (Err(Code::Unavailable), refused, Ok(())),
        "it stops writes, not reads"
    );
    bring_back(&site);
    is_back(&running, &value).await;
}

#[tokio::test]
async fn the_way_back_from_revoked_survives_an_outage_a_restart_and_a_reload() {
    let mut site = Site::aws();
    site.set(QUICK);
    let (running, value) = with_value(&site).await;
    let dead = Code::FailedPrecondition;
    site.kms().disable(ALIAS);
    until_state(&running, "revoked").await;
    assert_eq!(answers(&running, &value).await, (Err(dead), Err(dead), Err(dead)));
    // An outage on top of it changes nothing, and neither does a reload while the KEK is dead.
    site.kms().stop();
    running.until_log("kms-unreachable").await;
    assert_eq!(answers(&running, &value).await, (Err(dead), Err(dead), Err(dead)));
    site.kms().start_again();
    running.signal(rustix::process::Signal::HUP);
    running.until_log("reload").await;
    assert_eq!(answers(&running, &value).await, (Err(dead), Err(dead), Err(dead)));
    // A new process comes to the same end by itself.
    running.kill();
    let running = site.spawn();
    until_state(&running, "revoked").await;
    assert_eq!(answers(&running, &value).await, (Err(dead), Err(dead), Err(dead)));
    site.kms().enable(ALIAS);
    is_back(&running, &value).await;
}

#[tokio::test]
async fn a_denial_coasts_and_opens_everything_or_revokes_as_the_operator_says() {
    for (policy, state) in [("coast", "coasting"), ("revoke", "revoked")] {
        let mut site = Site::aws();
        site.set(QUICK).set(&format!("outage: {{onDenied: {policy}}}"));
        let (running, value) = with_value(&site).await;
        site.kms().revoke(ANY);
        until_state(&running, state).await;
        let dead = Code::FailedPrecondition;
        let expected = if state == "coasting" { ok() } else { (Err(dead), Err(dead), Err(dead)) };
        assert_eq!(answers(&running, &value).await, expected, "{policy}");
        // Three more answers do not change it.
        let calls = site.kms().total_calls();
        site.kms().until(|kms| kms.total_calls() >= calls + 3).await;
        assert_eq!(answers(&running, &value).await, expected, "{policy}");
        site.kms().grant(ANY);
        is_back(&running, &value).await;
    }
}

/// Dead once, then something else: one answer revokes nothing.
#[tokio::test]
async fn one_answer_that_says_dead_among_others_revokes_nothing() {
    let mut site = Site::aws();
    site.set(QUICK).set("revocation: {confirmations: 3}");
    let (running, value) = with_value(&site).await;
    for _ in 0..2 {
        let before = running.settled_log().await;
        site.kms().disable(ALIAS);
        running.until_log_again("reason=kek-disabled", &before).await;
        site.kms().enable(ALIAS);
        is_back(&running, &value).await;
    }
    site.kms().fail_next("Encrypt", 3, Failure::Throttled);
    running.until_log("kms-throttled").await;
    is_back(&running, &value).await;
    let log = running.settled_log().await;
    assert!(!log.contains("wiped"), "{log}");
}
