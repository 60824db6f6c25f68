//! The command line itself: help, version, mistakes in it, completions, a reader that goes away.

use crate::support::site::{BINARY, KMSCTL, Site, program_of};
use crate::support::transcript::{Transcript, run};
use std::process::Stdio;

const HELP: &[&[&str]] = &[
    &["--help"],
    &["serve", "--help"],
    &["check", "--help"],
    &["probe", "--help"],
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

const HELP_OF_KMSCTL: &[&[&str]] = &[
    &["--help"],
    &["scan", "--help"],
    &["inspect", "--help"],
    &["drill", "--help"],
    &["drill", "rehearse", "--help"],
    &["drill", "run", "--help"],
    &["conformance", "--help"],
    &["bench", "--help"],
    &["completions", "--help"],
];

fn all_help() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    HELP.iter().map(|help| (BINARY, *help)).chain(HELP_OF_KMSCTL.iter().map(|help| (KMSCTL, *help)))
}

fn help_of(site: &Site, program: &str, arguments: &[&str]) -> Transcript {
    Transcript::of(site, &site.process(program, arguments).output().unwrap())
}

#[test]
fn every_help_is_the_known_one() {
    let site = Site::local();
    let mut all = String::new();
    for (program, arguments) in all_help() {
        let help = help_of(&site, program, arguments);
        assert_eq!(help.status, 0);
        let name = if program == BINARY { "kube-kms" } else { "kmsctl" };
        all.push_str(&format!("$ {name} {}\n{}\n", arguments.join(" "), help.out));
    }
    let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/cli/help.txt");
    if std::env::var_os("KUBE_KMS_BLESS").is_some() {
        std::fs::write(&path, &all).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap();
    assert!(all == known, "--help differs from tests/cli/help.txt (KUBE_KMS_BLESS=1 writes it):\n{all}");
}

#[test]
fn every_command_of_the_program_has_its_help_in_the_list() {
    let site = Site::local();
    for (program, of, position) in [
        (BINARY, &["--help"][..], 0),
        (BINARY, &["keyring", "--help"][..], 1),
        (KMSCTL, &["--help"][..], 0),
        (KMSCTL, &["drill", "--help"][..], 1),
    ] {
        let help = help_of(&site, program, of).out;
        let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let names = list.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
        for name in names.map(|l| l.split_whitespace().next().unwrap()).filter(|name| *name != "help") {
            assert!(
                all_help().any(|(p, h)| p == program && h.get(position) == Some(&name)),
                "{name} has no transcript of its help"
            );
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
        let mut child = site
            .process(program_of(arguments), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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

/// Somebody types what he typed yesterday.
#[test]
fn a_command_of_the_other_program_is_answered_with_its_name_there() {
    let site = Site::local();
    for (program, arguments, expected) in [
        (BINARY, &["scan", "--endpoints", "x"][..], "`kube-kms scan` is now `kmsctl scan`"),
        (BINARY, &["drill", "rehearse"], "`kube-kms drill` is now `kmsctl drill`"),
        (KMSCTL, &["check"], "`check` is a command of the plugin itself"),
    ] {
        let said = help_of(&site, program, arguments);
        assert_eq!(said.status, 2, "{arguments:?}");
        assert!(said.err.contains(expected) && said.err.contains("hint: "), "{}", said.err);
    }
}

/// kubectl runs what is called `kubectl-kms` as `kubectl kms`.
#[test]
fn as_a_plugin_of_kubectl_it_says_how_it_is_called() {
    let site = Site::local();
    let plugin = site.dir().join("kubectl-kms");
    std::os::unix::fs::symlink(KMSCTL, &plugin).unwrap();
    let help = help_of(&site, plugin.to_str().unwrap(), &["scan", "--help"]);
    assert!(help.status == 0 && help.out.contains("Usage: kubectl kms scan"), "{}", help.out);
}
