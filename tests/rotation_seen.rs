//! Rotation as a running plugin sees it, on both KEKs: the key_id changes once and never back, Encrypt follows, what was
//! sealed before opens, and the memory of it all outlives a restart.

use crate::support::hand::{assert_labelled_right, on_both_keks, promote, rotate, versions};
use crate::support::site::{ALIAS, KekKind, Running, Site, sealed, uid};
use kms_v2_api::v2::EncryptResponse;
use std::time::{Duration, Instant};
use tonic::Code;

on_both_keks! {
    a_rotation_changes_the_key_id_once_and_old_values_open: rotation;
    a_key_id_that_was_left_is_refused_and_a_new_epoch_reinstates_the_kek: reinstated;
    what_was_reported_is_remembered_over_kill_9: remembered;
}

const QUICK: &str = "probe: {interval: 1s, timeout: 900ms}";

/// Status again and again until it has been `wanted` for `settled`; the key_ids in order, repeats left out.
async fn timeline(running: &Running, settled: Duration, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut client = running.client().await;
    let mut seen: Vec<String> = Vec::new();
    let began = Instant::now();
    let mut since: Option<Instant> = None;
    loop {
        let key_id = client.status().await.unwrap().key_id;
        if seen.last() != Some(&key_id) {
            since = wanted(&key_id).then(Instant::now);
            seen.push(key_id);
        }
        if since.is_some_and(|since| since.elapsed() > settled) {
            return seen;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it never came: {seen:?}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn opens(running: &Running, values: &[(Vec<u8>, EncryptResponse)]) {
    let mut client = running.client().await;
    for (seed, answer) in values {
        assert_eq!(&client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
    }
}

async fn rotation(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let mut values = vec![sealed(&mut running.client().await).await];
    let mut expected = vec![running.until_ok().await];
    for _ in 0..2 {
        let old = running.until_ok().await;
        rotate(&site);
        let seen = timeline(&running, Duration::from_millis(2500), |id| id != old).await;
        assert_eq!(seen.len(), 2, "one change and no way back: {seen:?}");
        assert_eq!(seen[0], old);
        let value = sealed(&mut running.client().await).await;
        assert_eq!(value.1.key_id, seen[1], "Encrypt follows");
        assert_labelled_right(&site, &value.1, 0).await;
        values.push(value);
        opens(&running, &values).await;
        expected.push(seen[1].clone());
    }
    assert_eq!(running.metric("kube_kms_write_state_published_total{rotated=\"true\"}").await as usize, 2);
    // From an empty keyring as well, and the state file has the whole history.
    running.kill();
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(site.state_file()).unwrap()).unwrap();
    assert_eq!(state["keyId"].as_str().unwrap(), expected[2]);
    assert_eq!(state["left"], serde_json::json!(expected[..2]));
    let again = site.start().await;
    assert_eq!(again.until_ok().await, expected[2]);
    opens(&again, &values).await;
}

#[tokio::test]
async fn an_alias_that_is_pointed_at_another_key_is_a_rotation() {
    let mut site = Site::aws();
    site.set(QUICK);
    let running = site.start().await;
    let old = running.until_ok().await;
    let mut values = vec![sealed(&mut running.client().await).await];
    let other = site.kms().create_key("alias/other");
    site.kms().retarget_alias(ALIAS, "alias/other");
    let seen = timeline(&running, Duration::from_millis(2500), |id| id != old).await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    let value = sealed(&mut running.client().await).await;
    assert_eq!(value.1.key_id, seen[1]);
    assert_eq!(value.1.annotations["kek.kube-kms"], format!("aws:{other}").into_bytes());
    assert_labelled_right(&site, &value.1, 0).await;
    values.push(value);
    opens(&running, &values).await;
    assert!(running.stop().await.success());
    opens(&site.start().await, &values).await;
}

/// Takes the KEK to another version, and gives the way back to the first.
fn away_and_back(site: &Site) -> Box<dyn Fn() + '_> {
    match site.kek() {
        KekKind::Aws(kms) => {
            let first = kms.key_arn(ALIAS);
            kms.create_key("alias/other");
            kms.retarget_alias(ALIAS, "alias/other");
            Box::new(move || kms.retarget_alias(ALIAS, &first))
        }
        KekKind::Local(_) => {
            let first = versions(site)[0].clone();
            rotate(site);
            Box::new(move || promote(site, &first))
        }
    }
}

async fn until_readyz(running: &Running, text: &str) -> (u16, String) {
    let began = Instant::now();
    loop {
        let (code, page) = running.http("/readyz").await;
        if page.contains(text) {
            return (code, page);
        }
        assert!(began.elapsed() < Duration::from_secs(20), "never {text}: {page}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn reinstated(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let first = running.until_ok().await;
    let mut values = vec![sealed(&mut running.client().await).await];
    let back = away_and_back(&site);
    timeline(&running, Duration::ZERO, |id| id != first).await;
    let second = running.until_ok().await;
    values.push(sealed(&mut running.client().await).await);
    back();
    drop(back);

    let (_, page) = until_readyz(&running, "reason=key-id-retired").await;
    assert!(page.contains(&second), "it keeps the key_id: {page}");
    running.until_log("key-id-retired").await;
    assert!(running.log().contains("raise `epoch`"), "the log says what to do\n{}", running.log());
    let value = sealed(&mut running.client().await).await;
    assert_eq!(value.1.key_id, second, "it seals under the data key that it has");
    assert_labelled_right(&site, &value.1, 0).await;
    values.push(value);
    opens(&running, &values).await;

    site.set("epoch: 1");
    site.write_config();
    running.signal(rustix::process::Signal::HUP);
    let seen = timeline(&running, Duration::from_millis(1500), |id| id != second).await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1] != first && seen[1] != second, "{seen:?}");
    until_readyz(&running, "state=ready").await;
    let value = sealed(&mut running.client().await).await;
    assert_eq!(value.1.key_id, seen[1]);
    assert_labelled_right(&site, &value.1, 1).await;
    values.push(value);
    opens(&running, &values).await;
    assert!(running.stop().await.success());
    opens(&site.start().await, &values).await;
}

async fn remembered(mut site: Site) {
    site.set(QUICK);
    let running = site.start().await;
    let first = running.until_ok().await;
    let values = vec![sealed(&mut running.client().await).await];
    let back = away_and_back(&site);
    timeline(&running, Duration::ZERO, |id| id != first).await;
    let second = running.until_ok().await;
    running.kill();
    back();

    // The KMS answers with what was left before the restart: it is not reported again, and nothing is sealed under it.
    let again = site.spawn();
    let (_, page) = until_readyz(&again, "reason=key-id-retired").await;
    assert!(page.contains("state=starting-known") && page.contains(&second), "{page}");
    let mut client = again.client().await;
    let status = client.status().await.unwrap();
    assert_eq!(status.key_id, second);
    assert_eq!(status.healthz, "starting: key-id-retired");
    let refused = client.encrypt(vec![1; 32], uid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    opens(&again, &values).await;
}
