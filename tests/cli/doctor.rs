//! `check` as a doctor: host, socket, running instance, and kube-apiserver's EncryptionConfiguration.

use crate::support::fake_kms::Failure;
use crate::support::site::Site;
use crate::support::transcript::{Transcript, run};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

fn check(site: &Site, more: &[&str]) -> Transcript {
    let config = site.write_config();
    run(site, &[&["check", "--config", config.to_str().unwrap(), "--output", "json"], more].concat())
}

/// Severity, subject and words of each finding, notes too.
fn findings(checked: &Transcript) -> Vec<String> {
    let report = checked.json();
    let text = |f: &serde_json::Value, key: &str| f[key].as_str().unwrap().to_owned();
    let line = |f: &serde_json::Value| {
        assert!(text(f, "remedy").len() > 3, "{f}");
        format!("{} {}: {}", text(f, "severity"), text(f, "about"), text(f, "what"))
    };
    report["findings"].as_array().unwrap().iter().map(line).collect()
}

#[track_caller]
fn has(found: &[String], begin: &str, part: &str) {
    assert!(
        found.iter().any(|f| f.starts_with(begin) && f.contains(part)),
        "{begin:?} … {part:?} is not in {found:#?}"
    );
}

/// An EncryptionConfiguration of these stanzas; `@` is our endpoint.
fn encryption(site: &Site, resources: &str) -> String {
    let path = site.dir().join("encryption.yaml");
    let endpoint = format!("unix://{}", site.socket().display());
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
    std::fs::write(&path, format!("{head}resources:\n{}", resources.replace('@', &endpoint))).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn judged(site: &Site, resources: &str) -> Transcript {
    let file = encryption(site, resources);
    check(site, &["--encryption-config", &file])
}

const OURS: &str = "kms: {apiVersion: v2, name: kube-kms, endpoint: '@', timeout: 3s}";

#[test]
fn every_stage_that_we_render_is_without_fault_and_known_by_its_name() {
    let site = Site::local();
    let config = site.write_config();
    let from = "other=unix:///run/other/kms.sock";
    for (stage, more) in
        [("read", None), ("write", None), ("only", None), ("move-read", Some(from)), ("move-write", Some(from))]
    {
        let mut arguments =
            vec!["manifests", "--config", config.to_str().unwrap(), "--kind", "encryption-configuration"];
        arguments.extend(["--stage", stage]);
        arguments.extend(more.iter().flat_map(|from| ["--from", from]));
        let rendered = run(&site, &arguments);
        assert_eq!(rendered.status, 0, "{}", rendered.err);
        let path = site.dir().join("encryption.yaml");
        std::fs::write(&path, rendered.out.replace("DIR", site.dir().to_str().unwrap())).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let checked = check(&site, &["--encryption-config", path.to_str().unwrap()]);
        assert_eq!(checked.status, 0, "{stage}: {}", checked.out);
        let found = findings(&checked);
        assert!(found.iter().all(|f| f.starts_with("note ")), "{stage}: {found:#?}");
        assert_eq!(checked.json()["encryption"][0]["stage"], stage);
    }
}

#[test]
fn what_kube_apiserver_would_refuse_is_an_error_and_exit_status_6() {
    let site = Site::local();
    let stanza = |providers: &str| format!("- resources: [secrets]\n  providers:\n{providers}");
    let kms = |fields: &str| stanza(&format!("  - kms: {{{fields}}}\n"));
    for (resources, part) in [
        (kms("name: a, endpoint: '@'"), "no `apiVersion`, so it is v1"),
        (kms("apiVersion: v1, name: a, endpoint: '@'"), "KMS v1 is off"),
        (kms("apiVersion: v2, name: a, endpoint: '@', cachesize: 100"), "`cachesize` is not allowed with v2"),
        (kms("apiVersion: v2, name: 'a:b', endpoint: '@'"), "has a `:` in it"),
        (kms("apiVersion: v2, endpoint: '@'"), "no `name`"),
        (kms("apiVersion: v2, name: a, endpoint: '@', timeout: 0s"), "`timeout` is not more than 0"),
        (kms("apiVersion: v2, name: a, endpoint: '@', timeout: 3"), "`timeout` is not a duration as Go writes it"),
        (kms("apiVersion: v2, name: a, endpoint: /run/kms.sock"), "not of the scheme unix"),
        (kms("apiVersion: v2, name: a, endpoint: 'unix://run/kms.sock'"), "would drop the host \"run\""),
        (kms("apiVersion: v2, name: a, endpoint: 'unix:///elsewhere.sock'"), "no provider dials the socket"),
        (kms("apiVersion: v2, name: a"), "no `endpoint`"),
        (stanza("  - {}\n"), "not exactly one kind of provider"),
        (stanza("  - identity: {}\n"), "no provider dials the socket"),
        (stanza(&format!("  - {OURS}\n  - {OURS}\n")), "a second provider of the name \"kube-kms\""),
        (format!("- resources: []\n  providers: [{{{OURS}}}]\n"), "no `resources`"),
        (format!("- resources: ['*', secrets]\n  providers: [{{{OURS}}}]\n"), "stands alone"),
        (format!("- resources: ['*.', secrets]\n  providers: [{{{OURS}}}]\n"), "overlap in one list"),
        (format!("- resources: [Secrets]\n  providers: [{{{OURS}}}]\n"), "has capital letters"),
        ("- resources: [secrets]\n".to_owned(), "no `providers`"),
    ] {
        let checked = judged(&site, &resources);
        assert_eq!(checked.status, 6, "{resources}: {}", checked.out);
        has(&findings(&checked), "error encryption-configuration: ", part);
    }
}

#[test]
fn what_it_takes_and_nobody_wants_is_a_warning() {
    let site = Site::local();
    let stanza = |providers: &str| format!("- resources: [secrets]\n  providers:\n{providers}");
    let timeout = |t: &str| stanza(&format!("  - {}\n", OURS.replace("3s", t)));
    for (resources, part) in [
        (timeout("1s"), "is less than our probe.timeout 2s"),
        (timeout("11s"), "waits for up to twice this"),
        (timeout("1m"), "is more than the 30s"),
        (stanza(&format!("  - {}\n", OURS.replace("kube-kms", &"x".repeat(65)))), "`name` has 65 bytes"),
        (
            stanza(&format!("  - {OURS}\n  - aescbc: {{keys: [{{name: a, secret: U0VDUkVU}}]}}\n")),
            "aescbc is left over",
        ),
        (format!("- resources: [configmaps]\n  providers: [{{{OURS}}}]\n"), "Secrets are in no list"),
        (
            format!(
                "- resources: ['*.*']\n  providers: [{{{OURS}}}]\n- resources: [secrets]\n  providers: [{{identity: {{}}}}]\n"
            ),
            "\"secrets\" stands above already as \"*.*\"",
        ),
    ] {
        let checked = judged(&site, &resources);
        assert_eq!(checked.status, 0, "{resources}: {}", checked.out);
        has(&findings(&checked), "warning encryption-configuration: ", part);
        assert!(!checked.out.contains("U0VDUkVU"));
    }
    // The file itself.
    let file = encryption(&site, &stanza(&format!("  - {OURS}\n  - aescbc: {{keys: []}}\n")));
    std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let found = findings(&check(&site, &["--encryption-config", &file]));
    has(&found, "warning ", "and so turn encryption off");
    has(&found, "warning ", "and keys stand in it");
}

#[test]
fn the_text_says_what_is_encrypted_by_whom_and_puts_errors_first() {
    let site = Site::local();
    let file = encryption(
        &site,
        &format!(
            "- resources: [secrets, configmaps]\n  providers: [{{{OURS}}}, {{identity: {{}}}}]\n- resources: [Pods]\n  providers: [{{identity: {{}}}}]\n"
        ),
    );
    let config = site.write_config();
    let checked = run(&site, &["check", "--config", config.to_str().unwrap(), "--encryption-config", &file]);
    assert_eq!(checked.status, 6);
    let out = &checked.out;
    assert!(
        out.contains("\nencrypts  secrets, configmaps: kms kube-kms writes; also read by identity (stage write)\n"),
        "{out}"
    );
    assert!(
        out.contains("\nencrypts  Pods: identity writes (stage off)\nERROR     encryption-configuration: "),
        "{out}"
    );
    assert!(!out.contains("ready to serve"));
}

#[test]
fn what_is_no_encryption_configuration_is_3_and_shows_no_value() {
    let site = Site::local();
    let config = site.write_config();
    let file = site.dir().join("encryption.yaml");
    for (text, cause) in [
        (
            "resources:\n- providers:\n  - kms: {apiversion: v2}\n",
            "line 3, column 11: unknown field \"apiversion\"; known here: ",
        ),
        ("secret: U0VDUkVU\n", "unknown field \"secret\""),
        ("[U0VDUkVU", "not an EncryptionConfiguration, or not valid YAML"),
        ("", "is empty"),
    ] {
        std::fs::write(&file, text).unwrap();
        let arguments = ["check", "--config", config.to_str().unwrap(), "--encryption-config", file.to_str().unwrap()];
        let failed = run(&site, &arguments);
        failed.failed_with(3, &["error: DIR/encryption.yaml is no EncryptionConfiguration\ncause: ", cause, "hint: "]);
        assert!(!failed.err.contains("U0VDUkVU"));
    }
    run(&site, &["check", "--config", config.to_str().unwrap(), "--encryption-config", "none.yaml"])
        .failed_with(3, &["cause: cannot be read: No such file"]);
}

#[test]
fn a_socket_that_could_not_be_bound_is_an_error() {
    let site = Site::local();
    std::fs::write(site.socket(), "a file").unwrap();
    let checked = check(&site, &[]);
    assert_eq!(checked.status, 6);
    has(&findings(&checked), "error socket: ", "exists and is not a socket");
    std::fs::remove_file(site.socket()).unwrap();

    std::fs::set_permissions(site.dir(), Permissions::from_mode(0o777)).unwrap();
    let checked = check(&site, &[]);
    assert_eq!(checked.status, 6);
    has(&findings(&checked), "error socket: ", "everybody may write to");
    has(&findings(&checked), "error keyring-directory: ", "take the keyring away");
    std::fs::set_permissions(site.dir(), Permissions::from_mode(0o1777)).unwrap();
    let checked = check(&site, &[]);
    assert_eq!(checked.status, 6);
    has(&findings(&checked), "error socket: ", "everybody may make files in");
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(site.dir(), Permissions::from_mode(0o770)).unwrap();
        std::os::unix::fs::chown(site.dir(), None, Some(5555)).unwrap();
        has(&findings(&check(&site, &[])), "warning socket-directory: ", "whoever is in group 5555 may write to");
        std::os::unix::fs::chown(site.dir(), None, Some(0)).unwrap();
    }
    std::fs::set_permissions(site.dir(), Permissions::from_mode(0o700)).unwrap();

    // Left by a process that is gone: serve replaces it.
    drop(std::os::unix::net::UnixListener::bind(site.socket()).unwrap());
    let checked = check(&site, &[]);
    assert_eq!(checked.status, 0);
    has(&findings(&checked), "note socket: ", "was left by a process that is gone");
}

#[test]
fn a_socket_that_its_callers_could_not_reach_is_a_warning() {
    let mut site = Site::local();
    let path = site.dir().join("run/kms.sock");
    std::fs::create_dir(site.dir().join("run")).unwrap();
    std::fs::set_permissions(site.dir().join("run"), Permissions::from_mode(0o700)).unwrap();
    site.listen(&format!("{{socket: {}, mode: \"0660\"}}", path.display()));
    has(
        &findings(&check(&site, &[])),
        "warning socket-directory: ",
        "lets the group use the socket, and the mode 0700",
    );
    site.listen(&format!("{{socket: {}, allowUids: [4242]}}", path.display()));
    let found = findings(&check(&site, &[]));
    has(&found, "warning socket: ", "lets 4242 call, and `listen.mode` keeps everybody but the owner and root away");
    has(&found, "note socket: ", "does not have root");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(site.dir().join("run"), Some(10_001), None).unwrap();
        has(&findings(&check(&site, &[])), "note socket-directory: ", "belongs to user 10001, and this is root");
    }
    std::os::unix::fs::symlink(site.dir().join("run"), site.dir().join("link")).unwrap();
    site.listen(&format!("{{socket: {}}}", site.dir().join("link/kms.sock").display()));
    has(&findings(&check(&site, &[])), "warning socket-directory: ", "is a symbolic link");
    site.listen("{socket: '@kube-kms-doctor-test'}");
    has(&findings(&check(&site, &[])), "note socket: ", "every one of them can take the name");
}

#[test]
fn a_kms_that_is_away_does_not_hide_what_else_is_wrong() {
    let site = Site::aws();
    site.kms().stop();
    std::fs::set_permissions(site.dir(), Permissions::from_mode(0o777)).unwrap();
    let config = site.write_config();
    run(&site, &["check", "--config", config.to_str().unwrap()]).failed_with(
        4,
        &[
            "cause: kms-unreachable: ",
            "cause: also found: socket: serve could not bind it: everybody may write to DIR; remedy: ",
        ],
    );
}

#[test]
fn a_clock_that_differs_from_the_kms_is_told_and_explains_a_refusal() {
    let site = Site::aws();
    assert!(!findings(&check(&site, &[])).iter().any(|f| f.contains("the clock of this host")));
    for (ahead, direction) in [(600, " behind the one of the KMS"), (-600, " ahead of the one of the KMS")] {
        site.kms().set_clock_ahead(ahead);
        let found = findings(&check(&site, &[]));
        has(&found, "warning kek: the clock of this host is ", direction);
    }
    site.kms().fail_all("Encrypt", Failure::UnrecognizedClient);
    let config = site.write_config();
    run(&site, &["check", "--config", config.to_str().unwrap()]).failed_with(
        5,
        &["cause: credentials-rejected: ", "cause: also found: the clock of this host is ", "remedy: set it by NTP"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_instance_is_compared_with_what_this_configuration_leads_to() {
    let site = Site::local();
    let running = site.start().await;
    let found = findings(&check(&site, &[]));
    has(&found, "note socket: ", "listens on");
    has(&found, "note running-instance: ", "reports the same key_id");
    // The same socket with another epoch is another key_id.
    let config = site.write_config();
    let text = format!("{}epoch: 7\n", std::fs::read_to_string(config).unwrap());
    let other = site.dir().join("other.yaml");
    std::fs::write(&other, text).unwrap();
    let checked = run(&site, &["check", "--config", other.to_str().unwrap(), "--output", "json"]);
    has(&findings(&checked), "warning running-instance: ", "reports another key_id");
    running.until_ok().await;
}
