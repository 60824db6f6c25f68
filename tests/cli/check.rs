//! `check`, and what `serve` says when it does not start.

use crate::support::fake_kms::ANY;
use crate::support::site::{ALIAS, Site};
use crate::support::transcript::run;

fn check(site: &Site, output: &str) -> crate::support::transcript::Transcript {
    let config = site.write_config();
    run(site, &["check", "--config", config.to_str().unwrap(), "--output", output])
}

/// What is no note: those depend on where the tests run.
fn findings(report: &serde_json::Value) -> Vec<String> {
    let all = report["findings"].as_array().unwrap();
    assert!(all.iter().all(|f| ["about", "what", "remedy"].iter().all(|k| !f[k].as_str().unwrap().is_empty())));
    let worth = all.iter().filter(|f| f["severity"] != "note");
    let text = |f: &serde_json::Value, key: &str| f[key].as_str().unwrap().to_owned();
    worth.map(|f| format!("{} {}: {}", text(f, "severity"), text(f, "about"), text(f, "what"))).collect()
}

#[test]
fn a_good_configuration_is_ready_to_serve() {
    let site = Site::local();
    let checked = check(&site, "text");
    let (mut out, mut is_note) = (String::new(), false);
    for line in checked.out.split_inclusive('\n') {
        is_note = line.starts_with("note ") || is_note && line.starts_with("          remedy: ");
        out.push_str(if is_note { "" } else { line });
    }
    assert_eq!(
        (checked.status, out.as_str()),
        (
            0,
            "config    DIR/config.yaml
endpoint  unix://DIR/kms.sock
KEK       local:UUID
version   UUID
key_id    KEY-ID
          sha256:HASH
wrapped and unwrapped a data key in N ms; 77 bytes in the annotation of every object
ready to serve
"
        )
    );
    let json = check(&site, "json").json();
    let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "config",
            "endpoint",
            "findings",
            "kek",
            "kekVersion",
            "keyId",
            "keyIdHash",
            "readKeks",
            "recovery",
            "wrapAndUnwrapMillis",
            "wrappedDekBytes"
        ]
    );
    assert_eq!((&json["wrappedDekBytes"], &json["readKeks"]), (&77.into(), &0.into()));
    assert!(findings(&json).is_empty(), "{json}");
    let listed =
        run(&site, &["keyring", "list", "--file", site.keyring().to_str().unwrap(), "--output", "json"]).json();
    assert_eq!(json["keyId"], listed["versions"][0]["keyId"]);
}

#[test]
fn a_good_configuration_for_aws_names_the_key_and_not_the_alias() {
    let site = Site::aws();
    let json = check(&site, "json").json();
    assert_eq!(json["kek"].as_str().unwrap(), format!("aws:{}", site.kms().key_arn(ALIAS)));
    assert_eq!(json["kekVersion"].as_str().unwrap(), site.kms().material_ids(ALIAS)[0]);
}

#[test]
fn a_permission_that_is_not_granted_is_named_with_what_is_lost_by_it() {
    let site = Site::aws();
    site.kms().revoke("DescribeKey");
    let checked = check(&site, "json");
    assert_eq!(checked.status, 0, "everything else works without it");
    let found = findings(&checked.json());
    assert_eq!(found.len(), 1);
    let warning = &found[0];
    assert!(
        warning.starts_with("warning kek: kms:DescribeKey is not granted: ") && warning.contains("pending deletion"),
        "{warning}"
    );
}

#[test]
fn every_recovery_kek_is_tried_and_a_dead_one_is_a_warning() {
    let (mut site, spare) = (Site::aws(), Site::local());
    let keks = format!(
        "{{local: {{keyring: {}}}}}, {{local: {{keyring: {}}}}}",
        spare.keyring().display(),
        spare.dir().join("lost.json").display()
    );
    site.set(&format!("recovery: {{keks: [{keks}]}}"));
    let checked = check(&site, "json");
    assert_eq!(checked.status, 0);
    let report = checked.json();
    assert!(report["recovery"][0]["kek"].as_str().unwrap().starts_with("local:"));
    assert!(report["recovery"][1]["problem"].as_str().unwrap().starts_with("kms-unreachable: "));
    assert_eq!(findings(&report), ["warning kek: recovery KEK 2 would not wrap data keys; serving goes on without it"]);
}

#[test]
fn check_changes_nothing() {
    let site = Site::local();
    let listing = || {
        let mut all: Vec<_> = std::fs::read_dir(site.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        all.sort();
        all
    };
    site.write_config();
    let before = (listing(), std::fs::read(site.keyring()).unwrap());
    check(&site, "text");
    assert_eq!((listing(), std::fs::read(site.keyring()).unwrap()), before);
}

#[test]
fn a_kms_that_is_away_is_4_and_one_that_refuses_is_5() {
    let site = Site::aws();
    let kms = site.kms();
    for output in ["text", "json"] {
        kms.stop();
        check(&site, output).failed_with(
            4,
            &[
                "error: the KEK cannot wrap and unwrap a data key\ncause: kms-unreachable: ",
                "hint: see whether this host",
            ],
        );
        kms.start_again();
        kms.revoke(ANY);
        check(&site, output).failed_with(5, &["cause: policy-denied: ", "hint: for AWS the role needs kms:Encrypt"]);
        kms.grant(ANY);
        kms.disable(ALIAS);
        check(&site, output).failed_with(5, &["cause: kek-disabled: ", "hint: enable the key"]);
        kms.schedule_deletion(ALIAS);
        check(&site, output).failed_with(5, &["cause: kek-pending-deletion: ", "hint: cancel the deletion now"]);
        kms.enable(ALIAS);
        assert_eq!(check(&site, output).status, 0);
    }
    kms.delete_now(ALIAS);
    check(&site, "text").failed_with(5, &["cause: kek-gone: ", "hint: see whether the key, alias, region"]);
}

#[test]
fn a_keyring_that_is_not_safe_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::local();
    std::fs::set_permissions(site.keyring(), std::fs::Permissions::from_mode(0o644)).unwrap();
    check(&site, "text").failed(
        5,
        "error: the KEK cannot wrap and unwrap a data key
cause: kek-file-refused: the local keyring file is not safe or not readable
cause: keyring DIR/keyring.json: its mode is 0644, so that others than its owner can use it; chmod 600 \
DIR/keyring.json; if others could read it, rotate: `kube-kms keyring add`, then `promote`
hint: the cause says what to do with the keyring file
",
    );
    std::fs::remove_file(site.keyring()).unwrap();
    check(&site, "text").failed_with(4, &["cause: kms-unreachable: ", "there is no such file"]);
}

#[test]
fn every_mistake_of_a_configuration_is_reported_by_check_and_by_serve() {
    let site = Site::local();
    let path =
        site.write_raw_config("listen: {socket: 7}\nkek: {local: {keyring: keyring.json}}\nprobe: {intervall: 5s}\n");
    for command in ["check", "serve"] {
        run(&site, &[command, "--config", path.to_str().unwrap()]).failed(
            3,
            "error: the configuration has 3 mistakes
cause: DIR/config.yaml: listen.socket: expected text, found a number; put it in quotes
cause: DIR/config.yaml: kek.local.keyring: is not an absolute path; begin it with `/`
cause: DIR/config.yaml: probe.intervall: unknown key; did you mean `interval`?
hint: docs/configuration.md has every key; `kube-kms check` tries a configuration without serving
",
        );
    }
}

#[test]
fn a_configuration_that_is_not_there_is_3() {
    let site = Site::local();
    for command in ["check", "serve"] {
        run(&site, &[command, "--config", "none.yaml"])
            .failed_with(3, &["cause: DIR/none.yaml: cannot be read: No such file or directory"]);
    }
}

#[test]
fn what_cannot_work_as_it_is_configured_is_3_with_a_hint() {
    // No region anywhere.
    let mut site = Site::aws();
    site.set("kek: {aws: {key: alias/prod}}");
    let path = site.write_config();
    for command in ["check", "serve"] {
        run(&site, &[command, "--config", path.to_str().unwrap()])
            .failed_with(3, &["cause: kek-unusable: ", "cause: no region: ", "hint: "]);
    }
    // A socket that nobody can dial.
    let mut site = Site::local();
    site.listen("{socket: 'unix://host/kms.sock'}");
    let path = site.write_config();
    for command in ["check", "serve"] {
        run(&site, &[command, "--config", path.to_str().unwrap()])
            .failed_with(3, &["kube-apiserver would drop the host", "hint: "]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_instance_on_the_same_socket_is_refused() {
    let site = Site::local();
    let first = site.start().await;
    let config = site.write_config();
    run(&site, &["serve", "--config", config.to_str().unwrap()])
        .failed_with(5, &["error: kube-kms cannot serve\ncause: the socket cannot be bound\n", "--take-over"]);
    first.until_ok().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_warns_of_what_serving_would_change() {
    let site = Site::local();
    site.start().await.stop().await;
    let keyring = site.keyring().to_str().unwrap().to_owned();
    let added = run(&site, &["keyring", "add", "--file", &keyring, "--output", "json"]).json();
    let old = run(&site, &["keyring", "list", "--file", &keyring, "--output", "json"]).json();
    let old = old["versions"][0]["version"].as_str().unwrap().to_owned();
    run(&site, &["keyring", "promote", "--file", &keyring, added["version"].as_str().unwrap()]);
    let warned = check(&site, "text");
    assert_eq!(warned.status, 0);
    let rotates = "WARNING   kek: the key_id differs from the one that this node reported last: serving will rotate\n";
    assert!(warned.out.contains(rotates) && !warned.out.contains("ready to serve"), "{}", warned.out);
    site.start().await.stop().await;
    // The way back is refused, with the way that works.
    let config = site.write_config().to_str().unwrap().to_owned();
    let promote = ["keyring", "promote", "--file", &keyring, &old];
    let hint = "hint: raise `epoch` by one in the configuration of every node, then: kube-kms keyring promote --file ";
    let cause = "cause: version UUID is older than the current one: plugins that have reported its key_id refuse to go back \
                 (key-id-retired)\n";
    run(&site, &promote).failed_with(5, &[cause, hint]);
    let forced = [&promote[..], &["--epoch-raised"]].concat();
    let left = "cause: this node has reported the key_id of version UUID and left it: it refuses to go back (key-id-retired)\n";
    run(&site, &[&forced[..], &["--config", &config]].concat()).failed_with(5, &[left, hint]);
    run(&site, &forced);
    let warned = check(&site, "json").json();
    assert!(findings(&warned)[0].contains("serve will refuse it"), "{warned}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_prints_what_to_paste_when_asked() {
    let site = Site::local();
    let running = site.spawn_with(&["--print-setup"]);
    let key_id = running.until_ok().await;
    running.until("what to paste", || running.out().contains("kube-kms probe --socket")).await;
    let out = running.out();
    assert!(out.contains(&format!("key_id    {key_id}\n")), "{out}");
    let endpoint = format!("unix://{}", site.socket().display());
    for line in
        ["            apiVersion: v2\n", "            timeout: 3s\n", &format!("            endpoint: {endpoint}\n")]
    {
        assert!(out.contains(line), "{line:?} is not in:\n{out}");
    }
    // The command that it ends with works as it is printed.
    run(&site, &["probe", "--socket", &endpoint]);
}

/// Following the advice changes nothing but who vouches: the key_id is the same, and the note is gone.
#[test]
fn an_alias_is_noted_with_the_arn_to_write_in_its_place() {
    let aliases = |report: &serde_json::Value| -> Vec<serde_json::Value> {
        let all = report["findings"].as_array().unwrap().iter();
        all.filter(|f| f["what"].as_str().unwrap().contains("is an alias")).cloned().collect()
    };
    let mut site = Site::aws();
    let by_alias = check(&site, "json").json();
    let noted = aliases(&by_alias);
    let arn = site.kms().key_arn(ALIAS);
    assert_eq!((noted.len(), &noted[0]["severity"]), (1, &"note".into()), "{noted:?}");
    assert!(noted[0]["what"].as_str().unwrap().contains("every key of its account and region vouches"), "{noted:?}");
    assert!(noted[0]["remedy"].as_str().unwrap().contains(&format!("`key: {arn}`")), "{noted:?}");
    let kek = |key: &str, url: &str| format!("{{aws: {{key: '{key}', region: eu-central-1, endpoint: '{url}'}}}}");
    let url = site.kms().url();
    site.set(&format!("kek: {}", kek(&arn, &url)));
    let by_arn = check(&site, "json").json();
    assert_eq!((aliases(&by_arn).len(), &by_arn["keyId"]), (0, &by_alias["keyId"]));
    site.set(&format!("read: [{}]", kek(ALIAS, &url)));
    assert_eq!(aliases(&check(&site, "json").json()).len(), 1);
}
