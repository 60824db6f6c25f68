//! What an API server does all day: it starts before its plugin, writes, reads, has its plugin replaced under load and its
//! configuration changed under load.

use super::layout::{Entry, PROVIDER};
use super::pair::{Pair, Stored};
use super::scenarios;
use super::shadow::{hash, times};
use crate::support::apiserver_go::Release;
use crate::support::site::{Running, Site};
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptedDekSourceType;
use std::time::{Duration, Instant};

scenarios! {
    the_real_api_server_finds_a_plugin_that_comes_half_a_minute_late: late;
    a_thousand_real_writes_share_one_seed_and_read_across: thousand;
    a_take_over_under_real_load_fails_nothing: take_over;
    a_configuration_is_reloaded_under_real_load_and_fails_nothing: reload;
    from_plaintext_to_one_kms_and_on_to_another_under_real_load_everything_stays_readable: moved;
}

/// How late the plugin comes.
pub const LATE: Duration = Duration::from_secs(30);
/// The sixth backoff of grpc-go is 10.5 s, the seventh 16.8, each with a fifth more or less; and this machine.
pub const AFTER_A_LATE_START: Duration = Duration::from_secs(17 + 4 + 3 + 21);

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
    let began = Instant::now();
    let pair = Pair::start(release, &site).await;
    for refused in pair.try_write("too-early").await {
        assert!(refused.unwrap_err().contains("got unexpected nil transformer"));
    }
    let down = pair.readyz().await.unwrap_err();
    assert!(down.contains("DeadlineExceeded"), "{down}");
    // A kubelet asks all the time: an evaluation of three seconds, and a bad result that is kept for three.
    while began.elapsed() < LATE {
        pair.readyz().await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let failed = pair.sim.report().counts.evaluations_unhealthy;
    assert!((4..=6).contains(&failed), "{failed} in {LATE:?}");
    let running = site.start().await;
    // What is left of the backoff of grpc-go after half a minute, and a bad result that is kept for three seconds.
    pair.until_ready(AFTER_A_LATE_START).await;
    let all = pair.write("late").await;
    pair.read(&all, false).await;
    assert_eq!(served(&running, "Encrypt").await, 2, "one seed for each API server");
    let rpcs = pair.agree_on_successes().await;
    assert_eq!((times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK")), (1, 1));
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
    storm.assert_unharmed(1000);
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
    storm.assert_unharmed(1000);
    // A new connection, a new seed, and a memory that is empty: both read everything again.
    // The storm's own readers asked for its old seed again, each for itself, and the simulator has none.
    let rpcs = pair.agree_on(|rpc| rpc != "Decrypt").await;
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 2);
    assert!((4..=8).contains(&times(&rpcs, "Decrypt", "OK")), "{rpcs:?}");
    assert_eq!(served(&running, "Encrypt").await, 4);
}

/// The life of a cluster: plaintext, then one KMS, then another, each change while it is written and read.
async fn moved(release: Release) {
    let (one, two) = (Site::local(), Site::local());
    let (running_one, running_two) = tokio::join!(one.start(), two.start());
    let (one, two) = (Entry::kms("one", &one), Entry::kms("two", &two));
    let plain = Entry::Identity;
    let site = Site::local();
    let mut pair = Pair::start_with(release, &site, vec![plain.clone(), one.clone()]).await;
    let provider = |s: &Stored| stored::decode(&s.value).ok().map(|(name, _)| name.to_owned());
    let mut all = pair.write("plain").await.to_vec();
    assert!(all.iter().all(|s| s.value == s.plaintext), "identity comes first");
    pair.read(&all, false).await;
    pair.real.storm().await;
    for (layout, writer) in [
        (vec![one.clone(), plain.clone()], "one"),
        (vec![one.clone(), two.clone(), plain.clone()], "one"),
        (vec![two.clone(), one.clone(), plain.clone()], "two"),
    ] {
        let names = layout.len();
        pair.reload(layout).await;
        let written = pair.write(&format!("{writer}-{names}")).await;
        assert!(written.iter().all(|s| provider(s).as_deref() == Some(writer)), "{written:?}");
        pair.read(&written, false).await;
        pair.readyz().await.unwrap();
        // INVARIANT: whoever wrote it, it is read; and it is stale exactly when it is not the writer's.
        let (now, before): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| provider(s).as_deref() == Some(writer));
        pair.read(&before, true).await;
        pair.read(&now, false).await;
        all = [now, before, written.to_vec()].concat();
    }
    let storm = pair.real.calm().await;
    storm.assert_unharmed(1000);
    let rpcs = pair.agree_on(|rpc| rpc != "Decrypt").await;
    assert_eq!(
        times(&rpcs, "Encrypt", "OK"),
        6,
        "every reload builds every provider anew, and each has a seed wrapped"
    );
    assert!(pair.sim.report().findings.is_empty(), "{:?}", pair.sim.report().findings);
    // Another process, which has seen nothing; and then what nobody needs any more is gone.
    pair.restart().await;
    pair.readyz().await.unwrap();
    for s in &all {
        pair.read(std::slice::from_ref(s), provider(s).as_deref() != Some("two")).await;
    }
    let rewritten = pair.rewrite(&all).await;
    assert!(rewritten.iter().all(|s| provider(s).as_deref() == Some("two")));
    pair.reload(vec![two]).await;
    running_one.kill();
    pair.read(&rewritten, false).await;
    pair.readyz().await.unwrap();
    assert!(served(&running_two, "Encrypt").await >= 6);
}
