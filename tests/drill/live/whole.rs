//! On two real plugins that share a KEK, a real API server and its etcd, with the test as the operator.

use crate::drill::run::until;
use crate::support::apiserver_whole::{ETCD_PREFIX, Machine, WholeApiServer};
use crate::support::site::{ALIAS, KMSCTL, Site};
use crate::support::skipped;
use serde_json::{Value, json};

const TEST: &str = "drill run on a whole API server";
const WIDGETS: &str = "/apis/example.com/v1/widgets";

fn define_widgets(whole: &WholeApiServer) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let names = json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"});
    let kind = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": names, "versions": [version]},
    });
    whole.api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", Some(&kind));
    whole.until("widgets are served", |w| w.try_api("GET", WIDGETS, None).0 == 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_walked_on_real_plugins_and_a_real_api_server_with_the_migration_by_hand() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let replica = site.replica();
    let (first, second) = (site.start().await, replica.start().await);
    let old = first.until_ok().await;
    second.until_ok().await;
    let config = site.dir().join("encryption.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [widgets.example.com]\n  \
         providers:\n  - kms: {{apiVersion: v2, name: kms-primary, endpoint: 'unix://{}'}}\n",
        site.socket().display()
    );
    std::fs::write(&config, text).unwrap();
    let machine = match Machine::start(&site) {
        Ok(machine) => machine,
        Err(reason) => return skipped(TEST, &reason),
    };
    let whole = WholeApiServer::start(&machine, &config);
    define_widgets(&whole);
    for n in 0..5 {
        let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": format!("w{n}")}});
        whole.api("POST", WIDGETS, Some(&widget));
    }
    let (kubeconfig, arn, url) = (whole.kubeconfig(), site.kms().key_arn(ALIAS), site.kms().url());
    let state = site.dir().join("drill.json");
    let paths = [site.socket(), replica.socket(), kubeconfig, state.clone(), config.clone()];
    let [socket, other, kubeconfig, state_path, config] = paths.map(|path| path.display().to_string());
    let arguments = [
        "drill",
        "run",
        "--socket",
        &socket,
        "--socket",
        &other,
        "--kubeconfig",
        &kubeconfig,
        "--apiserver",
        whole.url(),
        "--endpoints",
        whole.etcd_url(),
        "--prefix",
        ETCD_PREFIX,
        "--state",
        &state_path,
        "--encryption-config",
        &config,
        "--create-objects",
        "3",
        "--objects-of",
        "widgets.example.com",
        "--migrate",
        "print",
        "--rotate-kek",
        &arn,
        "--kms-endpoint",
        &url,
        "--yes",
        "seed,rotate",
        "--output",
        "json",
        "--poll",
        "300ms",
    ];
    let mut drill = site.run(&mut site.process(KMSCTL, &arguments));
    tokio::task::block_in_place(|| {
        until("the commands of the migration", || {
            // As a kubelet asks: kube-apiserver looks at Status then, and not only once a minute.
            whole.try_api("GET", "/readyz/kms-providers", None);
            drill.log().contains("kubectl get widgets.example.com --all-namespaces -o json | kubectl replace -f -")
        });
    });
    for item in whole.api("GET", WIDGETS, None)["items"].as_array().unwrap() {
        let path = format!("{WIDGETS}/{}", item["metadata"]["name"].as_str().unwrap());
        let object = whole.api("GET", &path, None);
        whole.api("PUT", &path, Some(&object));
    }
    let status = drill.wait().await;
    let (out, log) = (drill.out(), drill.log());
    assert_eq!(status.code(), Some(0), "{out}\n{log}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let claims = report["steps"].as_array().unwrap().iter().flat_map(|step| step["claims"].as_array().unwrap());
    let other: Vec<&str> =
        claims.filter(|claim| claim["verdict"] != "held").map(|claim| claim["number"].as_str().unwrap()).collect();
    // No Leases and no access reviews in this API server; a restart, a retirement and an outage were not asked for.
    assert_eq!(other, ["1.4", "1.7", "4.4", "6.1", "6.2", "6.3", "8.2", "8.3", "9.1"], "{out}");
    let new = first.until_ok().await;
    assert_eq!((report["oldKeyId"].as_str().unwrap(), report["newKeyId"].as_str().unwrap()), (&*old, &*new));
    assert_eq!(site.kms().successful_calls("RotateKeyOnDemand"), 1);
    let left = whole.api("GET", WIDGETS, None)["items"].as_array().unwrap().len();
    assert_eq!(left, 5, "the drill's own objects are deleted");
    assert!(!std::fs::read_to_string(state).unwrap().contains("not-a-secret"), "credentials are not kept");
}
