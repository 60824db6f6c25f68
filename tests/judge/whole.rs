//! A whole API server on a real etcd: objects through its HTTPS API, and what etcd has of them.

use super::layout::PROVIDER;
use crate::support::apiserver_whole::{ETCD_PREFIX, WholeApiServer};
use crate::support::hand::rotate;
use crate::support::site::Site;
use crate::support::skipped;
use kube_kms::api::stored;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

const TEST: &str = "a_whole_api_server_stores_nothing_in_the_clear_follows_a_rotation_and_leaves_nothing_behind";
const WIDGETS: &str = "/apis/example.com/v1/widgets";
const SECRET: &str = "a-secret-that-must-not-be-found-in-etcd";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_api_server_stores_nothing_in_the_clear_follows_a_rotation_and_leaves_nothing_behind() {
    let mut site = Site::local();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let old = running.until_ok().await;
    let config = site.dir().join("encryption.yaml");
    let mut text = String::from("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n");
    writeln!(text, "- resources: [widgets.example.com]\n  providers:").unwrap();
    let socket = site.socket();
    writeln!(text, "  - kms: {{apiVersion: v2, name: {PROVIDER}, endpoint: 'unix://{}'}}", socket.display()).unwrap();
    std::fs::write(&config, text).unwrap();
    let mut whole = match WholeApiServer::start(&site, &config) {
        Ok(whole) => whole,
        Err(reason) => return skipped(TEST, &reason),
    };
    define_widgets(&whole);
    for n in 0..10 {
        whole.api("POST", WIDGETS, Some(&widget(n)));
        assert_eq!(key_id_of(&whole, n), old);
    }
    rotate(&site);
    let began = Instant::now();
    let new = (10..)
        .map(|n| {
            // As a kubelet asks; and a result is kept for twenty seconds.
            assert_eq!(whole.try_api("GET", "/readyz/kms-providers", None).0, 200);
            whole.api("POST", WIDGETS, Some(&widget(n)));
            std::thread::sleep(Duration::from_millis(200));
            key_id_of(&whole, n)
        })
        .find(|id| *id != old || began.elapsed() > Duration::from_secs(40))
        .unwrap();
    assert_ne!(new, old, "a rotation is seen in time");
    assert_eq!(running.until_ok().await, new);
    // Another process reads everything, and an update that changes nothing writes it under the new key.
    whole.restart();
    whole.until("widgets are served", |w| w.try_api("GET", WIDGETS, None).0 == 200);
    let all = whole.api("GET", WIDGETS, None)["items"].as_array().unwrap().clone();
    assert!(all.len() > 10 && all.iter().all(|item| item["spec"]["secret"] == SECRET), "{all:?}");
    assert_eq!(key_id_of(&whole, 0), old, "reading rewrites nothing");
    for item in &all {
        let name = item["metadata"]["name"].as_str().unwrap();
        let object = whole.api("GET", &format!("{WIDGETS}/{name}"), None);
        whole.api("PUT", &format!("{WIDGETS}/{name}"), Some(&object));
    }
    for n in 0..all.len() {
        assert_eq!(key_id_of(&whole, n), new, "left behind: {n}");
    }
}

fn widget(n: usize) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": format!("w{n}")}, "spec": {"secret": SECRET}})
}

fn define_widgets(whole: &WholeApiServer) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let names = json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"});
    let spec = json!({"group": "example.com", "scope": "Cluster", "names": names, "versions": [version]});
    let kind = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"}, "spec": spec,
    });
    whole.api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", Some(&kind));
    whole.until("widgets are served", |w| w.try_api("GET", WIDGETS, None).0 == 200);
}

/// Of the value in etcd, which has no plaintext.
fn key_id_of(whole: &WholeApiServer, n: usize) -> String {
    let value = whole.stored(&format!("{ETCD_PREFIX}/example.com/widgets/w{n}"));
    assert!(!value.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "plaintext in etcd");
    let (provider, object) = stored::decode(&value).unwrap();
    assert_eq!(provider, PROVIDER);
    object.key_id
}
