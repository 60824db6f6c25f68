//! Whoever answers in the place of the KMS: a proxy that opens TLS, an emulator, a captive portal. What they say is no verdict about
//! a stored value, and how much they say costs us nothing.

use super::credential::{QUICK, RECOVERY, until_state};
use super::load::try_open;
use crate::support::fake_kms::{ANY, Failure, Flood, Lie};
use crate::support::replica::Replica;
use crate::support::site::{Running, Site, sealed, seed};
use std::time::Duration;
use tonic::Code;

/// Codes that say "later" and nothing about the value.
const LATER: [Code; 2] = [Code::Unavailable, Code::DeadlineExceeded];

/// The most memory that the process has had resident, in KiB.
fn peak(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Probes are rare here: what each Decrypt is told decides.
#[tokio::test]
async fn an_answer_that_cannot_be_used_throws_no_dek_away_and_refuses_no_value() {
    for lie in [Lie::Empty, Lie::Short, Lie::Long, Lie::OtherKey, Lie::Material, Lie::Html] {
        let mut site = Site::aws();
        site.set("probe: {interval: 60s, timeout: 2s}").set("cache: {ttl: 1s}");
        let replica = Replica::of(&site).deks(2).await;
        let running = site.start().await;
        let mut client = running.client().await;
        let values: Vec<_> =
            replica.iter().map(|dek| (seed(), dek)).map(|(seed, dek)| (seed.clone(), dek.seal(&seed))).collect();
        let [known, unknown] = &values[..] else { panic!("two values") };
        try_open(&mut client, known, &[]).await.unwrap();
        let key_id = client.status().await.unwrap().key_id;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        site.kms().fail_all("Decrypt", Failure::Lie(lie));
        try_open(&mut client, known, &[])
            .await
            .unwrap_or_else(|said| panic!("{lie:?}, known: {said:?}\n{}", running.log()));
        let said = try_open(&mut client, unknown, &LATER).await.unwrap_err();
        assert!(LATER.contains(&said.code()), "{lie:?}: {said:?}");
        sealed(&mut client).await;
        site.kms().heal(ANY);
        // At once: a blob that the KMS has refused would be refused for ten seconds more.
        try_open(&mut client, unknown, &[]).await.unwrap_or_else(|said| panic!("{lie:?}, after it: {said:?}"));
        assert_eq!(client.status().await.unwrap().key_id, key_id, "{lie:?}");
        let log = running.log();
        assert!(log.contains("kms-answer-unusable"), "{lie:?}: {log}");
        assert!(log.lines().all(|line| line.len() < 4000), "{lie:?}: a line as long as the answer");
    }
}

/// A probe that is lied to about the material would else report a key_id that nobody else has, and never go back.
#[tokio::test]
async fn an_invented_key_material_id_changes_no_key_id() {
    let mut site = Site::aws();
    site.set(QUICK);
    let running = site.start().await;
    let mut client = running.client().await;
    let key_id = client.status().await.unwrap().key_id;
    let known = sealed(&mut client).await;
    site.kms().fail_all("Decrypt", Failure::Lie(Lie::Material));
    until_state(&running, "coasting", RECOVERY).await;
    let calls = site.kms().calls("Decrypt");
    site.kms().until(|kms| kms.calls("Decrypt") >= calls + 3).await;
    assert!(running.http("/readyz").await.1.contains("reason=kms-answer-unusable"));
    assert_eq!(client.status().await.unwrap().key_id, key_id);
    try_open(&mut client, &known, &[]).await.unwrap();
    sealed(&mut client).await;
    site.kms().heal(ANY);
    until_state(&running, "ready", RECOVERY).await;
    assert_eq!(client.status().await.unwrap().key_id, key_id);
}

#[tokio::test]
async fn an_answer_without_end_takes_no_memory_and_delays_no_encrypt() {
    for flood in [Flood::Body, Flood::Chunks, Flood::Drip, Flood::Head] {
        let mut site = Site::aws();
        site.set(QUICK);
        let running = site.start().await;
        let mut client = running.client().await;
        let known = sealed(&mut client).await;
        let (before, calls) = (peak(&running), site.kms().calls("Encrypt"));
        site.kms().fail_all(ANY, Failure::Flood(flood));
        until_state(&running, "coasting", RECOVERY).await;
        // Each within the caller's three seconds, while four floods come in, one after the other.
        let mut sealed_meanwhile = 0;
        while site.kms().calls("Encrypt") < calls + 4 {
            sealed(&mut client).await;
            try_open(&mut client, &known, &[]).await.unwrap();
            sealed_meanwhile += 1;
            assert!(sealed_meanwhile < 10_000, "{flood:?}: no more probes");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(sealed_meanwhile > 4, "{flood:?}: {sealed_meanwhile}");
        let grown = peak(&running).saturating_sub(before);
        assert!(grown < 24 << 10, "{flood:?}: {grown} KiB more, at {before}");
        if matches!(flood, Flood::Body | Flood::Chunks) {
            assert!(running.log().contains("the answer is larger than 64 KiB"), "{flood:?}: {}", running.log());
        }
        site.kms().heal(ANY);
        until_state(&running, "ready", RECOVERY).await;
    }
}
