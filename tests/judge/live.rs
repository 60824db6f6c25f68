//! What an API server does all day: it starts before its plugin, writes, reads, has its plugin replaced under load and its
//! configuration changed under load.

use super::layout::{Entry, PROVIDER};
use super::pair::{Pair, Stored};
use super::scenarios;
use super::shadow::{hash, times};
use crate::support::apiserver_go::Release;
use crate::support::site::{Running, Site};
use kube_kms::api::stored;
use kube_kms::api::v2::EncryptedDekSourceType;
use std::time::Duration;

scenarios! {
    the_real_api_server_finds_a_plugin_that_comes_late: late;
    a_thousand_real_writes_share_one_seed_and_read_across: thousand;
    a_take_over_under_real_load_fails_nothing: take_over;
    a_configuration_is_reloaded_under_real_load_and_fails_nothing: reload;
}

/// How often the plugin has answered that RPC well.
pub async fn served(running: &Running, rpc: &str) -> u64 {
    let (_, page) = running.http("/metrics").await;
    let wanted = [format!("rpc=\"{rpc}\""), "code=\"OK\"".to_owned()];
    let lines = page.lines().filter(|l| l.starts_with("kube_kms_rpc_requests_total"));
    let wanted = lines.filter(|l| wanted.iter().all(|w| l.contains(w.as_str())));
    wanted.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

async fn late(release: Release) {
    let site = Site::local();
    let pair = Pair::start(release, &site).await;
    for refused in pair.try_write("too-early").await {
        assert!(refused.unwrap_err().contains("got unexpected nil transformer"));
    }
    // Two evaluations fail: one at load, one when the first bad result is three seconds old.
    let down = pair.readyz().await.unwrap_err();
    assert!(down.contains("DeadlineExceeded"), "{down}");
    let failures = loop {
        let _ = pair.readyz().await;
        let failed = pair.sim.report().counts.evaluations_unhealthy;
        if failed >= 2 {
            break failed;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(failures >= 2);
    let running = site.start().await;
    // The backoff of grpc-go after some seconds, and a bad result that is kept for three.
    pair.until_ready(Duration::from_secs(45)).await;
    let all = pair.write("late").await;
    pair.read(&all, false).await;
    assert_eq!(served(&running, "Encrypt").await, 2, "one seed for each API server");
}

async fn thousand(release: Release) {
    let site = Site::local();
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let encrypts = served(&running, "Encrypt").await;
    let pair = Pair::start(release, &site).await;
    let plan: Vec<_> = (0..1000).map(|n| Stored::plan(&format!("s{n}"))).collect();
    let objects: Vec<_> = plan.iter().map(|s| (s.key.as_str(), s.plaintext.as_slice())).collect();
    let values = pair.real.write(&objects).await;
    let by_real: Vec<_> = plan.into_iter().zip(values).map(|(s, value)| s.with(value.unwrap())).collect();
    let by_sim: Vec<_> = (0..10)
        .map(|n| Stored::plan(&format!("sim{n}")))
        .map(|s| pair.sim.write(&s.key, &s.plaintext).map(|value| s.with(value)).unwrap())
        .collect();
    assert_eq!(served(&running, "Encrypt").await - encrypts, 2, "one seed for each API server");
    let seed = |s: &Stored| stored::decode(&s.value).unwrap().1.encrypted_dek_source;
    for s in by_real.iter().chain(&by_sim) {
        assert!(s.value.starts_with(b"k8s:enc:kms:v2:judge:"));
        let (name, object) = stored::decode(&s.value).unwrap();
        assert_eq!((name, object.key_id.as_str()), (PROVIDER, key_id.as_str()));
        assert_eq!(object.encrypted_dek_source_type, EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed as i32);
        assert!(!s.value.windows(8).any(|w| s.plaintext.windows(8).any(|p| p == w)), "plaintext in {}", s.key);
    }
    assert!(by_real.iter().all(|s| seed(s) == seed(&by_real[0])));
    assert_ne!(seed(&by_real[0]), seed(&by_sim[0]));
    // Across: each opens what the other wrote, at the cost of one Decrypt.
    pair.read(&[by_real.clone(), by_sim.clone()].concat(), false).await;
    let rpcs = pair.agree().await;
    assert_eq!((times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK")), (1, 1));
    assert!(pair.real.metrics().await.iter().any(|s| s.labels.get("key_id_hash") == Some(&hash(&key_id))));
    // Bound to its place: as another object it opens for neither.
    let moved = Stored { key: by_real[1].key.clone(), ..by_real[0].clone() };
    assert!(pair.real.read(&[(&moved.key, &moved.value)]).await[0].is_err());
    assert!(pair.sim.read(&moved.key, &moved.value).await.is_err());
}

/// Objects that each need a Decrypt, as after many restarts of many API servers.
async fn of_many_seeds(pair: &Pair, count: usize) -> Vec<Stored> {
    let mut all = Vec::with_capacity(count);
    for n in 0..count {
        pair.sim.restart().await;
        let s = Stored::plan(&format!("seed{n}"));
        let value = pair.sim.write(&s.key, &s.plaintext).unwrap();
        all.push(s.with(value));
    }
    all
}

async fn take_over(release: Release) {
    let site = Site::local();
    let old = site.start().await;
    let pair = Pair::start(release, &site).await;
    let unseen = of_many_seeds(&pair, 300).await;
    let mut unread = unseen.chunks(50);
    let mut read = async || {
        for s in unread.next().unwrap() {
            let object = pair.real.read(&[(&s.key, &s.value)]).await.remove(0);
            assert_eq!(object.unwrap().plaintext, s.plaintext);
        }
    };
    pair.real.storm().await;
    read().await;
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("listening").await;
    read().await;
    // The old one drains while it is asked.
    let (stopped, ()) = tokio::join!(old.stop(), read());
    assert!(stopped.success());
    read().await;
    // An API server that starts now, and has seen nothing.
    let another = Pair::start(release, &site).await;
    another.readyz().await.unwrap();
    another.read(&unseen[..100], false).await;
    pair.readyz().await.unwrap();
    let storm = pair.real.calm().await;
    storm.assert_unharmed();
    assert!(served(&new, "Decrypt").await >= 150, "the successor served");
}

async fn reload(release: Release) {
    let site = Site::local();
    let running = site.start().await;
    let mut pair = Pair::start(release, &site).await;
    let all = pair.write("before").await;
    pair.read(&all, false).await;
    pair.real.storm().await;
    pair.reload(vec![Entry::Kms { name: PROVIDER, socket: site.socket(), timeout: 4 }, Entry::Identity]).await;
    let storm_goes_on = pair.write("after").await;
    pair.read(&[all, storm_goes_on].concat(), false).await;
    let storm = pair.real.calm().await;
    storm.assert_unharmed();
    // A new connection, a new seed, and a memory that is empty: both read everything again.
    // The storm's own readers asked for its old seed again, each for itself, and the simulator has none.
    let rpcs = pair.agree_on(|rpc| rpc != "Decrypt").await;
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 2);
    assert!((4..=8).contains(&times(&rpcs, "Decrypt", "OK")), "{rpcs:?}");
    assert_eq!(served(&running, "Encrypt").await, 4);
}
