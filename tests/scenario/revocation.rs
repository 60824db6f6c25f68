//! docs/conformance.md, item 21: a KEK that is taken away on purpose. Writes stop, DEKs are gone, and nothing but the KEK
//! brings them back.

use super::socket::{Stage, moved, opens, quick, readyz, until_state};
use super::world::{SECOND, Trouble, World, defaults};
use crate::support::hand::{on_both_keks, rotate};
use crate::support::replica::Replica;
use crate::support::site::{ALIAS, KekKind, Running, Site, sealed, uid};
use kms_v2_judge::apiserver::{FindingCode, Happened};
use kube_kms_core::fault::Reason;
use kube_kms_core::health::{OnDenied, noticed_within};
use tonic::Code;

/// From the last good Status an API server writes for three minutes; ten seconds for its own rhythm.
const WRITES_STOP: u64 = 190;

/// Everything that a revoked KEK means, and the way back.
async fn revoked_and_back(site: &Site, running: &Running, take: impl Fn(), give: impl Fn()) {
    let key_id = running.until_ok().await;
    let value = sealed(&mut running.client().await).await;
    let stage = Stage::new(running).await;
    let objects = stage.write("k", 3);
    stage.play(30).await;

    take();
    until_state(running, "revoked").await;
    let disabled = stage.seconds();
    let mut client = running.client().await;
    assert_eq!(client.status().await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.encrypt(vec![1; 32], uid()).await.unwrap_err().code(), Code::FailedPrecondition);
    let refused = client.decrypt(value.1.clone(), uid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(running.metric("kube_kms_keyring_entries").await as usize, 0);
    assert!(!running.http("/metrics").await.1.contains("kube_kms_dek_uses"), "and none to seal with");
    running.until_log("the data keys under it were wiped").await;

    let mut stopped = None;
    for _ in 0..250 {
        stage.play(1).await;
        if stage.server.write("/x", b"x").is_err() {
            stopped = Some(stage.seconds() - disabled);
            break;
        }
    }
    println!("item 21: writes stopped {stopped:?} s after the revocation");
    assert!(stopped.is_some_and(|seconds| seconds <= WRITES_STOP), "{stopped:?}");
    assert_eq!(stage.codes(), [FindingCode::WriteStateExpired]);
    // What the API server has in its own cache it reads on.
    stage.reads(&objects).await;

    give();
    assert_eq!(running.until_ok().await, key_id, "the same KEK version has the same key_id");
    stage.play(15).await;
    assert!(stage.server.write("/x", b"x").is_ok());
    assert!(stage.server.report().timeline.iter().any(|e| e.happened == Happened::WritesRevived));
    opens(running, &[value]).await;
    stage.server.restart().await;
    stage.reads(&objects).await;
    assert_eq!(readyz(running).await.0, 200, "{}", site.dir().display());
}

#[tokio::test]
async fn item_21_a_disabled_kek_stops_writes_within_three_minutes_and_ten_seconds_and_its_deks_are_gone() {
    let site = quick("");
    let running = site.start().await;
    let kms = site.kms();
    revoked_and_back(&site, &running, || kms.disable(ALIAS), || kms.enable(ALIAS)).await;
}

#[tokio::test]
async fn a_revoked_kek_is_not_asked_about_what_is_under_it() {
    let site = quick("");
    let unknown = Replica::of(&site).sealed(&[7; 32]).await;
    let running = site.start().await;
    let known = sealed(&mut running.client().await).await.1;
    site.kms().disable(ALIAS);
    until_state(&running, "revoked").await;
    let mut client = running.client().await;
    let mut asked_for = Vec::new();
    for value in [&known, &unknown, &unknown] {
        asked_for.push(uid());
        let refused = client.decrypt(value.clone(), asked_for.last().unwrap().clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains(Reason::KekDisabled.label()), "{refused:?}");
    }
    // The uid of a request is in the user agent of what the KMS is asked because of it.
    let agents: Vec<_> = site.kms().requests().into_iter().filter_map(|call| call.user_agent).collect();
    assert!(!asked_for.iter().any(|uid| agents.iter().any(|agent| agent.contains(uid))), "{agents:#?}");
    site.kms().enable(ALIAS);
    running.until_ok().await;
    asked_for.push(uid());
    client.decrypt(unknown, asked_for[3].clone()).await.unwrap();
    let agents: Vec<_> = site.kms().requests().into_iter().filter_map(|call| call.user_agent).collect();
    assert!(agents.iter().any(|agent| agent.contains(&asked_for[3])), "the judge can see one: {agents:#?}");
}

#[tokio::test]
async fn item_21_a_kek_pending_deletion_is_as_dead_as_a_disabled_one() {
    let site = quick("");
    let running = site.start().await;
    let kms = site.kms();
    revoked_and_back(&site, &running, || kms.schedule_deletion(ALIAS), || kms.enable(ALIAS)).await;
}

#[tokio::test]
async fn item_21_a_denial_is_a_revocation_when_the_operator_says_so() {
    let site = quick("outage: {onDenied: revoke}");
    let running = site.start().await;
    let kms = site.kms();
    revoked_and_back(&site, &running, || kms.revoke("Decrypt"), || kms.grant("Decrypt")).await;
}

/// With the default settings, on the simulator's clock from the moment that the KEK is disabled: the probe's interval comes
/// to the three minutes.
#[tokio::test(start_paused = true)]
async fn item_21_with_the_default_settings_writes_stop_three_minutes_after_the_next_probe() {
    for on_denied in [OnDenied::Coast, OnDenied::Revoke] {
        let dead = if on_denied == OnDenied::Coast { Reason::KekDisabled } else { Reason::CredentialsRejected };
        for seed in 0..10 {
            let world = World::new(seed);
            let mut settings = defaults();
            settings.policy.on_denied = on_denied;
            let node = world.node(settings);
            node.until("ready").await;
            let server = world.server(&node).await;
            world.play(&[&server], SECOND * u32::try_from(world.dice.below(120)).unwrap(), |_| {}).await;
            world.kms.trouble(Some(Trouble::Says(dead)));
            let noticed = node.until("revoked").await;
            let settings = defaults();
            let bound = noticed_within(settings.probe_interval, settings.probe_timeout, settings.policy.confirmations);
            assert!(noticed <= bound, "{noticed:?}");
            assert_eq!(node.snapshot().keyring_entries, 0);
            let began = world.seconds();
            let mut stopped = None;
            world
                .play(&[&server], SECOND * 240, |_| {
                    if stopped.is_none() && server.write("/x", b"x").is_err() {
                        stopped = Some(world.seconds() - began);
                    }
                })
                .await;
            assert!(stopped.is_some_and(|s| s <= WRITES_STOP), "seed {seed}: {stopped:?}");
        }
    }
}

/// An alias that points at a dead key says nothing about the key that the data is under.
#[tokio::test]
async fn an_alias_that_is_pointed_at_a_disabled_key_neither_stops_reads_nor_wipes_deks() {
    let site = quick("");
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let first = site.kms().key_arn(ALIAS);
    let values = vec![sealed(&mut running.client().await).await];
    site.kms().create_key("alias/other");
    site.kms().disable("alias/other");
    site.kms().retarget_alias(ALIAS, "alias/other");
    running.until_log("failures=3").await;
    let (_, page) = readyz(&running).await;
    assert!(page.contains("state=coasting ") && page.contains(&key_id), "{page}");
    assert!(running.metric("kube_kms_keyring_entries").await >= 1.0);
    opens(&running, &values).await;
    // The key itself disabled as well: now it is dead, and that is another matter.
    site.kms().disable(&first);
    until_state(&running, "revoked").await;
    assert!(running.client().await.decrypt(values[0].1.clone(), uid()).await.is_err());
    site.kms().enable(&first);
    site.kms().retarget_alias(ALIAS, &first);
    assert_eq!(running.until_ok().await, key_id);
    opens(&running, &values).await;
}

/// A process that never had a write state unwraps for whoever reads; when the KEK dies, those DEKs go too.
#[tokio::test]
async fn a_kek_that_dies_before_the_first_write_state_takes_the_deks_of_reads_with_it() {
    let site = quick("");
    let first = site.start().await;
    let values = vec![sealed(&mut first.client().await).await];
    assert!(first.stop().await.success());
    site.kms().revoke("Encrypt");
    let running = site.spawn();
    opens(&running, &values).await;
    assert_eq!(running.metric("kube_kms_keyring_entries").await as usize, 1);
    site.kms().disable(ALIAS);
    site.kms().grant("Encrypt");
    until_state(&running, "revoked").await;
    assert_eq!(running.metric("kube_kms_keyring_entries").await as usize, 0);
    assert!(running.client().await.decrypt(values[0].1.clone(), uid()).await.is_err());
    site.kms().enable(ALIAS);
    running.until_ok().await;
    opens(&running, &values).await;
}

on_both_keks! {
    a_rotation_away_from_a_version_leaves_its_values_readable_and_a_dead_blob_revokes_nothing: old_version;
}

/// Values of before a rotation open until their KEK version is really gone, and then only they fail.
async fn old_version(mut site: Site) {
    site.set(super::socket::QUICK);
    let running = site.start().await;
    let old = running.until_ok().await;
    let before = sealed(&mut running.client().await).await;
    match site.kek() {
        KekKind::Local(_) => rotate(&site),
        KekKind::Aws(kms) => {
            kms.create_key("alias/next");
            kms.retarget_alias(ALIAS, "alias/next");
        }
    }
    moved(&running, &old).await;
    let after = sealed(&mut running.client().await).await;
    opens(&running, &[before.clone(), after.clone()]).await;
    let KekKind::Aws(kms) = site.kek() else { return };
    let arn = String::from_utf8(before.1.annotations["kek.kube-kms"].clone()).unwrap();
    kms.disable(arn.strip_prefix("aws:").unwrap());
    running.kill();
    let again = site.start().await;
    let refused = again.client().await.decrypt(before.1, uid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    opens(&again, &[after]).await;
    assert_eq!(readyz(&again).await.0, 200);
}
