//! The pods, against the types of Kubernetes: a misspelt or misplaced field is found, since it does not come back.

use super::{deploy, rendered, sample};
use crate::support::site::Site;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// YAML as kubelet reads it, but strictly: no duplicate key, no merge key, one document.
pub fn yaml(text: &str) -> Value {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::Error,
        merge_keys: serde_saphyr::options::MergeKeyPolicy::Error,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(text, options).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// What of `written` is not in `read` as it was written.
fn lost(at: &str, written: &Value, read: &Value, into: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                lost(&format!("{at}.{key}"), value, b.get(key).unwrap_or(&Value::Null), into);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (number, (a, b)) in a.iter().zip(b).enumerate() {
                lost(&format!("{at}[{number}]"), a, b, into);
            }
        }
        (a, b) if a == b => {}
        _ => into.push(at.to_owned()),
    }
}

/// The pod, of which the types of Kubernetes know every field.
fn pod(value: &Value) -> Result<Pod, Vec<String>> {
    let pod: Pod = serde_json::from_value(value.clone()).map_err(|e| vec![e.to_string()])?;
    let mut missing = Vec::new();
    lost("", value, &serde_json::to_value(&pod).unwrap(), &mut missing);
    if missing.is_empty() { Ok(pod) } else { Err(missing) }
}

/// kube-apiserver's pod as kubeadm writes it, as far as a patch meets it.
fn kube_apiserver() -> Value {
    let volumes = ["ca-certs", "k8s-certs", "etc-ca-certificates", "usr-share-ca-certificates"];
    let volumes: Vec<_> =
        volumes.iter().map(|name| json!({"name": name, "hostPath": {"path": format!("/x/{name}")}})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "kube-apiserver", "namespace": "kube-system"},
        "spec": {"hostNetwork": true, "containers": [{"name": "kube-apiserver"}], "volumes": volumes},
    })
}

/// A strategic merge of lists that are merged by name.
fn patched(mut pod: Value, patch: &Value) -> Value {
    for (list, items) in patch["spec"].as_object().unwrap() {
        assert!(["initContainers", "volumes"].contains(&list.as_str()), "{list} would be replaced as a whole");
        let into = pod["spec"].as_object_mut().unwrap().entry(list).or_insert_with(|| json!([]));
        into.as_array_mut().unwrap().extend(items.as_array().unwrap().iter().cloned());
    }
    pod
}

fn names(values: &Value) -> Vec<String> {
    values.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_judge_of_pods_finds_a_misspelt_a_misplaced_and_a_mistyped_field() {
    let good = yaml(&sample(&["--kind", "static-pod"]));
    assert!(pod(&good).is_ok());
    for (at, key, value) in [
        ("/spec", "hostNetwrk", json!(true)),
        ("/spec/containers/0", "priorityClassName", json!("x")),
        ("/spec/containers/0/securityContext", "runAsUser", json!("10001")),
        ("/spec/containers/0/livenessProbe/exec", "comand", json!(1)),
    ] {
        let mut bad = good.clone();
        bad.pointer_mut(at).unwrap()[key] = value;
        assert!(pod(&bad).is_err(), "{at}/{key}");
    }
}

#[test]
fn the_static_pod_is_one_and_is_hardened() {
    for arguments in [&["--kind", "static-pod"][..], &["--kind", "static-pod", "--user", "0"]] {
        let value = yaml(&sample(arguments));
        let spec = pod(&value).unwrap().spec.unwrap();
        assert_eq!(spec.host_network, Some(true));
        assert_eq!(spec.dns_policy.as_deref(), Some("Default"));
        assert_eq!(spec.priority_class_name.as_deref(), Some("system-node-critical"));
        // A static pod cannot name any other object.
        assert_eq!((spec.service_account_name, spec.automount_service_account_token), (None, Some(false)));
        hardened(&value["spec"]["containers"][0], arguments.contains(&"0"));
        mounted(&value);
        assert_eq!(value["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"], "/readyz");
    }
}

fn hardened(container: &Value, root: bool) {
    let context = &container["securityContext"];
    let user = if root { 0 } else { 10_001 };
    assert_eq!(
        *context,
        json!({
            "runAsUser": user, "runAsGroup": user, "runAsNonRoot": !root, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        })
    );
    for probe in ["startupProbe", "livenessProbe"] {
        let command = ["/usr/local/bin/kube-kms", "probe", "--live", "--timeout", "4s", "--socket"];
        let rendered = container[probe]["exec"]["command"].as_array().unwrap();
        assert!(
            rendered.iter().zip(command).all(|(a, b)| a == b),
            "{probe} follows neither the KMS nor a TCP port: {rendered:?}"
        );
    }
    assert_eq!(container["resources"]["limits"]["cpu"], Value::Null);
    assert_eq!(container["imagePullPolicy"], "Never");
    // The environment and the arguments of a pod are printed by kubectl.
    assert_eq!(
        container["command"],
        json!(["/usr/local/bin/kube-kms", "serve", "--config", "/etc/kube-kms/config.yaml"])
    );
}

/// Every mount has its volume and the other way round, no two of a name, each below a directory of its own.
fn mounted(pod: &Value) {
    let volumes = names(&pod["spec"]["volumes"]);
    assert_eq!(volumes.iter().collect::<BTreeSet<_>>().len(), volumes.len(), "{volumes:?}");
    let lists = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
    for container in lists.iter().flatten().filter(|c| c["name"] == "kube-kms") {
        for mount in container["volumeMounts"].as_array().unwrap() {
            let name = mount["name"].as_str().unwrap();
            let volume = pod["spec"]["volumes"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap();
            assert_eq!(volume["hostPath"]["path"], mount["mountPath"], "{name}");
        }
    }
}

#[test]
fn the_sidecar_patch_makes_a_pod_that_starts_the_plugin_first() {
    let patch = yaml(&sample(&["--kind", "sidecar"]));
    assert_eq!(patch.as_object().unwrap().keys().collect::<Vec<_>>(), ["spec"]);
    let whole = patched(kube_apiserver(), &patch);
    pod(&whole).unwrap();
    let sidecar = &whole["spec"]["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    hardened(sidecar, false);
    mounted(&whole);
    // Beside what `--kind kubeadm` adds.
    let added = names(&yaml(&sample(&["--kind", "kubeadm"]))["apiServer"]["extraVolumes"]);
    assert!(names(&whole["spec"]["volumes"]).iter().all(|name| !added.contains(name)));
}

#[test]
fn kube_apiserver_mounts_the_directories_that_the_endpoint_and_the_flag_name() {
    let kubeadm = yaml(&sample(&["--kind", "kubeadm"]));
    assert_eq!(
        (&kubeadm["apiVersion"], &kubeadm["kind"]),
        (&json!("kubeadm.k8s.io/v1beta4"), &json!("ClusterConfiguration"))
    );
    let flag = kubeadm["apiServer"]["extraArgs"][0]["value"].as_str().unwrap();
    let encryption = yaml(&sample(&["--kind", "encryption-configuration", "--stage", "only"]));
    let endpoint = encryption["resources"][0]["providers"][0]["kms"]["endpoint"].as_str().unwrap();
    for path in [flag, endpoint.strip_prefix("unix://").unwrap()] {
        let dir = path.rsplit_once('/').unwrap().0;
        let volumes = kubeadm["apiServer"]["extraVolumes"].as_array().unwrap();
        assert!(volumes.iter().any(|v| v["hostPath"] == dir && v["mountPath"] == dir), "{path} in {volumes:?}");
        // Not the file: another inode after every restart and every edit.
        assert!(volumes.iter().all(|v| v["hostPath"] != path));
    }
}

#[test]
fn what_the_configuration_says_stands_in_the_pod() {
    let mut site = Site::local();
    site.listen("{socket: /run/other/kms.sock, mode: '0660'}");
    site.set(
        "http: {listen: '0.0.0.0:9999'}\ncache: {capacity: 65536}\nread: [{local: {keyring: /srv/old/keyring.json}}]",
    );
    let config = site.write_config();
    let value = yaml(&rendered(&config, &["--kind", "static-pod"]));
    pod(&value).unwrap();
    mounted(&value);
    let container = &value["spec"]["containers"][0];
    // kubelet asks from the same network namespace, whatever is listened on.
    assert_eq!(container["readinessProbe"]["httpGet"], json!({"host": "127.0.0.1", "port": 9999, "path": "/readyz"}));
    assert_eq!(container["livenessProbe"]["exec"]["command"][6], "/run/other/kms.sock");
    assert_eq!(container["resources"]["limits"]["memory"], "640Mi");
    let mounts: Vec<_> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["mountPath"].as_str().unwrap(), m["readOnly"] == true))
        .collect();
    let dir = site.dir().to_str().unwrap();
    let state = site.dir().join("state");
    for (path, read_only) in [("/run/other", false), (state.to_str().unwrap(), false), (dir, true), ("/srv/old", true)]
    {
        assert!(mounts.contains(&(path, read_only)), "{path} in {mounts:?}");
    }
    let tmpfiles = rendered(&config, &["--kind", "tmpfiles"]);
    assert!(
        tmpfiles.contains("d /run/other 2750 10001 root -\n") && tmpfiles.contains("reaches the socket by the group")
    );

    site.listen("{socket: '@kube-kms'}").set("");
    let abstract_one = rendered(&site.write_config(), &["--kind", "static-pod"]);
    assert!(names(&yaml(&abstract_one)["spec"]["volumes"]).iter().all(|name| name != "socket"));
    assert!(deploy().join("config/local.yaml").exists());
}

#[test]
fn without_an_http_port_no_probe_asks_for_one() {
    for listen in ["none", "'127.0.0.1:0'"] {
        let mut site = Site::local();
        site.set(&format!("http: {{listen: {listen}}}"));
        for (kind, list) in [("static-pod", "containers"), ("sidecar", "initContainers")] {
            let value = yaml(&rendered(&site.write_config(), &["--kind", kind]));
            let container = &value["spec"][list][0];
            assert!(container["livenessProbe"]["exec"].is_object() && container["readinessProbe"].is_null(), "{kind}");
        }
    }
}

#[test]
fn an_image_without_a_registry_is_never_pulled() {
    for (image, policy) in [
        ("kube-kms:0.1.0", "Never"),
        ("localhost/kube-kms:0.1.0", "Never"),
        ("someone/kube-kms", "Never"),
        ("registry.example.com/kube-kms:0.1.0", "IfNotPresent"),
        ("10.0.0.1:5000/kube-kms@sha256:abc", "IfNotPresent"),
    ] {
        let value = yaml(&sample(&["--kind", "static-pod", "--image", image]));
        let container = &value["spec"]["containers"][0];
        assert_eq!((&container["image"], &container["imagePullPolicy"]), (&json!(image), &json!(policy)));
    }
}
