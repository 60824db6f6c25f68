//! kube-apiserver's EncryptionConfiguration at each stage of a roll-out, a roll-back and a move.
//!
//! Guarantees: no stage writes under a provider that the stage before could not read, so that the API servers of a cluster
//! may be one stage apart. SPEC: apiserver.config.k8s.io/v1 EncryptionConfiguration and its validation: one kind of provider
//! in each element, names unique and without a colon, v2 with an endpoint and without cachesize.

use super::facts::address;
use super::{ENCRYPTION_CONFIGURATION, ManifestError, Options, Stage};
use kube_kms_config::Config;
use std::fmt::Write as _;

/// A KMS provider.
struct Kms<'a> {
    name: &'a str,
    endpoint: &'a str,
}

/// An element of `providers`.
enum Provider<'a> {
    Kms(&'a Kms<'a>),
    Identity,
}

pub(super) fn render(stage: Stage, config: &Config, options: &Options) -> Result<String, ManifestError> {
    let endpoint = address(config)?.endpoint();
    check_name("provider", &options.provider)?;
    check_resources(&options.resources)?;
    let ours = Kms { name: &options.provider, endpoint: &endpoint };
    let from = from(stage, options)?;
    let providers = match (stage, &from) {
        (Stage::Read, _) => vec![Provider::Identity, Provider::Kms(&ours)],
        (Stage::Write, _) => vec![Provider::Kms(&ours), Provider::Identity],
        (Stage::Off, _) => vec![Provider::Identity],
        (Stage::MoveRead, Some(old)) => vec![Provider::Kms(old), Provider::Kms(&ours)],
        (Stage::MoveWrite, Some(old)) => vec![Provider::Kms(&ours), Provider::Kms(old)],
        (Stage::Only | Stage::MoveRead | Stage::MoveWrite, _) => vec![Provider::Kms(&ours)],
    };
    let mut out =
        format!("# kube-apiserver's, the same on every control-plane node: goes to {ENCRYPTION_CONFIGURATION}.\n");
    out.push_str(comment(stage));
    out.push_str("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n  - resources:\n");
    for resource in &options.resources {
        let _ = writeln!(out, "      - \"{resource}\"");
    }
    out.push_str("    providers:\n");
    for provider in providers {
        match provider {
            Provider::Identity => out.push_str("      - identity: {}\n"),
            Provider::Kms(Kms { name, endpoint }) => {
                let _ = write!(
                    out,
                    "      - kms:
          apiVersion: v2
          # Stands in every stored value: never rename it.
          name: {name}
          endpoint: {endpoint}
          timeout: 3s
"
                );
            }
        }
    }
    Ok(out)
}

fn from(stage: Stage, options: &Options) -> Result<Option<Kms<'_>>, ManifestError> {
    if !matches!(stage, Stage::MoveRead | Stage::MoveWrite) {
        return Ok(None);
    }
    let Some((name, endpoint)) = &options.from else {
        return Err(ManifestError::option(
            "from",
            "is needed to move: NAME=ENDPOINT of the provider in use, as its file has it",
        ));
    };
    check_name("from", name)?;
    if *name == options.provider {
        return Err(ManifestError::option(
            "provider",
            "is the name of the other provider; names are unique, choose a new one",
        ));
    }
    let plain = endpoint.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@:%~,=".contains(&b));
    if !endpoint.starts_with("unix:///") || !plain {
        return Err(ManifestError::option("from", "its endpoint is unix:///PATH or unix:///@NAME"));
    }
    Ok(Some(Kms { name, endpoint }))
}

/// The name stands between colons in etcd.
fn check_name(option: &'static str, name: &str) -> Result<(), ManifestError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty()
        || !name.as_bytes().iter().all(|b| plain(*b))
        || !name.starts_with(|c: char| c.is_ascii_alphabetic())
    {
        return Err(ManifestError::option(
            option,
            "the name of a provider begins with a letter and has letters, digits and ._-",
        ));
    }
    Ok(())
}

fn check_resources(resources: &[String]) -> Result<(), ManifestError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-*".contains(&b);
    let is_resource = |r: &String| !r.is_empty() && *r != "*" && r.bytes().all(plain);
    if resources.is_empty() || !resources.iter().all(is_resource) {
        let what = "is a list such as secrets,configmaps,widgets.example.com; a wildcard is *.GROUP or *.*";
        return Err(ManifestError::option("resources", what));
    }
    Ok(())
}

const fn comment(stage: Stage) -> &'static str {
    match stage {
        Stage::Read => {
            "# Roll-out 1 of 3, and roll-back 2 of 3: new values in clear, values of kube-kms readable.
# Roll-out: on every API server before the next stage. Roll-back: on every API server, then rewrite all objects.
"
        }
        Stage::Write => {
            "# Roll-out 2 of 3, and roll-back 1 of 3: kube-kms writes, values in clear readable. On every API server before the next
# stage; in a roll-out then rewrite all objects.
"
        }
        Stage::Only => {
            "# Roll-out 3 of 3: kube-kms alone. Only when every object has been rewritten (and, after a move, none is left under the
# other provider): values in clear are refused now, also those that somebody puts into etcd.
"
        }
        Stage::Off => {
            "# Roll-back 3 of 3: no encryption. Only when every object has been rewritten in clear; then the flag can go, and kube-kms.
"
        }
        Stage::MoveRead => {
            "# Move 1 of 2: the other provider writes, values of kube-kms readable. On every API server before the next stage.
"
        }
        Stage::MoveWrite => {
            "# Move 2 of 2: kube-kms writes, values of the other provider readable. When every API server has it, rewrite all objects,
# and go on with the stage `only`. Back: the stage before, then rewrite.
"
        }
    }
}
