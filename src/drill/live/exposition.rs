//! Which keys a kube-apiserver says it uses, read from its metrics page.
//!
//! Guarantees: of several hashes of one provider the one with the latest time counts; a line that is not understood is passed
//! over. Refuses to know how the page was fetched. SPEC: Prometheus text format 0.0.4; kube-apiserver
//! `storage/value/encrypt/envelope/metrics` (hashes are `sha256:` and hex).

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

const STATUS: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
const USED: &str = "apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds";

/// Hash and time, by provider.
type Latest = BTreeMap<String, (String, f64)>;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    status: Latest,
    writes: Latest,
    /// `apiserver_id_hash`.
    pub(crate) ids: BTreeSet<String>,
}

impl Facts {
    pub(crate) fn parse(page: &str) -> Self {
        let mut facts = Self::default();
        for line in page.lines() {
            let Some((name, labels, value)) = sample(line) else { continue };
            let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
            let to = match name {
                STATUS => &mut facts.status,
                USED if label("transformation_type") == "to_storage" => &mut facts.writes,
                _ => continue,
            };
            let (provider, hash, id) = (label("provider_name"), label("key_id_hash"), label("apiserver_id_hash"));
            if to.get(&provider).is_none_or(|(_, latest)| *latest < value) {
                to.insert(provider, (hash, value));
            }
            if !id.is_empty() {
                facts.ids.insert(id);
            }
        }
        facts
    }

    /// Providers that it polls.
    pub(crate) fn providers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.status.iter().map(|(provider, (hash, _))| (provider.as_str(), hash.as_str()))
    }

    /// What the provider's Status said last.
    pub(crate) fn status(&self, provider: &str) -> Option<&str> {
        self.status.get(provider).map(|(hash, _)| hash.as_str())
    }

    /// What was written under last.
    pub(crate) fn writes(&self, provider: &str) -> Option<&str> {
        self.writes.get(provider).map(|(hash, _)| hash.as_str())
    }
}

/// The label `apiserver_id_hash` of an API server, from the name of its Lease in kube-system.
pub(crate) fn id_hash(lease: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(lease.as_bytes())))
}

/// One line: name, labels, value.
fn sample(line: &str) -> Option<(&str, BTreeMap<&str, String>, f64)> {
    let (name, rest) = line.split_once('{')?;
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            let value = after.split_whitespace().next()?.parse().ok()?;
            return Some((name, labels, value));
        }
        let (label, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(label.trim(), value);
        rest = after;
    }
}

/// Up to the closing quote; and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at.saturating_add(1)..)?)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_hash_of_each_provider_counts_and_reads_do_not() {
        let page = r#"
# HELP apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds [ALPHA] x
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:id",key_id_hash="sha256:a",provider_name="p",transformation_type="from_storage"} 1.9e+09
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:id",key_id_hash="sha256:b",provider_name="p",transformation_type="to_storage"} 1.70000001e+09
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:id",key_id_hash="sha256:a",provider_name="p",transformation_type="to_storage"} 1.7e+09
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:id",key_id_hash="sha256:a",provider_name="p"} 5
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:id",key_id_hash="sha256:b",provider_name="p"} 6
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:id",key_id_hash="sha256:c",provider_name="q \"x\"}"} 7
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{broken
up 1
"#;
        let facts = Facts::parse(page);
        assert_eq!((facts.status("p"), facts.writes("p")), (Some("sha256:b"), Some("sha256:b")));
        assert_eq!((facts.status("q \"x\"}"), facts.writes("q \"x\"}")), (Some("sha256:c"), None));
        assert_eq!(facts.ids.len(), 1);
    }
}
