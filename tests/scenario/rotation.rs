//! docs/conformance.md, items 63 to 66, 69 and 70, and what the README says of rotation: each kind of it moves Status once,
//! within the interval times the observations, and everything of before opens.

use super::socket::{QUICK, Stage, moved, opens, quick, readyz, timeline};
use crate::support::fake_kms::{FakeKms, RotationEnd};
use crate::support::hand::{assert_labelled_right, on_both_keks, rotate};
use crate::support::site::{ALIAS, Running, Site, sealed, seed, uid};
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use std::time::{Duration, Instant};

on_both_keks! {
    item_63_status_moves_once_and_every_encrypt_has_the_key_id_of_the_status_before_it: pairs;
    item_69_the_time_of_a_rotation_is_bounded_and_stands_in_the_metrics: bounded;
    item_70_a_restart_between_rotation_and_first_poll_reports_the_old_or_the_new_and_never_the_old_again: restarted;
    an_automatic_rotation_moves_status_exactly_once_and_every_version_opens_on_an_empty_replica: automatic;
}

/// The probe's interval of [`QUICK`] times two observations, a tenth of jitter, and what a busy machine adds.
const BOUND: Duration = Duration::from_millis(2200 + 1800);
const SETTLED: Duration = Duration::from_millis(2500);

async fn pairs(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let (mut client, mut seen, mut misses, mut calls) = (running.client().await, Vec::new(), 0, 0);
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut is_rotated = false;
    while began.elapsed() < Duration::from_secs(8) {
        ticks.tick().await;
        if !is_rotated && began.elapsed() > Duration::from_secs(1) {
            rotate(&site);
            is_rotated = true;
        }
        let status = client.status().await.unwrap();
        assert_eq!(status.healthz, "ok");
        let encrypted = client.encrypt(seed(), uid()).await.unwrap();
        misses += u32::from(encrypted.key_id != status.key_id);
        if seen.last() != Some(&status.key_id) {
            seen.push(status.key_id);
        }
        calls += 1;
    }
    assert_eq!(seen.len(), 2, "one transition: {seen:?}");
    assert!(misses <= 1, "a swap between the two calls may be seen once: {misses}");
    println!("item 63: {calls} pairs, {misses} misses");
}

/// On the binary, with the KMS answering the old and the new version by turns. An hour of it, by chance, is played in `day`.
#[tokio::test]
async fn item_64_answers_that_alternate_for_twenty_seconds_move_status_once_and_never_back() {
    let site = quick("");
    let running = site.start().await;
    let old = running.until_ok().await;
    let value = sealed(&mut running.client().await).await;
    site.kms().rotate(ALIAS);
    site.kms().alternate_answers(ALIAS, true);
    let (mut client, mut seen) = (running.client().await, vec![old.clone()]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        let status = client.status().await.unwrap();
        assert_eq!(status.healthz, "ok");
        if seen.last() != Some(&status.key_id) {
            seen.push(status.key_id);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seen.len() <= 2, "{seen:?}");
    assert!(site.kms().successful_calls("Encrypt") > 12, "it was asked often enough to be confused");
    site.kms().alternate_answers(ALIAS, false);
    let last = seen.last().unwrap().clone();
    if last == old {
        seen.push(moved(&running, &old).await);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    opens(&running, &[value]).await;
}

#[tokio::test]
async fn item_66_a_version_that_cannot_wrap_yet_is_not_announced_until_it_can() {
    let site = quick("");
    let running = site.start().await;
    let stage = Stage::new(&running).await;
    // First wraps fail, then wraps are fine and what they make cannot be unwrapped: neither is announced.
    for missing in ["Encrypt", "Decrypt"] {
        let old = running.until_ok().await;
        site.kms().revoke(missing);
        site.kms().rotate(ALIAS);
        let tried = site.kms().calls(missing);
        site.kms().until(|kms| kms.calls(missing) >= tried + 4).await;
        let status = running.client().await.status().await.unwrap();
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &old));
        assert_eq!(sealed(&mut running.client().await).await.1.key_id, old);
        stage.play(30).await;
        assert_eq!(stage.server.write_key_id(), Some(old.clone()));
        site.kms().grant(missing);
        let seen = timeline(&running, &old, SETTLED).await;
        assert_eq!(seen.len(), 2, "{seen:?}");
        stage.until_it_writes_under(&seen[1]).await;
    }
    let report = stage.server.report();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.key_ids.len(), 3);
}

async fn bounded(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    assert_eq!(running.metric("kube_kms_last_rotation_timestamp_seconds").await, 0.0, "absent until it has");
    let (old, began) = (running.until_ok().await, Instant::now());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    rotate(&site);
    let new = moved(&running, &old).await;
    assert!(began.elapsed() <= BOUND, "{:?}", began.elapsed());
    println!("item 69: {:?}", began.elapsed());
    assert!(running.metric("kube_kms_last_rotation_timestamp_seconds").await >= since.floor());
    assert_eq!(running.metric("kube_kms_write_state_published_total{rotated=\"true\"}").await as usize, 1);
    let page = running.http("/metrics").await.1;
    let info: Vec<_> = page.lines().filter(|l| l.starts_with("kube_kms_key_info")).collect();
    assert!(info.len() == 1 && info[0].contains(&new), "{info:?}");
}

async fn restarted(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let old = running.until_ok().await;
    let value = sealed(&mut running.client().await).await;
    running.kill();
    rotate(&site);
    let again = site.spawn();
    let (mut client, mut seen) = (again.client().await, Vec::new());
    let began = Instant::now();
    // It knows the old one before it has asked anybody.
    while began.elapsed() < Duration::from_secs(4) {
        let key_id = client.status().await.unwrap().key_id;
        if seen.last() != Some(&key_id) {
            seen.push(key_id);
        }
    }
    let new = again.until_ok().await;
    assert_ne!(new, old);
    assert!(seen == [old.clone(), new.clone()] || seen == [new.clone()], "{seen:?}");
    opens(&again, &[value]).await;
    // Once more, now that the new one was reported: it is never the old one again.
    again.kill();
    let third = site.spawn();
    let first_word = third.until_status(Result::is_ok).await.unwrap();
    assert_eq!(first_word.key_id, new);
    assert_eq!(third.until_ok().await, new);
}

/// Rotates by `event`, and holds: exactly one change of Status, in time, and an API server that follows without a finding.
async fn moves_once(site: &Site, running: &Running, stage: &Stage, event: impl Fn()) -> String {
    let old = running.until_ok().await;
    let began = Instant::now();
    event();
    let seen = timeline(running, &old, SETTLED).await;
    let took = began.elapsed() - SETTLED;
    assert!(seen.len() == 2 && took <= BOUND, "{seen:?} after {took:?}");
    stage.until_it_writes_under(&seen[1]).await;
    let value = sealed(&mut running.client().await).await;
    assert_labelled_right(site, &value.1, 0).await;
    seen[1].clone()
}

async fn automatic(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let stage = Stage::new(&running).await;
    let mut objects = stage.write("v0-", 3);
    let mut values = vec![sealed(&mut running.client().await).await];
    for n in 1..=3 {
        moves_once(&site, &running, &stage, || rotate(&site)).await;
        objects.extend(stage.write(&format!("v{n}-"), 3));
        values.push(sealed(&mut running.client().await).await);
    }
    assert!(stage.codes().is_empty(), "{:?}", stage.codes());
    assert_eq!(stage.server.report().key_ids.len(), 4);
    // A replica that was never there, with nothing in memory and nothing on disk.
    let empty = site.replica().start().await;
    assert_eq!(empty.until_ok().await, running.until_ok().await);
    opens(&empty, &values).await;
    Stage::new(&empty).await.reads(&objects).await;
}

#[tokio::test]
async fn an_alias_that_is_pointed_at_another_key_moves_status_exactly_once_and_both_keys_open_on_an_empty_replica() {
    let site = quick("");
    let running = site.start().await;
    let stage = Stage::new(&running).await;
    let mut objects = stage.write("a", 3);
    site.kms().create_key("alias/other");
    moves_once(&site, &running, &stage, || site.kms().retarget_alias(ALIAS, "alias/other")).await;
    objects.extend(stage.write("b", 3));
    assert!(stage.codes().is_empty(), "{:?}", stage.codes());
    let empty = site.replica().start().await;
    Stage::new(&empty).await.reads(&objects).await;
}

/// As an operator's `aws kms rotate-key-on-demand`.
async fn rotate_on_demand(kms: &FakeKms) {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(kms.region().to_owned()))
        .endpoint_url(kms.url())
        .credentials_provider(Credentials::new("AKIDTEST", "not-a-secret", None, None, "test"))
        .build();
    let key = kms.key_arn(ALIAS);
    aws_sdk_kms::Client::from_conf(config).rotate_key_on_demand().key_id(key).send().await.unwrap();
}

#[tokio::test]
async fn an_on_demand_rotation_that_completes_late_moves_status_when_it_is_complete_and_not_before() {
    let site = quick("");
    let running = site.start().await;
    let stage = Stage::new(&running).await;
    let old = running.until_ok().await;
    let mut objects = stage.write("a", 3);
    site.kms().on_demand_rotations_end(RotationEnd::WhenTold);
    rotate_on_demand(site.kms()).await;
    let asked = site.kms().calls("Encrypt");
    site.kms().until(|kms| kms.calls("Encrypt") >= asked + 4).await;
    assert_eq!(running.until_ok().await, old, "nothing is rotated yet");
    moves_once(&site, &running, &stage, || site.kms().finish_rotation(ALIAS)).await;
    objects.extend(stage.write("b", 3));
    assert!(stage.codes().is_empty(), "{:?}", stage.codes());
    let empty = site.replica().start().await;
    Stage::new(&empty).await.reads(&objects).await;
}

/// Back to an earlier version, with an API server watching: it never sees a key_id twice, until `epoch` gives a new one.
#[tokio::test]
async fn item_65_a_primary_that_is_set_back_is_not_followed_and_an_epoch_reinstates_it() {
    let mut site = quick("");
    let running = site.start().await;
    let first = site.kms().key_arn(ALIAS);
    let stage = Stage::new(&running).await;
    let mut objects = stage.write("a", 3);
    site.kms().create_key("alias/other");
    let second = moves_once(&site, &running, &stage, || site.kms().retarget_alias(ALIAS, "alias/other")).await;
    objects.extend(stage.write("b", 3));
    site.kms().retarget_alias(ALIAS, &first);
    running.until_log("left: the KMS went back to a KEK version").await;
    let (code, page) = readyz(&running).await;
    assert!(code == 200 && page.contains("state=ready reason=key-id-retired") && page.contains(&second), "{page}");
    assert_eq!(running.metric("kube_kms_kek_version_refused").await, 1.0);
    stage.play(200).await;
    objects.extend(stage.write("c", 3));
    site.set("epoch: 1");
    site.write_config();
    running.signal(rustix::process::Signal::HUP);
    let third = moved(&running, &second).await;
    stage.until_it_writes_under(&third).await;
    objects.extend(stage.write("d", 3));
    assert!(stage.codes().is_empty(), "{:?}", stage.codes());
    let seen: Vec<_> = stage.server.report().key_ids.into_iter().map(|k| k.key_id).collect();
    assert!(seen.len() == 3 && seen[0] != seen[2], "{seen:?}");
    assert_eq!(readyz(&running).await.0, 200);
    Stage::new(&site.replica().start().await).await.reads(&objects).await;
}
