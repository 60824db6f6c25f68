//! Two control-plane nodes: two API servers, of two releases, each with a plugin of its own on the same KEK.

use super::pair::{Pair, Stored};
use crate::support::apiserver_go::{Release, built};
use crate::support::hand::rotate;
use crate::support::site::Site;
use crate::support::skipped;
use kms_v2_api::stored;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_real_api_servers_on_two_plugins_agree_on_the_key_id_and_read_each_other() {
    if let Err(reason) = built().await {
        skipped("two_real_api_servers_on_two_plugins_agree_on_the_key_id_and_read_each_other", &reason);
        return;
    }
    tokio::join!(converge(Site::local()), converge(Site::aws()));
}

fn key_ids(stored: &[Stored]) -> Vec<String> {
    let mut ids: Vec<_> = stored.iter().map(|s| stored::decode(&s.value).unwrap().1.key_id).collect();
    ids.sort();
    ids.dedup();
    ids
}

async fn converge(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let other = site.replica();
    let (one, two) = tokio::join!(site.start(), other.start());
    assert_eq!(one.until_ok().await, two.until_ok().await);
    let (a, b) = tokio::join!(Pair::start(Release::Newest, &site), Pair::start(Release::Old, &other));
    assert_ne!(a.real.version, b.real.version);
    let all = [a.write("a").await, b.write("b").await].concat();
    let old = key_ids(&all);
    assert_eq!(old.len(), 1, "{old:?}");
    tokio::join!(a.read(&all, false), b.read(&all, false));
    rotate(&site);
    let began = Instant::now();
    let new = loop {
        let (ready_a, ready_b) = tokio::join!(a.readyz(), b.readyz());
        ready_a.unwrap();
        ready_b.unwrap();
        let now = [a.write("a2").await, b.write("b2").await].concat();
        let ids = key_ids(&now);
        // INVARIANT: whichever node is ahead, what it writes is readable on the other, already now.
        let values: Vec<_> = now.iter().map(|s| (s.key.as_str(), s.value.as_slice())).collect();
        for read in [a.real.read(&values).await, b.real.read(&values).await].into_iter().flatten() {
            read.unwrap();
        }
        if ids.len() == 1 && ids != old {
            break now;
        }
        assert!(began.elapsed() < Duration::from_secs(40), "not of one mind: {ids:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::join!(a.read(&all, true), b.read(&all, true));
    tokio::join!(a.read(&new, false), b.read(&new, false));
    assert_eq!(one.until_ok().await, two.until_ok().await);
    for pair in [&a, &b] {
        let real = pair.real.metrics().await;
        let hashes = real.iter().filter(|s| s.name.ends_with("key_id_hash_status_last_timestamp_seconds")).count();
        assert_eq!(hashes, 2, "one rotation, no way back");
    }
}
