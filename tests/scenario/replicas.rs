//! docs/conformance.md, items 67 and 68, and the migration of stored objects: three control-plane nodes with one KMS.

use super::gate::Gate;
use super::socket::{QUICK, Stage, moved, opens, quick, readyz, timeline, until_state};
use super::world::{SECOND, Trouble, World, defaults};
use crate::support::hand::{on_both_keks, rotate};
use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use kms_v2_api::stored;
use kms_v2_client::plugin::Rpc;
use kms_v2_judge::apiserver::Rewrite;
use rustix::process::Signal;
use std::time::Duration;
use tonic::Code;

on_both_keks! {
    item_67_three_replicas_report_the_same_key_id_after_independent_restarts_and_with_nothing_on_disk: equal;
}

async fn equal(mut site: Site) {
    site.set(QUICK);
    let sites = [site.replica(), site.replica(), site.replica()];
    let mut running = Vec::new();
    for site in &sites {
        running.push(site.start().await);
    }
    let key_id = running[0].until_ok().await;
    rotate(&site);
    let next = moved(&running[0], &key_id).await;
    for (n, replica) in running.into_iter().enumerate() {
        replica.until_status(|a| a.as_ref().is_ok_and(|s| s.key_id == next)).await.unwrap();
        if n == 1 {
            replica.kill();
            std::fs::remove_dir_all(sites[n].dir().join("state")).unwrap();
        } else {
            assert!(replica.stop().await.success());
        }
        let again = sites[n].start().await;
        assert_eq!(again.until_ok().await.as_bytes(), next.as_bytes(), "replica {n}");
    }
}

/// The replica that is cut off keeps its key_id, opens what it knows, and once it reaches the KMS again it opens the new
/// values before it moves to the new key_id itself.
#[tokio::test]
async fn item_68_a_replica_that_is_cut_off_during_a_rotation_keeps_its_key_id_and_follows_when_it_is_back() {
    let site = quick("");
    let first = site.start().await;
    let gate = Gate::before(site.kms()).await;
    let mut lagging = gate.replica(&site);
    // Five observations: time to see what it does between reaching the KMS again and moving.
    lagging.set("rotation: {observations: 5}");
    let second = lagging.start().await;
    let old = second.until_ok().await;
    assert_eq!(first.until_ok().await, old);
    let of_before = sealed(&mut first.client().await).await;
    opens(&second, std::slice::from_ref(&of_before)).await;

    gate.shut();
    until_state(&second, "coasting").await;
    site.kms().rotate(ALIAS);
    let new = moved(&first, &old).await;
    let of_after = sealed(&mut first.client().await).await;
    let status = second.client().await.status().await.unwrap();
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &old));
    assert_eq!(sealed(&mut second.client().await).await.1.key_id, old);
    opens(&second, std::slice::from_ref(&of_before)).await;
    let refused = second.client().await.decrypt(of_after.1.clone(), uid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    gate.open();
    until_state(&second, "ready").await;
    opens(&second, &[of_after, of_before]).await;
    assert_eq!(second.until_ok().await, old, "it opens the new before it has moved");
    let seen = timeline(&second, &old, Duration::from_millis(2500)).await;
    assert_eq!(seen.last(), Some(&new));
    assert!(seen.len() <= 2, "{seen:?}");
}

/// The same for five minutes, and with an API server in front of it.
#[tokio::test(start_paused = true)]
async fn item_68_five_minutes_without_the_kms_in_a_rotation_are_not_seen_by_the_api_server_of_that_replica() {
    for trouble in [Trouble::Away, Trouble::BlackHole] {
        let world = World::new(68);
        let nodes = [world.node(defaults()), world.node(defaults())];
        for node in &nodes {
            node.until("ready").await;
        }
        let servers = [world.server(&nodes[0]).await, world.server(&nodes[1]).await];
        let both = [&servers[0], &servers[1]];
        let old = servers[1].write_key_id();
        nodes[1].line.cut(Some(trouble));
        world.kms.rotate();
        world
            .play(&both, SECOND * 300, |_| {
                assert!(servers.iter().all(|server| server.write("/k", b"x").is_ok()));
            })
            .await;
        assert_eq!((servers[1].write_key_id(), servers[0].write_key_id().is_some()), (old.clone(), true));
        assert_ne!(servers[0].write_key_id(), old);
        let newer = servers[0].write("/k", b"x").unwrap();
        assert!(servers[1].read("/k", &newer).await.is_err(), "nobody can unwrap that without the KMS");
        nodes[1].line.cut(None);
        nodes[1].until("ready").await;
        assert_eq!(servers[1].read("/k", &newer).await.unwrap().plaintext.as_slice(), b"x");
        assert!(servers[1].read("/k", &newer).await.unwrap().stale, "newer than its own");
        assert_eq!(servers[1].write_key_id(), old);
        world.play(&both, SECOND * 240, |_| {}).await;
        assert_eq!(servers[1].write_key_id(), servers[0].write_key_id());
        let report = servers[1].report();
        assert_eq!((report.key_ids.len(), report.counts.write_state_expiries, report.counts.writes_failed), (2, 0, 0));
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        // A restart of its own API server finds what only the KMS can open.
        servers[1].restart().await;
        assert_eq!(servers[1].read("/k", &newer).await.unwrap().plaintext.as_slice(), b"x");
        assert_eq!(servers[1].report().counts.rpc(Rpc::Decrypt, Code::Ok), 2);
    }
}

/// etcd, as far as a migration needs it.
type Store = Vec<(String, Vec<u8>)>;

fn under(store: &Store, key_id: &str) -> usize {
    store.iter().filter(|(_, value)| stored::decode(value).unwrap().1.key_id == key_id).count()
}

/// A storage migration through this API server.
async fn migrate(stage: &Stage, store: &mut Store) {
    for (key, value) in store {
        if let Rewrite::Value(new) = stage.server.rewrite(key, value).await.unwrap() {
            *value = new;
        }
    }
}

/// Three nodes, of which the third looks at the KMS once an hour only: the skew of a rotation, for as long as we like.
struct Cluster {
    _sites: Vec<Site>,
    nodes: Vec<Running>,
    stages: Vec<Stage>,
    store: Store,
    old: String,
}

impl Cluster {
    /// Rotated: the first two nodes have moved, and the third has not.
    async fn in_a_rotation() -> Self {
        let site = Site::aws();
        let mut sites = vec![site.replica(), site.replica(), site.replica()];
        sites[0].set(QUICK);
        sites[1].set(QUICK);
        sites[2].set("probe: {interval: 1h}");
        let (mut nodes, mut stages, mut store) = (Vec::new(), Vec::new(), Store::new());
        for (n, site) in sites.iter().enumerate() {
            let node = site.start().await;
            let stage = Stage::new(&node).await;
            store.extend(stage.write(&format!("of-{n}-before-"), 4));
            nodes.push(node);
            stages.push(stage);
        }
        let old = nodes[0].until_ok().await;
        site.kms().rotate(ALIAS);
        for n in [0, 1] {
            let new = moved(&nodes[n], &old).await;
            stages[n].until_it_writes_under(&new).await;
        }
        Self { _sites: sites, nodes, stages, store, old }
    }

    /// The third node follows.
    async fn converge(&self) -> String {
        self.nodes[2].signal(Signal::HUP);
        let new = moved(&self.nodes[2], &self.old).await;
        self.stages[2].until_it_writes_under(&new).await;
        new
    }

    async fn everybody_reads_everything(&self) {
        for stage in &self.stages {
            stage.reads(&self.store).await;
        }
    }
}

#[tokio::test]
async fn a_migration_after_every_replica_has_moved_leaves_nothing_under_the_old_key_id() {
    let mut cluster = Cluster::in_a_rotation().await;
    for n in 0..3 {
        let more = cluster.stages[n].write(&format!("of-{n}-during-"), 4);
        cluster.store.extend(more);
    }
    assert_eq!((cluster.store.len(), under(&cluster.store, &cluster.old)), (24, 16));
    cluster.everybody_reads_everything().await;
    let new = cluster.converge().await;
    migrate(&cluster.stages[1], &mut cluster.store).await;
    assert_eq!((under(&cluster.store, &cluster.old), under(&cluster.store, &new)), (0, 24));
    cluster.everybody_reads_everything().await;
    // A second one, through another API server, finds nothing to do: the key_ids agree.
    let before = cluster.store.clone();
    migrate(&cluster.stages[2], &mut cluster.store).await;
    assert_eq!(cluster.store, before);
    for stage in &cluster.stages {
        stage.server.restart().await;
    }
    cluster.everybody_reads_everything().await;
    for (stage, node) in cluster.stages.iter().zip(&cluster.nodes) {
        assert!(stage.codes().is_empty(), "{:?}", stage.codes());
        assert_eq!(readyz(node).await.0, 200);
    }
}

/// Why an operator waits until every replica shows the new key_id: whatever goes through the late one is under the old.
#[tokio::test]
async fn a_migration_that_is_started_too_early_leaves_objects_under_the_old_key_id() {
    let mut cluster = Cluster::in_a_rotation().await;
    migrate(&cluster.stages[0], &mut cluster.store).await;
    assert_eq!(under(&cluster.store, &cluster.old), 0, "it looks done");
    let late = cluster.stages[2].write("of-2-late-", 4);
    cluster.store.extend(late);
    // And an update through the late node takes objects back that were migrated already.
    let (key, value) = cluster.store[0].clone();
    let Rewrite::Value(back) = cluster.stages[2].server.rewrite(&key, &value).await.unwrap() else { panic!("stale") };
    cluster.store[0] = (key, back);
    assert_eq!(under(&cluster.store, &cluster.old), 5, "the danger");
    let new = cluster.converge().await;
    assert_eq!(under(&cluster.store, &cluster.old), 5, "and it does not go away by itself");
    migrate(&cluster.stages[0], &mut cluster.store).await;
    assert_eq!(under(&cluster.store, &new), cluster.store.len());
    cluster.everybody_reads_everything().await;
}
