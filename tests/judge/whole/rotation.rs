//! A new version of the KEK, whichever way it comes: seen in time, old objects read, a rewrite leaves nothing behind in
//! etcd. And two API servers on one etcd, each with a plugin of its own.

use super::{Whole, machine};
use crate::judge::layout::{PROVIDER, ordinary};
use crate::judge::shadow::times;
use crate::support::hand::rotate;
use crate::support::site::{ALIAS, Site};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Our probe finds it within a second, and a health check asks again after twenty. The rest is this machine.
const SEEN_WITHIN: Duration = Duration::from_secs(20 + 1 + 15);

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_whole_api_server_stores_nothing_in_the_clear_follows_a_rotation_and_leaves_nothing_behind() {
    let test = "a_whole_api_server_stores_nothing_in_the_clear_follows_a_rotation_and_leaves_nothing_behind";
    followed(test, Site::local(), rotate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_whole_api_server_follows_new_key_material_and_leaves_nothing_behind() {
    followed("a_whole_api_server_follows_new_key_material_and_leaves_nothing_behind", Site::aws(), rotate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_whole_api_server_follows_an_alias_to_another_key_and_leaves_nothing_behind() {
    let test = "a_whole_api_server_follows_an_alias_to_another_key_and_leaves_nothing_behind";
    let retarget = |site: &Site| {
        let other = site.kms().create_key("alias/other");
        site.kms().retarget_alias(ALIAS, &other);
    };
    followed(test, Site::aws(), retarget).await;
}

fn only(key_id: &str) -> BTreeSet<Option<(String, String)>> {
    BTreeSet::from([Some((PROVIDER.to_owned(), key_id.to_owned()))])
}

async fn followed(test: &str, mut site: Site, rotate: impl Fn(&Site)) {
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let old = running.until_ok().await;
    let Some(mut whole) = Whole::start(test, &site).await else { return };
    for n in 0..10 {
        whole.write(&format!("before-{n}"));
    }
    assert_eq!(whole.in_use(), [only(&old), only(&old)]);
    rotate(&site);
    let began = Instant::now();
    let mut written = 0;
    let new = loop {
        // As a kubelet asks; and a result is kept for twenty seconds.
        whole.readyz().await.unwrap();
        written += 1;
        let ids = whole.write(&format!("now-{written}")).map(|under| under.unwrap().1);
        if ids[0] == ids[1] && ids[0] != old {
            break ids[0].clone();
        }
        assert!(ids.contains(&old), "two new key_ids: {ids:?}");
        assert!(began.elapsed() < SEEN_WITHIN, "still {ids:?} after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(running.until_ok().await, new);
    whole.read_all().await;
    // Another process reads everything, and an update that changes nothing writes it under the new key.
    whole.restart().await;
    whole.until_served();
    whole.read_all().await;
    let both: BTreeSet<_> = only(&old).union(&only(&new)).cloned().collect();
    assert_eq!(whole.in_use(), [both.clone(), both], "reading rewrites nothing");
    whole.rewrite_all().await;
    // INVARIANT: no object is left behind.
    assert_eq!(whole.in_use(), [only(&new), only(&new)]);
    whole.read_all().await;
    let rpcs = whole.agree();
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 3, "at start, at the rotation, at the restart: {rpcs:?}");
    assert!(times(&rpcs, "Decrypt", "OK") >= 2, "of the process before: {rpcs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_whole_api_servers_on_one_etcd_with_two_plugins_agree_on_the_key_id() {
    let test = "two_whole_api_servers_on_one_etcd_with_two_plugins_agree_on_the_key_id";
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let other = site.replica();
    let (one, two) = tokio::join!(site.start(), other.start());
    let old = one.until_ok().await;
    assert_eq!(old, two.until_ok().await);
    let Some(machine) = machine(test, &site) else { return };
    let a = Whole::on(&machine, &site, ordinary(&site)).await;
    let b = Whole::on(&machine, &other, ordinary(&other)).await;
    for n in 0..5 {
        a.write(&format!("a-{n}"));
        b.write(&format!("b-{n}"));
    }
    assert_eq!(a.in_use()[0], only(&old));
    a.read_all().await;
    b.read_all().await;
    rotate(&site);
    let began = Instant::now();
    for n in 0.. {
        a.readyz().await.unwrap();
        b.readyz().await.unwrap();
        let names = [format!("a-now-{n}"), format!("b-now-{n}")];
        let ids = [a.write(&names[0]), b.write(&names[1])].concat();
        // INVARIANT: whichever node is ahead, what it writes is readable on the other, already now.
        for (whole, name) in [(&a, &names[1]), (&b, &names[0])] {
            whole.api.api("GET", &format!("{}/{name}", super::WIDGETS), None);
        }
        let ids: BTreeSet<_> = ids.into_iter().map(|under| under.unwrap().1).collect();
        if ids.len() == 1 && !ids.contains(&old) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(50), "not of one mind: {ids:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let new = one.until_ok().await;
    assert_eq!(new, two.until_ok().await);
    // One of them migrates, and the other finds nothing left to do.
    a.rewrite_all().await;
    assert_eq!(a.in_use()[0], only(&new));
    let stored = machine.all_stored(&super::key(""));
    b.rewrite_all().await;
    assert_eq!(stored, machine.all_stored(&super::key("")), "an update that changes nothing, of what is not stale");
    a.read_all().await;
    b.read_all().await;
    for whole in [&a, &b] {
        assert_eq!(times(&whole.agree(), "Encrypt", "OK"), 2, "one rotation, no way back");
    }
}
