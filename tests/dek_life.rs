//! The life of a data key on the real binary: replaced by use and by age, in the background, under the same key_id, and
//! never at the cost of a request (docs/conformance.md, items 40, 42 and 59 stand behind it; docs/configuration.md `dek`).

use crate::support::beside::Beside;
use crate::support::fake_kms::{ANY, Failure};
use crate::support::hand::{assert_labelled_right, bring_back, kek_calls, on_both_keks, take_away};
use crate::support::site::{Running, Site, sealed, uid};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use std::time::{Duration, Instant};

on_both_keks! {
    a_dek_is_replaced_after_max_uses_and_what_it_sealed_opens_without_the_kms: replaced_by_use;
    a_dek_that_is_due_while_the_kms_is_away_seals_on_until_it_is_back: due_while_away;
}

fn dek(answer: &EncryptResponse) -> &[u8] {
    &answer.annotations["dek.kube-kms"]
}

/// Seals until another data key than this one seals.
async fn until_another_dek(
    running: &Running,
    client: &mut KmsClient,
    old: &EncryptResponse,
    patience: Duration,
) -> EncryptResponse {
    let began = Instant::now();
    loop {
        let (_, answer) = sealed(client).await;
        assert_eq!(answer.key_id, old.key_id, "replacing a data key never changes the key_id");
        if dek(&answer) != dek(old) {
            return answer;
        }
        assert!(began.elapsed() < patience, "the data key was not replaced\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn replaced_by_use(mut site: Site) {
    site.set("probe: {interval: 10m}\ndek: {maxUses: 1000}");
    let running = site.start().await;
    let mut client = running.client().await;
    let mut old = Vec::new();
    for generation in 1..=3_usize {
        for n in 0..1000 {
            let (seed, answer) = sealed(&mut client).await;
            if n == 0 {
                old.push((seed, answer));
            }
        }
        let (_, first) = &old[old.len() - 1];
        until_another_dek(&running, &mut client, first, Duration::from_secs(20)).await;
        assert_eq!(
            running.metric("kube_kms_write_state_published_total{rotated=\"false\"}").await as usize,
            generation + 1
        );
    }
    assert_eq!(running.metric("kube_kms_write_state_published_total{rotated=\"true\"}").await as usize, 0);
    let before = kek_calls(&site, &running).await;
    assert_eq!(before, 2 * 4, "a wrap and an unwrap for each data key");
    for (seed, answer) in &old {
        assert_eq!(&client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
    }
    assert_eq!(kek_calls(&site, &running).await, before, "a data key that was replaced is still in the keyring");
    for (_, answer) in &old {
        assert_labelled_right(&site, answer, 0).await;
    }
}

/// A minute, because `dek.maxAge` is at least that.
async fn replaced_by_age(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 900ms}\ndek: {maxAge: 1m}");
    let running = site.start().await;
    let began = Instant::now();
    let mut client = running.client().await;
    let (seed, first) = sealed(&mut client).await;
    let second = until_another_dek(&running, &mut client, &first, Duration::from_secs(90)).await;
    assert!(began.elapsed() > Duration::from_secs(58), "replaced after {:?}", began.elapsed());
    println!("dek.maxAge 1m: replaced after {:?}", began.elapsed());
    for _ in 0..50 {
        let (_, answer) = sealed(&mut client).await;
        assert_eq!(dek(&answer), dek(&second), "the next one is due in a minute");
    }
    assert_eq!(client.decrypt(first, uid()).await.unwrap().plaintext, seed);
}

/// Both KEKs in the same minute.
#[tokio::test]
async fn a_dek_is_replaced_after_max_age_and_not_before() {
    tokio::join!(replaced_by_age(Site::local()), replaced_by_age(Site::aws()));
}

async fn due_while_away(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 500ms}\ndek: {maxUses: 10}");
    let running = site.start().await;
    let mut client = running.client().await;
    take_away(&site);
    let (seed, first) = sealed(&mut client).await;
    let mut made = vec![(seed, first.clone())];
    // The due renewal is tried at once and fails; the old data key goes on, far past `maxUses`.
    while made.len() < 200 {
        let (seed, answer) = sealed(&mut client).await;
        assert_eq!((dek(&answer), &answer.key_id), (dek(&first), &first.key_id));
        made.push((seed, answer));
    }
    running.until_log("the probe of the KEK failed").await;
    let status = client.status().await.unwrap();
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &first.key_id));
    bring_back(&site);
    until_another_dek(&running, &mut client, &first, Duration::from_secs(20)).await;
    for (seed, answer) in made {
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    }
}

#[tokio::test]
async fn encrypt_does_not_wait_for_a_kms_that_hangs_while_a_new_dek_is_due() {
    let mut site = Site::aws();
    site.set("probe: {interval: 11s, timeout: 10s}\ndek: {maxUses: 5}");
    let running = site.start().await;
    let mut client = running.client().await;
    let (_, first) = sealed(&mut client).await;
    site.kms().fail_all(ANY, Failure::Hang);
    for _ in 0..4 {
        sealed(&mut client).await;
    }
    site.kms().until(|kms| kms.hung_calls() == 1).await;
    // Who waited for it would lose against the client's timer of three seconds.
    for _ in 0..100 {
        let (_, answer) = sealed(&mut client).await;
        assert_eq!(dek(&answer), dek(&first));
    }
    assert_eq!(site.kms().hung_calls(), 1, "it hung all the while, and nothing more was asked");
    site.kms().heal(ANY);
    site.kms().release_hung();
    until_another_dek(&running, &mut client, &first, Duration::from_secs(20)).await;
}

#[tokio::test]
async fn encrypt_stays_under_100_ms_with_a_kms_that_takes_50_ms_for_every_call() {
    let mut site = Site::aws();
    site.set("dek: {maxUses: 3}");
    site.kms().set_latency(ANY, Duration::from_millis(50));
    let running = site.start().await;
    let mut client = running.client().await;
    let mut beside = Beside::start().await;
    for _ in 0..200 {
        beside.time(sealed(&mut client)).await;
    }
    beside.assert_late_at_most("the median is that of no KMS call", Duration::from_millis(50), 99);
    beside.assert_late_at_most("a DEK every third time", Duration::from_millis(100), 2);
}
