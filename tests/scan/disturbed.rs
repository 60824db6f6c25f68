//! etcd compacts, dies and comes back while it is read.

use super::etcd;
use crate::support::etcd_store::EtcdStore;
use crate::support::etcd_store::objects::{self, NEW, OLD};
use kube_kms_etcd::access::{Access, Tls};
use kube_kms_etcd::census::Census;
use kube_kms_etcd::client::EtcdClient;
use kube_kms_etcd::scan::{Outcome, Settings, scan};
use kube_kms_etcd::tally::Tally;
use std::collections::BTreeMap;
use std::time::Duration;

async fn client(url: &str) -> EtcdClient {
    let access = Access::parse(&[url.to_owned()], &Tls::default(), None, Duration::from_secs(2)).unwrap();
    EtcdClient::connect(access).await.unwrap()
}

/// Scans in pages of ten and does something to etcd once, after this page.
async fn scan_disturbed(store: &mut EtcdStore, after: u32, mut what: impl FnMut(&mut EtcdStore)) -> (Tally, Outcome) {
    let mut client = client(store.url()).await;
    let settings = Settings { first_page: 10, page_max: 10, ..Settings::new(b"/registry") };
    let mut pages = 0;
    let mut hook = |_| {
        pages += 1;
        if pages == after {
            what(store);
        }
    };
    let mut census = Census::new(b"/registry", Box::new(&mut hook));
    let outcome = scan(&mut client, &settings, &mut census).await.unwrap();
    (census.tally(), outcome)
}

async fn undisturbed(store: &EtcdStore) -> Tally {
    let mut census = Census::new(b"/registry", Box::new(|_| ()));
    scan(&mut client(store.url()).await, &Settings::new(b"/registry"), &mut census).await.unwrap();
    census.tally()
}

type Counts = BTreeMap<(String, String, String), (u64, u64, usize)>;

fn counts(tally: &Tally) -> Counts {
    let v2 = tally.groups().into_iter().map(|g| {
        let name = (g.resource.clone(), g.provider.clone(), g.key_id.clone());
        (name, (g.extent.objects, g.extent.bytes, g.distinct_sources()))
    });
    let other = tally
        .others()
        .into_iter()
        .map(|g| ((g.resource.clone(), g.form.to_owned(), g.name.clone()), (g.extent.objects, g.extent.bytes, 0)));
    let damaged = tally.damaged().into_iter().map(|g| {
        (
            (g.resource.clone(), "damaged".to_owned(), g.damage.reason().to_owned()),
            (g.extent.objects, g.extent.bytes, 0),
        )
    });
    v2.chain(other).chain(damaged).collect()
}

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_compacts_away_is_read_again_and_counted_once() {
    let Some((_site, mut store)) = etcd("scan::compaction").await else { return };
    objects::fill(&store, 600).await;
    // In the middle of the secrets, which are the last and largest.
    let rewritten =
        store.range(b"/registry/secrets/").await.into_iter().find(|s| s.value.ends_with(b"\x28\x01")).unwrap();
    let (tally, outcome) = scan_disturbed(&mut store, 40, |store| {
        now(async {
            store.put([(rewritten.key.clone(), b"k8s\0rewritten under the scan".to_vec())]).await;
            store.compact(store.revision().await, true).await;
        });
    })
    .await;
    assert_eq!(outcome.restarts.len(), 1, "{outcome:?}");
    assert_eq!(outcome.restarts[0].resource, "secrets");
    assert!(outcome.first_revision < outcome.last_revision);
    // The rewritten object is what it is now, although it had been read before: its resource is at one revision.
    assert_eq!(counts(&tally), counts(&undisturbed(&store).await));
    assert_eq!((tally.all().objects, outcome.keys), (600, 600));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_killed_and_comes_back_costs_a_pause() {
    let Some((_site, mut store)) = etcd("scan::killed").await else { return };
    objects::fill(&store, 600).await;
    let before = undisturbed(&store).await;
    let (tally, outcome) = scan_disturbed(&mut store, 20, |store| {
        store.kill();
        store.respawn();
    })
    .await;
    assert!(outcome.interruptions >= 1, "{outcome:?}");
    assert_eq!((outcome.restarts.len(), outcome.first_revision), (0, outcome.last_revision));
    assert_eq!(counts(&tally), counts(&before));
    let named: Vec<_> = tally.groups().iter().map(|g| g.key_id.clone()).collect();
    assert!(named.contains(&NEW.to_owned()) && named.contains(&OLD.to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_stays_away_ends_the_scan_within_its_patience() {
    let Some((_site, mut store)) = etcd("scan::away").await else { return };
    objects::fill(&store, 200).await;
    let mut client = client(store.url()).await;
    let patience = Duration::from_secs(1);
    let settings = Settings { first_page: 10, page_max: 10, patience, ..Settings::new(b"/registry") };
    let mut hook = |_| store.kill();
    let mut census = Census::new(b"/registry", Box::new(&mut hook));
    let error = tokio::time::timeout(Duration::from_secs(20), scan(&mut client, &settings, &mut census)).await;
    assert!(error.expect("it gives up").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_too_large_are_asked_for_again_in_halves() {
    let Some((_site, store)) = etcd("scan::halves").await else { return };
    let all = (0..200).map(|n| (format!("/registry/secrets/a/{n:03}").into_bytes(), vec![b'{'; 50_000]));
    store.put(all.chain([(b"/registry/secrets/a/huge".to_vec(), vec![b'{'; 1_400_000])])).await;
    let settings = Settings { page_bytes: 100_000, first_page: 500, ..Settings::new(b"/registry") };
    let mut census = Census::new(b"/registry", Box::new(|_| ()));
    let outcome = scan(&mut client(store.url()).await, &settings, &mut census).await.unwrap();
    let tally = census.tally();
    assert_eq!((tally.all().objects, tally.all().bytes), (201, 200 * 50_000 + 1_400_000));
    assert!(outcome.pages > 60, "{outcome:?}");
}
