//! Section B: Status, items 16 to 25.

use super::session::{Check, Session, failed, not_applicable};
use crate::api::v2::StatusResponse;
use crate::client::limit;

async fn status(session: &mut Session) -> Result<StatusResponse, super::session::Stop> {
    let caller = session.caller().await?;
    caller.status().await.or_else(|trouble| failed(format!("Status: {trouble}")))
}

/// Item 16. `v2beta1` is for Kubernetes 1.27 and 1.28; newer ones take it too.
pub(super) async fn version(session: &mut Session) -> Check {
    let version = status(session).await?.version;
    if limit::is_accepted_version(&version) {
        return Ok(version);
    }
    failed(format!("Status.version is {version:?}"))
}

/// Item 17, over the whole run.
pub(super) fn version_never_changed(session: &Session) -> Check {
    let witness = session.witness();
    let versions: Vec<&str> = witness.versions.iter().map(String::as_str).collect();
    match versions.as_slice() {
        [] => not_applicable("no Status was answered"),
        [version] => Ok(format!("always {version:?} in this run")),
        several => failed(format!("Status.version was {}", several.join(", then "))),
    }
}

/// Item 19.
pub(super) async fn healthz(session: &mut Session) -> Check {
    let healthz = status(session).await?.healthz;
    if healthz == limit::HEALTHY {
        return Ok(String::new());
    }
    let cut: String = healthz.chars().take(160).collect();
    failed(format!("Status.healthz is {cut:?}; only `ok`, byte for byte, is healthy"))
}

/// Item 22.
pub(super) async fn key_id_length(session: &mut Session) -> Check {
    let key_id = status(session).await?.key_id;
    match limit::check_key_id(&key_id) {
        Ok(()) => Ok(format!("{} bytes", key_id.len())),
        Err(violation) => failed(violation.describe("Status")),
    }
}

/// Item 25: by what key_ids with something in them look like.
pub(super) async fn key_id_shows_nothing(session: &mut Session) -> Check {
    let key_id = status(session).await?.key_id;
    if key_id.is_empty() {
        return not_applicable("key_id is empty (item 22)");
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match telling(&key_id, host.trim()) {
        None => Ok("no host name, address, credential or blank in it".to_owned()),
        Some(what) => failed(format!("Status.key_id has {what} in it")),
    }
}

fn telling(key_id: &str, host: &str) -> Option<&'static str> {
    let lower = key_id.to_ascii_lowercase();
    if !key_id.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("blanks, control characters or bytes that are not ASCII");
    }
    // A host called `a` or `kms` is found in everything.
    if host.len() > 4 && lower.contains(&host.to_ascii_lowercase()) {
        return Some("the name of this host");
    }
    if key_id.contains("://") {
        return Some("an address");
    }
    ["token=", "password", "secret=", "akia", "hvs.", "eyj"]
        .iter()
        .any(|word| lower.contains(word))
        .then_some("what looks like a credential")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_that_tells_something_is_noticed() {
        for (key_id, what) in [
            ("key 1", Some("blanks")),
            ("clé", Some("blanks")),
            ("key-NODE-17.example", Some("the name of this host")),
            ("https://vault/key", Some("an address")),
            ("k?token=x", Some("what looks like a credential")),
            ("k1-0123456789abcdef", None),
            ("arn:aws:kms:eu-central-1:1:key/abc", None),
        ] {
            let found = telling(key_id, "node-17");
            assert!(
                match (found, what) {
                    (Some(found), Some(what)) => found.starts_with(what),
                    (None, None) => true,
                    _ => false,
                },
                "{key_id}: {found:?}"
            );
        }
    }
}
