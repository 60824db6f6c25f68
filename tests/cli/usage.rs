//! The command line itself: help, version, mistakes in it, completions, a reader that goes away.

use super::transcript::run;
use crate::support::site::{BINARY, Site};
use std::process::Stdio;

const HELP: &[&[&str]] = &[
    &["--help"],
    &["serve", "--help"],
    &["check", "--help"],
    &["probe", "--help"],
    &["conformance", "--help"],
    &["bench", "--help"],
    &["scan", "--help"],
    &["inspect", "--help"],
    &["drill", "--help"],
    &["drill", "rehearse", "--help"],
    &["drill", "run", "--help"],
    &["keyring", "--help"],
    &["keyring", "init", "--help"],
    &["keyring", "list", "--help"],
    &["keyring", "add", "--help"],
    &["keyring", "promote", "--help"],
    &["keyring", "retire", "--help"],
    &["keyring", "reinstate", "--help"],
    &["manifests", "--help"],
    &["config-reference", "--help"],
    &["completions", "--help"],
    &["help", "probe"],
];

#[test]
fn every_help_is_the_known_one() {
    let site = Site::local();
    let mut all = String::new();
    for arguments in HELP {
        let help = run(&site, arguments);
        assert_eq!(help.status, 0);
        all.push_str(&format!("$ kube-kms {}\n{}\n", arguments.join(" "), help.out));
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/help.txt");
    if std::env::var_os("KUBE_KMS_BLESS").is_some() {
        std::fs::write(&path, &all).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap();
    assert!(all == known, "--help differs from tests/cli/help.txt (KUBE_KMS_BLESS=1 writes it):\n{all}");
}

#[test]
fn every_command_of_the_program_has_its_help_in_the_list() {
    let site = Site::local();
    for (of, position) in [(&["--help"][..], 0), (&["keyring", "--help"][..], 1), (&["drill", "--help"][..], 1)] {
        let help = run(&site, of).out;
        let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let names = list.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
        for name in names.map(|l| l.split_whitespace().next().unwrap()).filter(|name| *name != "help") {
            assert!(HELP.iter().any(|h| h.get(position) == Some(&name)), "{name} has no transcript of its help");
        }
    }
}

#[test]
fn the_version_is_the_packages() {
    let site = Site::local();
    run(&site, &["--version"]).printed(&format!("kube-kms {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_exit_status_2() {
    let site = Site::local();
    for arguments in [
        &[][..],
        &["--nope"],
        &["nope"],
        &["serve", "--nope"],
        &["check", "--output", "yaml"],
        &["probe"],
        &["probe", "--socket", "/x", "--timeout", "soon"],
        &["conformance"],
        &["conformance", "--socket", "/x", "--only", "89"],
        &["conformance", "--socket", "/x", "--kms-control", " "],
        &["scan", "--key-id", "x", "--unencrypted"],
        &["inspect", "--encoding", "base32"],
        &["inspect", "--config", "x"],
        &["keyring"],
        &["keyring", "init"],
        &["keyring", "promote", "--file", "x"],
        &["keyring", "list", "--file", "x", "--epoch", "-1"],
        &["completions", "tcsh"],
    ] {
        let transcript = run(&site, arguments);
        assert_eq!((transcript.status, transcript.out.as_str()), (2, ""), "{arguments:?}: {}", transcript.err);
        assert!(!transcript.err.is_empty());
    }
    run(&site, &["serve", "--take-ovr"]).failed_with(2, &["error: ", "--take-over"]);
}

#[test]
fn there_is_a_completion_script_for_every_shell() {
    let site = Site::local();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&site, &["completions", shell]);
        assert_eq!(script.status, 0);
        for word in ["kube-kms", "keyring", "take-over", "reinstate"] {
            assert!(script.out.contains(word), "{shell}: {word} is missing");
        }
    }
    let script = run(&site, &["completions", "bash"]).out;
    std::fs::write(site.dir().join("completion.bash"), script).unwrap();
    if let Ok(bash) = site.process("bash", &["-n", "completion.bash"]).output() {
        assert!(bash.status.success(), "{}", String::from_utf8_lossy(&bash.stderr));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let site = Site::local();
    let keyring = site.keyring().to_str().unwrap();
    for arguments in [
        &["completions", "bash"][..],
        &["--help"],
        &["--version"],
        &["keyring", "list", "--file", keyring],
        &["keyring", "list", "--file", keyring, "--output", "json"],
    ] {
        let mut child = site.process(BINARY, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // `| head -0`: gone before the first byte, so that no buffer of a pipe hides it.
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), said.as_ref()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn an_error_that_nobody_reads_keeps_its_exit_status() {
    let site = Site::local();
    let arguments = ["keyring", "init", "--file", site.keyring().to_str().unwrap()];
    let mut child = site.process(BINARY, &arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(5));
}
