//! What `kube-kms manifests` renders: equal to deploy/, valid for Kubernetes, systemd and AWS, and really run.
//!
//! The samples are rendered by the real binary from deploy/config/aws.yaml; `KUBE_KMS_BLESS=1` writes them.

mod boots;
mod docs;
mod kubernetes;
mod policy;
mod refused;
mod stages;
mod systemd;

use crate::support::site::BINARY;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Of AWS's own examples.
const ROLE: &str = "arn:aws:iam::111122223333:role/kube-kms";
const OLD: &str = "kube-kms-old=unix:///run/kube-kms-old/kms.sock";

/// Every sample below deploy/, and what renders it.
const SAMPLES: [(&str, &[&str]); 17] = [
    ("kubernetes/static-pod.yaml", &["--kind", "static-pod"]),
    ("kubernetes/sidecar-patch.yaml", &["--kind", "sidecar"]),
    ("kubernetes/kubeadm.yaml", &["--kind", "kubeadm"]),
    ("kubernetes/tmpfiles.conf", &["--kind", "tmpfiles"]),
    ("kubernetes/encryption/read.yaml", &["--kind", "encryption-configuration", "--stage", "read"]),
    ("kubernetes/encryption/write.yaml", &["--kind", "encryption-configuration", "--stage", "write"]),
    ("kubernetes/encryption/only.yaml", &["--kind", "encryption-configuration", "--stage", "only"]),
    ("kubernetes/encryption/off.yaml", &["--kind", "encryption-configuration", "--stage", "off"]),
    (
        "kubernetes/encryption/move-read.yaml",
        &["--kind", "encryption-configuration", "--stage", "move-read", "--from", OLD],
    ),
    (
        "kubernetes/encryption/move-write.yaml",
        &["--kind", "encryption-configuration", "--stage", "move-write", "--from", OLD],
    ),
    ("systemd/kube-kms.service", &["--kind", "systemd"]),
    ("systemd/kube-kms.socket", &["--kind", "systemd-socket"]),
    ("systemd/sysusers.conf", &["--kind", "sysusers"]),
    ("aws/policy.json", &["--kind", "iam"]),
    ("aws/policy-drill.json", &["--kind", "iam-drill"]),
    ("aws/key-policy.json", &["--kind", "key-policy", "--role", ROLE]),
    (
        "kubernetes/static-pod-localhost-seccomp.yaml",
        &[
            "--kind",
            "static-pod",
            "--image",
            "registry.example.com/kube-kms:0.1.0",
            "--seccomp-profile",
            "profiles/kube-kms.json",
            "--env",
            "AWS_SHARED_CREDENTIALS_FILE=/etc/aws-kms/credentials",
            "--mount",
            "/etc/aws-kms",
        ],
    ),
];

fn deploy() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("deploy")
}

/// `kube-kms manifests` on a configuration that will be at `/etc/kube-kms/config.yaml`.
fn run(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(["manifests", "--config", config.to_str().unwrap(), "--config-path", "/etc/kube-kms/config.yaml"]);
    command.args(arguments).output().unwrap()
}

/// What it prints, and nothing on stderr.
fn rendered(config: &Path, arguments: &[&str]) -> String {
    let output = run(config, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

fn sample(arguments: &[&str]) -> String {
    rendered(&deploy().join("config/aws.yaml"), arguments)
}

#[test]
fn the_samples_are_what_the_program_renders() {
    let bless = std::env::var_os("KUBE_KMS_BLESS").is_some();
    let mut wrong = Vec::new();
    for (path, arguments) in SAMPLES {
        let (path, text) = (deploy().join(path), sample(arguments));
        if bless {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "differ from `kube-kms manifests` (KUBE_KMS_BLESS=1 writes them): {wrong:?}");
}

#[test]
fn every_sample_that_is_there_is_rendered() {
    for folder in ["kubernetes", "kubernetes/encryption", "systemd", "aws"] {
        for entry in std::fs::read_dir(deploy().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(deploy()).unwrap().to_str().unwrap().to_owned();
            assert!(path.is_dir() || SAMPLES.iter().any(|(sample, _)| *sample == name), "{name} is written by hand");
        }
    }
}
