//! The stages of an EncryptionConfiguration, loaded by the API server's own code in the order of the docs: a roll-out, a
//! roll-back and a move lose nothing and never leave a value that one of two neighbouring stages cannot read.

use super::rendered;
use crate::support::apiserver_go::{RealApiServer, Release, built};
use crate::support::site::{Running, Site};
use crate::support::skipped;
use std::path::PathBuf;

/// A site with its plugin, and a way to get API servers at a stage.
struct Cluster {
    site: Site,
    _running: Running,
    release: Release,
}

/// One value in etcd.
#[derive(Clone, Debug)]
struct Value {
    key: String,
    plaintext: Vec<u8>,
    stored: Vec<u8>,
}

impl Cluster {
    async fn start(release: Release) -> Self {
        let site = Site::local();
        let running = site.start().await;
        Self { site, _running: running, release }
    }

    fn stage(&self, stage: &str, more: &[&str]) -> PathBuf {
        let arguments = [&["--kind", "encryption-configuration", "--stage", stage], more].concat();
        let text = rendered(&self.site.dir().join("config.yaml"), &arguments);
        let path = self.site.dir().join(format!("{stage}-{}.yaml", uuid::Uuid::new_v4().simple()));
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn server(&self, stage: &str, more: &[&str]) -> RealApiServer {
        let server = RealApiServer::start(self.release, &self.stage(stage, more)).await;
        for _ in 0..200 {
            if server.readyz().await.is_ok() {
                return server;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("{stage}: {:?}", server.readyz().await);
    }
}

async fn write(server: &RealApiServer, name: &str) -> Value {
    let (key, plaintext) = (format!("/registry/secrets/default/{name}"), format!("plaintext of {name}").into_bytes());
    let stored = server.write(&[(&key, &plaintext)]).await.remove(0).unwrap();
    Value { key, plaintext, stored }
}

/// It reads them all; returns for each whether a rewrite is due.
async fn read(server: &RealApiServer, values: &[Value]) -> Vec<bool> {
    let mut stale = Vec::new();
    for value in values {
        let object = server.read(&[(&value.key, &value.stored)]).await.remove(0);
        let object = object.unwrap_or_else(|e| panic!("{}: {e}", value.key));
        assert_eq!(object.plaintext, value.plaintext);
        stale.push(object.stale);
    }
    stale
}

/// Two neighbouring stages read what each other wrote, as they must while the API servers change one by one.
async fn neighbours(cluster: &Cluster, order: &[(&str, &[&str])]) -> Vec<Value> {
    let mut before: Option<(RealApiServer, Vec<Value>)> = None;
    let mut all = Vec::new();
    for (number, (stage, more)) in order.iter().enumerate() {
        let server = cluster.server(stage, more).await;
        let value = write(&server, &format!("{stage}-{number}")).await;
        if let Some((old, values)) = &before {
            read(&server, values).await;
            read(old, std::slice::from_ref(&value)).await;
        }
        all.push(value.clone());
        before = Some((server, vec![value]));
    }
    all
}

async fn roll_out_and_back(release: Release) {
    let cluster = Cluster::start(release).await;
    let values = neighbours(&cluster, &[("off", &[]), ("read", &[]), ("write", &[]), ("only", &[])]).await;
    let in_clear = |v: &Value| v.stored == v.plaintext;
    assert_eq!(values.iter().map(in_clear).collect::<Vec<_>>(), [true, true, false, false]);
    // What has not been rewritten yet is found stale by the stage that writes, and refused by the last one.
    let write_stage = cluster.server("write", &[]).await;
    assert_eq!(read(&write_stage, &values).await, [true, true, false, false]);
    let only = cluster.server("only", &[]).await;
    assert!(only.read(&[(&values[0].key, &values[0].stored)]).await.remove(0).is_err());

    let back = neighbours(&cluster, &[("only", &[]), ("write", &[]), ("read", &[])]).await;
    let read_stage = cluster.server("read", &[]).await;
    assert_eq!(read(&read_stage, &back).await, [true, true, false], "what is sealed is due to be rewritten in clear");
    let off = cluster.server("off", &[]).await;
    read(&off, &back[2..]).await;
    assert!(off.read(&[(&back[0].key, &back[0].stored)]).await.remove(0).is_err(), "so all must be rewritten first");
}

async fn move_over(release: Release) {
    let cluster = Cluster::start(release).await;
    // The same socket serves as the other provider: for the API server they are two.
    let from = format!("other=unix://{}", cluster.site.socket().display());
    let more = ["--provider", "mine", "--from", from.as_str()];
    let order: [(&str, &[&str]); 4] = [
        ("only", &["--provider", "other"]),
        ("move-read", &more),
        ("move-write", &more),
        ("only", &["--provider", "mine"]),
    ];
    // The first and the last are not neighbours; `only` under the new name reads only what was rewritten.
    let values = neighbours(&cluster, &order).await;
    let provider = |v: &Value| String::from_utf8_lossy(&v.stored).split(':').nth(4).unwrap().to_owned();
    assert_eq!(values.iter().map(provider).collect::<Vec<_>>(), ["other", "other", "mine", "mine"]);
    let write_stage = cluster.server("move-write", &more).await;
    assert_eq!(read(&write_stage, &values).await, [true, true, false, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_and_a_roll_back_by_the_rendered_stages_lose_nothing_on_the_real_api_server() {
    if let Err(reason) = built().await {
        return skipped(
            "a_roll_out_and_a_roll_back_by_the_rendered_stages_lose_nothing_on_the_real_api_server",
            &reason,
        );
    }
    for release in Release::ALL {
        roll_out_and_back(release).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_by_the_rendered_stages_loses_nothing_on_the_real_api_server() {
    if let Err(reason) = built().await {
        return skipped("a_move_by_the_rendered_stages_loses_nothing_on_the_real_api_server", &reason);
    }
    for release in Release::ALL {
        move_over(release).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_first_stage_an_api_server_without_its_plugin_is_not_ready_but_reads_and_writes() {
    const NAME: &str = "at_the_first_stage_an_api_server_without_its_plugin_is_not_ready_but_reads_and_writes";
    if let Err(reason) = built().await {
        return skipped(NAME, &reason);
    }
    for release in Release::ALL {
        let site = Site::local();
        let config = site.dir().join("encryption.yaml");
        let arguments = ["--kind", "encryption-configuration", "--stage", "read"];
        std::fs::write(&config, rendered(&site.write_config(), &arguments)).unwrap();
        let server = RealApiServer::start(release, &config).await;
        let value = write(&server, "alone").await;
        assert_eq!(read(&server, &[value]).await, [false]);
        assert!(server.readyz().await.is_err());
    }
}

#[test]
fn every_stage_takes_other_resources_and_another_name() {
    let site = Site::local();
    let config = site.write_config();
    for stage in ["read", "write", "only", "off"] {
        let arguments = [
            "--kind",
            "encryption-configuration",
            "--stage",
            stage,
            "--resources",
            "secrets,configmaps,*.example.com",
            "--provider",
            "prod-1",
        ];
        let value = super::kubernetes::yaml(&rendered(&config, &arguments));
        assert_eq!(value["resources"][0]["resources"], serde_json::json!(["secrets", "configmaps", "*.example.com"]));
        assert_eq!(rendered(&config, &arguments).contains("name: prod-1\n"), stage != "off");
    }
}
