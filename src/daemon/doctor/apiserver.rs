//! kube-apiserver's EncryptionConfiguration, judged: would it be taken, does it dial us, what does it encrypt, what is left over?
//!
//! Guarantees: what kube-apiserver refuses is an error here; what it takes and an operator would not want is a warning. Refuses
//! to know what is in etcd: that is for `kmsctl scan`. SPEC: k8s.io/apiserver validation_encryption.go; docs/install.md.

use crate::doctor::encryption_configuration::{API_VERSION, EncryptionConfiguration, KIND, Kind, Stanza};
use crate::doctor::finding::{Finding, Findings};
use crate::doctor::{provider, resource};
use kms_v2_api::address::SocketAddress;
use kube_kms_config::Config;
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What becomes of some resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// The resources, as the stanza has them.
    pub resources: Vec<String>,
    /// The stage of docs/install.md that this is, where it is one.
    pub stage: Option<&'static str>,
    /// The provider that writes.
    pub writes: String,
    /// Those that only read.
    pub reads: Vec<String>,
}

/// The verdict.
#[derive(Debug)]
pub struct Verdict {
    /// Findings.
    pub findings: Vec<Finding>,
    /// Stanza by stanza.
    pub coverage: Vec<Coverage>,
}

/// Who a provider is to us.
#[derive(Clone, Debug)]
struct Role {
    shown: String,
    kind: RoleKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleKind {
    Ours,
    OtherKms,
    Static,
    Identity,
}

/// Judges the document, and the mode of the file it came from.
#[must_use]
pub fn judge(document: &EncryptionConfiguration, path: &Path, config: &Config, ours: &SocketAddress) -> Verdict {
    let mut found = Findings::about("encryption-configuration");
    if document.api_version != API_VERSION {
        found.error("`apiVersion` is not that of an EncryptionConfiguration", format!("apiVersion: {API_VERSION}"));
    }
    if document.kind != KIND {
        found.error("`kind` is not EncryptionConfiguration", format!("kind: {KIND}"));
    }
    if document.resources.is_empty() {
        found
            .error("`resources` is empty", "`kube-kms manifests --kind encryption-configuration` prints one that fits");
    }
    let mut names = Vec::new();
    let mut coverage = Vec::new();
    let mut has_ours = false;
    for (number, stanza) in document.resources.iter().enumerate() {
        let at = format!("resources[{number}]");
        let roles = roles(stanza, &at, config, ours, &mut names, &mut found);
        has_ours |= roles.iter().any(|r| r.kind == RoleKind::Ours);
        resources(document, number, &at, &mut found);
        if let Some((writer, readers)) = roles.split_first() {
            stage_findings(&roles, &at, &mut found);
            coverage.push(Coverage {
                resources: stanza.resources.clone(),
                stage: stage(&roles),
                writes: writer.shown.clone(),
                reads: readers.iter().map(|r| r.shown.clone()).collect(),
            });
        }
    }
    if !document.resources.is_empty() {
        whole(has_ours, &coverage, ours, &mut found);
    }
    let has_keys =
        document.resources.iter().flat_map(|s| &s.providers).any(|p| matches!(p.kind(), Some(Kind::Static(_))));
    file(path, has_keys, &mut found);
    Verdict { findings: found.into_list(), coverage }
}

fn roles(
    stanza: &Stanza,
    at: &str,
    config: &Config,
    ours: &SocketAddress,
    names: &mut Vec<String>,
    found: &mut Findings,
) -> Vec<Role> {
    if stanza.providers.is_empty() {
        found.error(format!("{at}: no `providers`"), "at least one; the first one writes");
    }
    let mut roles = Vec::new();
    for (number, provider) in stanza.providers.iter().enumerate() {
        let at = format!("{at}.providers[{number}]");
        let role = match provider.kind() {
            None => {
                found.error(
                    format!("{at}: not exactly one kind of provider"),
                    "one of kms, identity, secretbox, aesgcm, aescbc in each element",
                );
                continue;
            }
            Some(Kind::Identity) => Role { shown: "identity".to_owned(), kind: RoleKind::Identity },
            Some(Kind::Static(name)) => Role { shown: name.to_owned(), kind: RoleKind::Static },
            Some(Kind::Kms(kms)) => {
                if names.contains(&kms.name) {
                    found.error(
                        format!(
                            "{at}: a second provider of the name {:?}; with v2 each name may stand once in the file",
                            kms.name
                        ),
                        "another name; the endpoint may be the same",
                    );
                }
                names.push(kms.name.clone());
                let is_ours = provider::judge(kms, &at, config, ours, found);
                let kind = if is_ours { RoleKind::Ours } else { RoleKind::OtherKms };
                Role { shown: format!("kms {}", kms.name), kind }
            }
        };
        roles.push(role);
    }
    roles
}

fn resources(document: &EncryptionConfiguration, number: usize, at: &str, found: &mut Findings) {
    let Some(stanza) = document.resources.get(number) else { return };
    if stanza.resources.is_empty() {
        found.error(format!("{at}: no `resources`"), "such as [secrets]");
    }
    for (n, name) in stanza.resources.iter().enumerate() {
        if let Some(fault) = resource::fault(name) {
            found.error(
                format!("{at}.resources[{n}]: {name:?} {fault}"),
                "such as secrets, widgets.example.com, *.apps, `*.` or `*.*`",
            );
        }
        let before = stanza.resources.iter().take(n).find(|b| resource::covers(b, name) || resource::covers(name, b));
        if let Some(before) = before {
            found.error(
                format!(
                    "{at}.resources[{n}]: {name:?} and {before:?} overlap in one list; kube-apiserver refuses the file"
                ),
                "remove one of them",
            );
        }
        let above =
            document.resources.iter().take(number).flat_map(|s| &s.resources).find(|b| resource::covers(b, name));
        if let Some(above) = above {
            found.warning(
                format!("{at}.resources[{n}]: {name:?} stands above already as {above:?}: the earlier one decides, this one does nothing"),
                "remove it, or put the narrower one first",
            );
        }
    }
}

/// SPEC: the stages of docs/install.md, which `kube-kms manifests` renders.
fn stage(roles: &[Role]) -> Option<&'static str> {
    use RoleKind::{Identity, OtherKms, Ours};
    match roles.iter().map(|r| r.kind).collect::<Vec<_>>().as_slice() {
        [Identity, Ours] => Some("read"),
        [Ours, Identity] => Some("write"),
        [Ours] => Some("only"),
        [Identity] => Some("off"),
        [OtherKms, Ours] => Some("move-read"),
        [Ours, OtherKms] => Some("move-write"),
        _ => None,
    }
}

fn stage_findings(roles: &[Role], at: &str, found: &mut Findings) {
    let Some((writer, readers)) = roles.split_first() else { return };
    if !roles.iter().any(|r| r.kind == RoleKind::Ours) {
        return;
    }
    match writer.kind {
        RoleKind::Ours => {}
        RoleKind::Identity => found.note(
            format!("{at}: `identity` stands first, so new values are in clear and kube-kms only reads"),
            "right for the first stage of a roll-out and the last of a roll-back (docs/install.md); else put kms first",
        ),
        RoleKind::OtherKms | RoleKind::Static => found.note(
            format!("{at}: {} writes, kube-kms only reads", writer.shown),
            "right for the first stage of a move (docs/install.md); else put ours first",
        ),
    }
    for reader in readers {
        match reader.kind {
            RoleKind::Identity if writer.kind == RoleKind::Ours => found.note(
                format!("{at}: `identity` still reads: a value in clear that somebody puts into etcd is believed"),
                "when `kmsctl scan` finds none in clear, remove it (stage `only`)",
            ),
            RoleKind::Static => found.warning(
                format!("{at}: {} is left over: its keys stand in this file", reader.shown),
                "rewrite the objects, see with `kmsctl scan` that none is under it, then remove it and its keys",
            ),
            _ => {}
        }
    }
}

fn whole(has_ours: bool, coverage: &[Coverage], ours: &SocketAddress, found: &mut Findings) {
    if !has_ours {
        found.error(
            "no provider dials the socket of this plugin",
            format!(
                "endpoint: {}; where kube-apiserver sees it at another path, mount the directory at the same one",
                ours.endpoint()
            ),
        );
    }
    if !coverage.iter().flat_map(|c| &c.resources).any(|r| resource::covers(r, "secrets")) {
        found.warning("Secrets are in no list: they stay in clear", "add `secrets` to `resources`");
    }
}

/// SECURITY: whoever writes this file decides what is encrypted, and whoever reads one with keys has them.
fn file(path: &Path, has_keys: bool, found: &mut Findings) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    let (mode, shown) = (metadata.mode() & 0o7777, path.display());
    if mode & 0o022 != 0 {
        found.warning(
            format!("others than its owner may write {shown} (mode {mode:04o}), and so turn encryption off"),
            format!("chmod 600 {shown}"),
        );
    }
    if has_keys && mode & 0o044 != 0 {
        found.warning(
            format!("others than its owner may read {shown} (mode {mode:04o}), and keys stand in it"),
            format!("chmod 600 {shown}, and replace those keys"),
        );
    }
}
