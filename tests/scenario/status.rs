//! docs/conformance.md, items 17, 18, 20, 28, 29: Status through everything that happens to a plugin.

use super::socket::{QUICK, Stage, moved, opens, quick, readyz, until_state, without_age};
use crate::support::fake_kms::{ANY, Failure};
use crate::support::hand::{bring_back, on_both_keks, rotate, take_away};
use crate::support::site::{Running, Site, sealed, uid};
use kms_v2_client::kms::KmsClient;
use kms_v2_client::plugin::Rpc;
use kms_v2_judge::apiserver::FindingCode;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::Code;

on_both_keks! {
    item_17_the_version_is_the_same_in_a_thousand_calls_through_rotation_outage_and_reload: version_for_good;
    item_18_a_plugin_that_is_restarted_under_an_api_server_is_the_same_plugin: restarted_under_a_client;
    item_20_with_the_kms_away_status_coasts_and_then_says_so_under_the_same_key_id: kms_away;
    item_28_status_is_ok_again_within_ten_seconds_of_recovery: recovery;
}

/// So many Status calls; every answer is kept.
async fn polled(client: &mut KmsClient, seen: &mut BTreeSet<String>, calls: usize) {
    for _ in 0..calls {
        seen.insert(client.status().await.unwrap().version);
    }
}

async fn version_for_good(mut site: Site) {
    site.set(QUICK).set("outage: {grace: 4s}");
    let running = site.start().await;
    let (mut client, mut seen) = (running.client().await, BTreeSet::new());
    let first = running.until_ok().await;
    polled(&mut client, &mut seen, 200).await;
    rotate(&site);
    polled(&mut client, &mut seen, 100).await;
    moved(&running, &first).await;
    polled(&mut client, &mut seen, 100).await;
    take_away(&site);
    until_state(&running, "coasting").await;
    polled(&mut client, &mut seen, 100).await;
    until_state(&running, "degraded").await;
    polled(&mut client, &mut seen, 200).await;
    bring_back(&site);
    running.until_ok().await;
    site.set("epoch: 5");
    site.write_config();
    running.signal(rustix::process::Signal::HUP);
    polled(&mut client, &mut seen, 100).await;
    running.until_log("the new configuration is in force").await;
    polled(&mut client, &mut seen, 200).await;
    assert_eq!(seen, BTreeSet::from(["v2".to_owned()]));
}

async fn restarted_under_a_client(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let stage = Stage::new(&running).await;
    let objects = stage.write("k", 5);
    let key_id = stage.server.write_key_id();
    let mut running = Some(running);
    for clean in [true, false] {
        let old = running.take().unwrap();
        if clean {
            assert!(old.stop().await.success());
        } else {
            old.kill();
        }
        stage.play(12).await;
        running = Some(site.start().await);
        stage.server.plugin_restarted();
        stage.play(25).await;
        assert!(stage.server.readyz().await.is_ok());
        assert_eq!(stage.server.write_key_id(), key_id);
    }
    stage.server.restart().await;
    stage.reads(&objects).await;
    let report = stage.server.report();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(report.counts.rpc(Rpc::Status, Code::Unavailable) > 0, "it did notice the gap");
    assert_eq!((report.key_ids.len(), report.counts.seeds_used), (1, 2));
}

async fn kms_away(mut site: Site) {
    site.set(QUICK).set("outage: {grace: 4s}");
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let stage = Stage::new(&running).await;
    take_away(&site);
    let (code, page) = until_state(&running, "coasting").await;
    assert!(code == 200 && page.contains("reason=kms-unreachable"), "{page}");
    let mut client = running.client().await;
    let status = client.status().await.unwrap();
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &key_id), "by policy, for the grace");
    stage.play(60).await;
    assert!(stage.codes().is_empty());

    let (code, page) = until_state(&running, "degraded").await;
    assert!(code == 503 && page.contains(&key_id), "{page}");
    let status = client.status().await.unwrap();
    let healthz = without_age(&status.healthz);
    assert_eq!((healthz.as_str(), &status.key_id), ("kms-unreachable for # s, serving from memory", &key_id));
    // Not ready, and it writes on: longer than a write state lives.
    stage.play(300).await;
    assert!(stage.server.readyz().await.is_err() && stage.server.write("/k", b"x").is_ok());
    assert_eq!(stage.codes(), [FindingCode::HealthzNotOk]);
    bring_back(&site);
    assert_eq!(running.until_ok().await, key_id);
    stage.play(30).await;
    assert!(stage.server.readyz().await.is_ok());
}

async fn recovery(mut site: Site) {
    site.set(QUICK).set("outage: {grace: 0s}");
    let running = site.start().await;
    take_away(&site);
    until_state(&running, "degraded").await;
    // Long enough for the longest pause between two probes.
    running.until_log("failures=6").await;
    bring_back(&site);
    let began = Instant::now();
    running.until_ok().await;
    println!("item 28: ok after {:?}", began.elapsed());
    assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Waits until Status is not `ok`, and returns its healthz.
async fn until_not_ok(running: &Running) -> String {
    without_age(&running.until_status(|a| a.as_ref().is_ok_and(|s| s.healthz != "ok")).await.unwrap().healthz)
}

#[tokio::test]
async fn item_29_a_missing_decrypt_permission_is_noticed_though_encrypt_is_fine() {
    let site = quick("outage: {grace: 4s}");
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let values = vec![sealed(&mut running.client().await).await];
    site.kms().revoke("Decrypt");
    let (code, page) = until_state(&running, "coasting").await;
    assert!(code == 200 && page.contains("reason=policy-denied"), "{page}");
    assert!(
        running
            .metric("kube_kms_kek_calls_total{provider=\"aws\",operation=\"unwrap\",reason=\"policy-denied\"}")
            .await
            > 0.0
    );
    opens(&running, &values).await;
    assert_eq!(until_not_ok(&running).await, "policy-denied for # s, serving from memory");
    opens(&running, &values).await;
    // A new process has nothing from memory: it never says `ok`, and it does not seal what it could not open.
    assert!(running.stop().await.success());
    let again = site.spawn();
    assert_eq!(
        again.until_status(|a| a.as_ref().is_ok_and(|s| s.healthz.contains("policy"))).await.unwrap().key_id,
        key_id
    );
    assert!(again.client().await.encrypt(vec![1; 32], uid()).await.is_err());
    site.kms().grant("Decrypt");
    assert_eq!(again.until_ok().await, key_id);
    opens(&again, &values).await;
}

#[tokio::test]
async fn item_29_a_missing_encrypt_permission_is_noticed_and_everything_still_opens() {
    let site = quick("outage: {grace: 4s}");
    let running = site.start().await;
    let values = vec![sealed(&mut running.client().await).await];
    site.kms().revoke("Encrypt");
    let (_, page) = until_state(&running, "coasting").await;
    assert!(page.contains("reason=policy-denied"), "{page}");
    assert_eq!(until_not_ok(&running).await, "policy-denied for # s, serving from memory");
    opens(&running, &values).await;
    // Not from memory either: a new process unwraps for whoever reads, with nothing to write with.
    assert!(running.stop().await.success());
    let again = site.spawn();
    let (code, page) = until_state(&again, "starting-known").await;
    assert_eq!(code, 503, "{page}");
    opens(&again, &values).await;
    assert!(site.kms().successful_calls("Decrypt") > 0);
    site.kms().grant("Encrypt");
    again.until_ok().await;
    assert_eq!(readyz(&again).await.0, 200);
}

#[tokio::test]
async fn item_20_a_kms_that_hangs_is_no_other_case() {
    let site = quick("outage: {grace: 4s}");
    let running = site.start().await;
    let key_id = running.until_ok().await;
    site.kms().fail_all(ANY, Failure::Hang);
    until_state(&running, "coasting").await;
    assert_eq!(running.until_ok().await, key_id);
    until_state(&running, "degraded").await;
    assert_eq!(until_not_ok(&running).await, "kms-unreachable for # s, serving from memory");
    site.kms().heal(ANY);
    site.kms().release_hung();
    assert_eq!(running.until_ok().await, key_id);
}
