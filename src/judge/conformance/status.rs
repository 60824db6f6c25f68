//! Section B: Status, items 16 to 26.

use super::meter::Meter;
use super::session::{Check, Session, failed, not_applicable};
use super::transport::{SLOW, TIMES};
use kms_v2_api::v2::StatusResponse;
use kms_v2_client::limit;
use kube_kms_os::Stopwatch;
use std::time::Duration;

/// Slow polls of 60 that may be a busy machine's.
const FEW: usize = 3;

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
    if let Some((item @ 1.., said)) = &session.spoilt {
        return not_applicable(format!("item {item} has spoilt it, and failed by that: {said}"));
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
    if !key_id.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("blanks, control characters or bytes that are not ASCII");
    }
    if has_host(key_id, host) {
        return Some("the name of this host");
    }
    if key_id.contains("://") {
        return Some("an address");
    }
    has_credential(key_id).then_some("what looks like a credential")
}

/// Whether the name of this host is a word of the text. A name that is a plain word, such as `master`, is found in good texts.
pub(super) fn has_host(text: &str, host: &str) -> bool {
    let name = host.split('.').next().unwrap_or(host).to_ascii_lowercase();
    if name.len() < 5 || name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return false;
    }
    let lower = text.to_ascii_lowercase();
    let goes_on = |next: Option<char>| next.is_some_and(|c| c.is_ascii_alphanumeric());
    lower.match_indices(&name).any(|(at, found)| {
        let (before, rest) = lower.split_at_checked(at).unwrap_or_default();
        !goes_on(before.chars().next_back()) && !goes_on(rest.chars().nth(found.len()))
    })
}

/// Whether there is what credentials look like: by their form, because any two bytes are found in a hash.
pub(super) fn has_credential(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let named = ["token=", "password=", "secret=", "hvs."].iter().any(|word| lower.contains(word));
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_aws = |word: &str| {
        (word.starts_with("AKIA") || word.starts_with("ASIA"))
            && word.len() == 20
            && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    // A JSON web token: three parts, the first of which begins with `{"`.
    let is_token = |word: &str| word.starts_with("eyJ") && word.split('.').filter(|part| part.len() > 8).count() == 3;
    let is_of_id = |c: char| c.is_ascii_alphanumeric();
    named || text.split(|c| !is_of_id(c)).any(is_aws) || text.split(|c| !is_of_word(c)).any(is_token)
}

/// Item 26.
pub(super) async fn polls(session: &mut Session) -> Check {
    let mut seen = String::new();
    for _ in 0..TIMES {
        let meter = Meter::start(session).await?;
        let caller = session.caller().await?;
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        let mut times = Vec::new();
        for _ in 0..60 {
            beat.tick().await;
            let watch = Stopwatch::start();
            if let Err(trouble) = caller.status().await {
                return failed(format!("Status, 20 a second: {trouble}"));
            }
            times.push(watch.elapsed());
        }
        let slow = times.iter().filter(|time| **time > SLOW).count();
        let slowest = times.iter().max().map_or(0, Duration::as_millis);
        if slow <= FEW {
            let answered = format!("60 in 3 s, the slowest took {slowest} ms");
            return meter.check(session, "60 Status calls", &answered, 0).await;
        }
        let limit = SLOW.as_millis();
        seen = format!("{slow} of 60 Status calls, 20 a second, took over {limit} ms, the slowest {slowest} ms");
    }
    failed(format!("{seen}, {TIMES} times"))
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
            ("key-AKIAABCDEFGHIJKLMNOP", Some("what looks like a credential")),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", Some("what looks like a credential")),
            // Hashes in base64 have any letters in any row.
            ("v1-aKIaeyJpasswordEYJ", None),
            ("node-171", None),
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
        assert!(!has_host("the master key is away", "master") && has_host("dial Node-17: refused", "node-17.example"));
    }
}
