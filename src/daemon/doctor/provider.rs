//! One `kms` provider of an EncryptionConfiguration: would kube-apiserver take it, is it us, does its time fit ours?
//!
//! Refuses to know the other providers. SPEC: k8s.io/apiserver validation_encryption.go (`validateKMSConfiguration`), kms/util.go
//! (ParseEndpoint), defaults.go (timeout 3 s); Go's time.ParseDuration.

use crate::doctor::encryption_configuration::Kms;
use crate::doctor::finding::Findings;
use kms_v2_api::address::{Place, SocketAddress};
use kube_kms_config::Config;
use kube_kms_core::limit;
use std::path::Path;
use std::time::Duration;

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3);
/// A start of kube-apiserver may wait for twice this, and a reload for all timeouts together.
const TIMEOUT_LONG: Duration = Duration::from_secs(10);
/// Bytes of a name before it is worth a word: it stands in front of every stored value.
const NAME_LONG: usize = 64;

/// Judges it, and says whether it dials our socket.
pub(super) fn judge(kms: &Kms, at: &str, config: &Config, ours: &SocketAddress, found: &mut Findings) -> bool {
    version(kms, at, found);
    name(kms, at, found);
    timeout(kms, at, config, found);
    endpoint(kms, at, ours, found)
}

fn version(kms: &Kms, at: &str, found: &mut Findings) {
    let remedy = "apiVersion: v2";
    match kms.api_version.as_deref() {
        Some("v2") => {}
        None => found.error(format!("{at}: no `apiVersion`, so it is v1, which is off since Kubernetes 1.29"), remedy),
        Some("v1") => {
            found.error(format!("{at}: KMS v1 is off since Kubernetes 1.29, and kube-kms does not speak it"), remedy)
        }
        Some(_) => found.error(format!("{at}: `apiVersion` is neither v1 nor v2"), remedy),
    }
    if kms.cache_size.is_some() {
        found.error(
            format!("{at}: `cachesize` is not allowed with v2; kube-apiserver refuses the file"),
            "remove `cachesize`",
        );
    }
}

fn name(kms: &Kms, at: &str, found: &mut Findings) {
    if kms.name.is_empty() {
        found.error(
            format!("{at}: no `name`"),
            "name: kube-kms; it becomes part of every stored value, so never change it",
        );
    }
    if kms.name.contains(':') {
        found.error(
            format!("{at}: `name` has a `:` in it, which ends it in the prefix of a stored value"),
            "a name of letters, digits and `-`",
        );
    }
    if kms.name.len() > NAME_LONG {
        found.warning(
            format!("{at}: `name` has {} bytes, and stands in front of every stored value", kms.name.len()),
            "a short one, before anything is sealed; a later change is a move to another provider",
        );
    }
}

fn timeout(kms: &Kms, at: &str, config: &Config, found: &mut Findings) {
    let timeout = match kms.timeout.as_deref() {
        None => TIMEOUT_DEFAULT,
        Some(text) => match go_duration(text) {
            Some(timeout) if timeout > Duration::ZERO => timeout,
            Some(_) => return found.error(format!("{at}: `timeout` is not more than 0"), "timeout: 3s"),
            None => {
                return found.error(
                    format!("{at}: `timeout` is not a duration as Go writes it"),
                    "such as 3s, 1500ms or 1m30s",
                );
            }
        },
    };
    let shown = humantime::format_duration(timeout);
    let probe = humantime::format_duration(config.settings.probe_timeout);
    if timeout < config.settings.probe_timeout {
        found.warning(
            format!("{at}: `timeout` {shown} is less than our probe.timeout {probe}: a KMS that counts as well may be too slow for a Decrypt"),
            "timeout: 3s, or a shorter `probe.timeout`",
        );
    }
    if timeout > Duration::from_millis(limit::CALL_DEADLINE_MAX_MS) {
        found.warning(
            format!("{at}: `timeout` {shown} is more than the 30s that kube-kms gives a call"),
            "timeout: 3s; a longer one delays starts and hides failures",
        );
    } else if timeout > TIMEOUT_LONG {
        found.warning(
            format!(
                "{at}: `timeout` {shown}: a start of kube-apiserver waits for up to twice this when the plugin hangs"
            ),
            "timeout: 3s, unless the KMS is that slow",
        );
    }
}

fn endpoint(kms: &Kms, at: &str, ours: &SocketAddress, found: &mut Findings) -> bool {
    let remedy = format!("endpoint: {}", ours.endpoint());
    if kms.endpoint.is_empty() {
        found.error(format!("{at}: no `endpoint`"), remedy);
        return false;
    }
    if !kms.endpoint.starts_with("unix:") {
        found.error(format!("{at}: `endpoint` is not of the scheme unix"), remedy);
        return false;
    }
    match SocketAddress::parse(&kms.endpoint, Path::new("/")) {
        Ok(dialled) => is_ours(&dialled, ours),
        Err(error) => {
            found.error(format!("{at}: `endpoint`: {error}"), remedy);
            false
        }
    }
}

/// The same place, also by way of a symbolic link such as /var/run.
fn is_ours(dialled: &SocketAddress, ours: &SocketAddress) -> bool {
    let real = |address: &SocketAddress| match address.place() {
        Place::File(path) => Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?)),
        Place::Abstract(_) => None,
    };
    dialled == ours || real(dialled).is_some_and(|path| real(ours) == Some(path))
}

/// SPEC: Go, time.ParseDuration: numbers with a unit, one after another; a bare `0`. No signs: those are refused anyway.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(unit_len)?;
        let of_unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * of_unit;
        rest = next;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in [
            ("3s", Some(3_000)),
            ("1500ms", Some(1_500)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("3", None),
            ("3 s", None),
            ("-3s", None),
            ("1d", None),
            ("s", None),
            ("1..5s", None),
        ] {
            assert_eq!(go_duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
