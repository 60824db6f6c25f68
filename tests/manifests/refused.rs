//! What is refused instead of rendered, in words.

use super::{deploy, run};
use crate::support::site::Site;

#[track_caller]
fn refused(config: &std::path::Path, arguments: &[&str], status: i32, words: &str) {
    let output = run(config, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(status), 0), "{arguments:?}: {said}");
    assert!(said.contains(words), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && said.contains("\nhint: "), "{said}");
}

#[test]
fn an_option_that_would_not_be_safe_is_refused() {
    let config = deploy().join("config/aws.yaml");
    let stage = |stage: &'static str, more: &[&'static str]| {
        [&["--kind", "encryption-configuration", "--stage", stage][..], more].concat()
    };
    for (arguments, words) in [
        (vec!["--kind", "static-pod", "--env", "AWS_SECRET_ACCESS_KEY=canary"], "would put a secret into a manifest"),
        (vec!["--kind", "systemd", "--env", "AWS_SESSION_TOKEN=canary"], "would put a secret into a manifest"),
        (vec!["--kind", "static-pod", "--env", "canary"], "no `=`"),
        (vec!["--kind", "static-pod", "--env", "lower=x"], "upper-case"),
        (vec!["--kind", "static-pod", "--env", "A=b c"], "quoting"),
        (vec!["--kind", "static-pod", "--env", "A=b", "--env", "A=c"], "given twice"),
        (vec!["--kind", "static-pod", "--image", "x y"], "not the name of an image"),
        (vec!["--kind", "static-pod", "--image", ""], "not the name of an image"),
        (vec!["--kind", "static-pod", "--seccomp-profile", "/abs"], "relative"),
        (vec!["--kind", "static-pod", "--seccomp-profile", "../x"], "relative"),
        (stage("write", &["--provider", "a:b"]), "begins with a letter"),
        (stage("write", &["--provider", "a\nb"]), "begins with a letter"),
        (stage("write", &["--resources", "Secrets"]), "is a list"),
        (stage("write", &["--resources", "*"]), "wildcard"),
        (stage("move-read", &[]), "--from"),
        (stage("move-read", &["--from", "kube-kms=unix:///run/x/kms.sock"]), "names are unique"),
        (stage("move-read", &["--from", "old=/run/x/kms.sock"]), "unix:///"),
    ] {
        refused(&config, &arguments, 2, words);
        let said = run(&config, &arguments).stderr;
        assert!(!String::from_utf8_lossy(&said).contains("canary"), "{arguments:?}");
    }
    let no_stage = run(&config, &["--kind", "encryption-configuration"]);
    assert_eq!(no_stage.status.code(), Some(2));
}

#[test]
fn a_path_that_would_mount_the_system_or_need_quoting_is_refused() {
    for (listen, words) in [
        ("{socket: /run/kms.sock}", "directory of its own"),
        ("{socket: '/run/a b/kms.sock'}", "quoted"),
        ("{socket: '/run/a%n/kms.sock'}", "quoted"),
        ("{socket: '/run/../etc/x/kms.sock'}", "quoted"),
        ("{socket: kms.sock}", "relative"),
    ] {
        let mut site = Site::local();
        site.listen(listen);
        refused(&site.write_config(), &["--kind", "static-pod"], 3, words);
    }
    let config = deploy().join("config/aws.yaml");
    for dir in ["/", "/etc", "/var/lib", "relative", "/etc/kubernetes"] {
        refused(&config, &["--kind", "static-pod", "--mount", dir], 3, "");
    }
}

#[test]
fn a_configuration_with_a_mistake_is_refused_as_serve_refuses_it() {
    let site = Site::local();
    let config = site.write_raw_config("kek: {}\nnonsense: 1\n");
    refused(&config, &["--kind", "static-pod"], 3, "nonsense");
}
