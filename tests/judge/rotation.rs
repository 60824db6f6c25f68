//! A new version of the KEK, whichever way it comes: seen in time, old objects read, a rewrite carries the new key_id.

use super::pair::{Pair, Stored};
use super::scenarios;
use super::shadow::times;
use crate::support::apiserver_go::Release;
use crate::support::hand::rotate;
use crate::support::site::{ALIAS, Site};
use kms_v2_api::stored;
use std::time::{Duration, Instant};

scenarios! {
    a_local_promote_is_seen_and_nothing_is_left_behind: promoted;
    new_key_material_is_seen_and_nothing_is_left_behind: new_material;
    an_alias_on_another_key_is_seen_and_nothing_is_left_behind: retargeted;
}

/// Our probe finds it within a second, and a health check asks again after twenty. The rest is this machine.
const SEEN_WITHIN: Duration = Duration::from_secs(20 + 1 + 10);

async fn promoted(release: Release) {
    rotated(release, Site::local(), rotate).await;
}

async fn new_material(release: Release) {
    rotated(release, Site::aws(), rotate).await;
}

async fn retargeted(release: Release) {
    rotated(release, Site::aws(), |site| {
        let other = site.kms().create_key("alias/other");
        site.kms().retarget_alias(ALIAS, &other);
    })
    .await;
}

fn key_id(stored: &Stored) -> String {
    stored::decode(&stored.value).unwrap().1.key_id
}

async fn rotated(release: Release, mut site: Site, rotate: impl Fn(&Site)) {
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let old = running.until_ok().await;
    let pair = Pair::start(release, &site).await;
    let mut all = Vec::new();
    for n in 0..10 {
        all.extend(pair.write(&format!("s{n}")).await);
    }
    pair.read(&all, false).await;
    rotate(&site);
    let began = Instant::now();
    let new = loop {
        pair.readyz().await.unwrap();
        let written = pair.write("now").await;
        let ids = written.each_ref().map(key_id);
        if ids[0] == ids[1] && ids[0] != old {
            break ids[0].clone();
        }
        assert!(ids.contains(&old), "two new key_ids: {ids:?}");
        assert!(began.elapsed() < SEEN_WITHIN, "still {ids:?} after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(running.until_ok().await, new);
    // INVARIANT: everything before still reads, and is known for stale.
    pair.read(&all, true).await;
    let rewritten = pair.rewrite(&all).await;
    assert!(rewritten.iter().all(|s| key_id(s) == new));
    pair.read(&rewritten, false).await;
    let rpcs = pair.agree().await;
    let seeds = (times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK"));
    assert_eq!(seeds, (2, 2), "one of its own and one of the other's for each key_id");
    assert!(pair.sim.report().findings.is_empty(), "{:?}", pair.sim.report().findings);
}
