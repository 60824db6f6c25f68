//! Every key of the configuration, in one table.
//!
//! The walker takes from it what is known where, tests take from it that docs/configuration.md and the examples are
//! complete, that every default is the one stated, and that every key is read at all.

/// What a change of a key needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A reload (SIGHUP, or the file has changed).
    Reload,
    /// A restart; a reload names the key and leaves it as it was.
    Restart,
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path. What stands under `kek` here stands under each element of `read` as well.
    pub path: &'static str,
    /// Its default as it would be written; `None` where there is none.
    pub default: Option<&'static str>,
    /// What it takes, with unit and bounds.
    pub takes: &'static str,
    /// Whether it is identity-bearing: it goes into the key_id or into what a wrap is bound to.
    pub identity: bool,
    /// How a change takes effect.
    pub change: Change,
}

const fn key(path: &'static str, default: Option<&'static str>, takes: &'static str) -> Key {
    Key { path, default, takes, identity: false, change: Change::Reload }
}

const fn identity(path: &'static str, default: Option<&'static str>, takes: &'static str) -> Key {
    Key { identity: true, ..key(path, default, takes) }
}

const fn restart(path: &'static str, default: Option<&'static str>, takes: &'static str) -> Key {
    Key { change: Change::Restart, ..key(path, default, takes) }
}

/// All keys, in the order of docs/configuration.md.
pub const KEYS: &[Key] = &[
    restart("listen.socket", Some("/run/kube-kms/kms.sock"), "path, or `@name` for an abstract socket"),
    restart("listen.mode", Some("\"0600\""), "octal digits in quotes; read and write bits only"),
    restart("listen.allowUids", None, "list of 1 to 64 user ids; default: root and our own"),
    identity("kek.aws.key", None, "key id, key ARN, alias/NAME or alias ARN; required"),
    key("kek.aws.region", None, "region; default: that of the ARN, or the SDK's chain"),
    key("kek.aws.endpoint", None, "URL; default: AWS's own"),
    identity("kek.aws.context", Some("{}"), "text to text; under 8192 characters in all"),
    identity("kek.local.keyring", None, "absolute path; required"),
    identity("kek.local.context", Some("{}"), "text to text; under 8192 characters in all"),
    key("read", Some("[]"), "list of up to 64 KEKs, each as `kek`"),
    key("recovery.keks", Some("[]"), "list of up to 3 KEKs, each as `kek`"),
    key("recovery.breakGlass", Some("false"), "true or false"),
    identity("epoch", Some("0"), "number, 0 to 18446744073709551615"),
    key("dek.maxAge", Some("24h"), "duration, 1m to 365d"),
    key("dek.maxUses", Some("16777216"), "number of seals, 1 to 4294967296"),
    key("cache.capacity", Some("4096"), "number of DEKs, 16 to 65536"),
    key("cache.ttl", Some("1h"), "duration, 1s to 24h"),
    key("probe.interval", Some("60s"), "duration, 1s to 1h"),
    key("probe.timeout", Some("2s"), "duration, 100ms to 10s, less than probe.interval"),
    key("rotation.observations", Some("2"), "number of answers, 1 to 10"),
    key("revocation.confirmations", Some("2"), "number of answers, 1 to 10"),
    key("outage.grace", Some("1h"), "duration, 0s to 365d"),
    key("outage.onDenied", Some("coast"), "coast or revoke"),
    key("outage.stopAfter", Some("never"), "never, or a duration from outage.grace to 365d"),
    restart("http.listen", Some("127.0.0.1:9464"), "IP address and port, or none"),
    restart("otlp.endpoint", Some("\"\""), "URL of an OTLP/gRPC collector; empty: the environment decides"),
    restart("log.format", Some("text"), "text or json"),
    key("log.level", Some("info"), "error, warn, info, debug or trace"),
    restart("stateDir", Some("/var/lib/kube-kms"), "absolute path"),
];

/// The names that may stand directly under a section (`""`: the top level), sorted, each once.
pub(super) fn children(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = KEYS
        .iter()
        .filter_map(|k| if section.is_empty() { Some(k.path) } else { k.path.strip_prefix(section)?.strip_prefix('.') })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The paths of keys and sections whose last part is that name, whatever its case.
pub(super) fn elsewhere(name: &str) -> Vec<&'static str> {
    let mut found: Vec<&'static str> = Vec::new();
    for key in KEYS {
        for (end, _) in key.path.match_indices('.').chain([(key.path.len(), "")]) {
            let Some(path) = key.path.get(..end) else { continue };
            let last = path.rsplit('.').next().unwrap_or_default();
            if last.eq_ignore_ascii_case(name) && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_the_next_parts_of_the_paths() {
        assert_eq!(children("kek"), ["aws", "local"]);
        assert_eq!(children("kek.local"), ["context", "keyring"]);
        assert_eq!(children("dek"), ["maxAge", "maxUses"]);
        assert!(children("").contains(&"epoch"));
        assert!(children("epoch").is_empty());
        assert!(children("no").is_empty());
    }

    #[test]
    fn a_name_is_found_in_every_section_that_has_it() {
        assert_eq!(elsewhere("TTL"), ["cache.ttl"]);
        assert_eq!(elsewhere("listen"), ["listen", "http.listen"]);
        assert_eq!(elsewhere("context"), ["kek.aws.context", "kek.local.context"]);
        assert!(elsewhere("nothing").is_empty());
    }
}
