//! Every key of the configuration, in one table.
//!
//! The walker takes from it what is known where, every bound, and the defaults of durations and counts; `kube-kms
//! config-reference` and docs/configuration.md are made from it. Tests hold that every other default is the one stated,
//! and that every key is read at all.

use kube_kms_core::limit;
use std::fmt;

/// What a change of a key needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A reload (SIGHUP, or the file has changed).
    Reload,
    /// A restart; a reload names the key and leaves it as it was.
    Restart,
}

impl Change {
    /// The word of the reference.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
        }
    }
}

/// What a key takes. The walker takes bounds from here, and defaults of durations and counts from [`Key::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// A number with its unit, from `min` to `max`.
    Duration {
        /// The least, as it would be written.
        min: &'static str,
        /// The most.
        max: &'static str,
    },
    /// A whole number from `min` to `max`.
    Count {
        /// What is counted.
        of: &'static str,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// true or false.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// What has a shape of its own, in words.
    Shape(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path. What stands under `kek` here stands under each element of `read` and `recovery.keks` as well.
    pub path: &'static str,
    /// Its default as it would be written; `None` where there is none.
    pub default: Option<&'static str>,
    /// What it takes, with unit and bounds.
    pub takes: Takes,
    /// A rule beyond that, in words; empty where there is none.
    pub rule: &'static str,
    /// What it does.
    pub does: &'static str,
    /// Whether it is identity-bearing: it goes into the key_id or into what a wrap is bound to.
    pub identity: bool,
    /// How a change takes effect.
    pub change: Change,
}

impl Key {
    const fn new(path: &'static str, takes: Takes, does: &'static str) -> Self {
        Self { path, default: None, takes, rule: "", does, identity: false, change: Change::Reload }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn with(self, rule: &'static str) -> Self {
        Self { rule, ..self }
    }

    const fn identity(self) -> Self {
        Self { identity: true, ..self }
    }

    const fn restart(self) -> Self {
        Self { change: Change::Restart, ..self }
    }

    /// What it takes and its rule, in words.
    #[must_use]
    pub fn accepts(&self) -> String {
        if self.rule.is_empty() { self.takes.to_string() } else { format!("{}, {}", self.takes, self.rule) }
    }
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration { min, max } => write!(f, "duration, {min} to {max}"),
            Self::Count { of, min, max } => {
                write!(f, "number{}{of}, {min} to {max}", if of.is_empty() { "" } else { " of " })
            }
            Self::Flag => f.write_str("true or false"),
            Self::Choice(words) => f.write_str(&listed(words)),
            Self::Shape(words) => f.write_str(words),
        }
    }
}

/// `a, b or c`.
fn listed(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

const fn duration(min: &'static str, max: &'static str) -> Takes {
    Takes::Duration { min, max }
}

const fn count(of: &'static str, min: u64, max: u64) -> Takes {
    Takes::Count { of, min, max }
}

const CONTEXT: Takes = Takes::Shape("text to text; under 8192 characters in all");
const ENFORCE: &[&str] = &["auto", "none", "required"];
const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

/// All keys, in the order of docs/configuration.md.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    Key::new("listen.socket", Takes::Shape("path, or `@name` for an abstract socket"),
        "the socket that kube-apiserver dials; a relative path is below the working directory").or("/run/kube-kms/kms.sock").restart(),
    Key::new("listen.mode", Takes::Shape("octal digits in quotes; read and write bits only"),
        "permissions of the socket file").or("\"0600\"").restart(),
    Key::new("listen.allowUids", Takes::Shape("list of 1 to 64 user ids; default: root and our own"),
        "users who may call, whatever the mode").restart(),
    Key::new("kek.aws.key", Takes::Shape("key id, key ARN, alias/NAME or alias ARN; required"),
        "the key in AWS KMS that wraps data keys").identity(),
    Key::new("kek.aws.region", Takes::Shape("region; default: that of the ARN, or the SDK's chain"),
        "where the key is asked for"),
    Key::new("kek.aws.endpoint", Takes::Shape("URL; default: AWS's own"),
        "another endpoint, such as that of a VPC"),
    Key::new("kek.aws.context", CONTEXT,
        "EncryptionContext of every wrap, beside our own pair").or("{}").identity(),
    Key::new("kek.local.keyring", Takes::Shape("absolute path; required"),
        "the file that `kube-kms keyring init` made").identity(),
    Key::new("kek.local.context", CONTEXT,
        "what every wrap is bound to, beside our own pair").or("{}").identity(),
    Key::new("read", Takes::Shape("list of up to 64 KEKs, each as `kek`"),
        "KEKs that unwrap and never write: those of before a move").or("[]"),
    Key::new("recovery.keks", Takes::Shape("list of up to 3 KEKs, each as `kek`"),
        "KEKs that every data key is wrapped under as well").or("[]"),
    Key::new("recovery.breakGlass", Takes::Flag,
        "recovery KEKs unwrap also when the primary is denied, dead or not configured").or("false"),
    Key::new("epoch", count("", 0, u64::MAX),
        "part of every key_id; raised to go back to a KEK version that was left").or("0").identity(),
    Key::new("dek.maxAge", duration("1m", "365d"),
        "age at which a data key is replaced, in the background").or("24h"),
    Key::new("dek.maxUses", count("seals", 1, limit::DEK_USES_HARD_MAX),
        "seals after which a data key is replaced, in the background").or("16777216"),
    Key::new("cache.capacity", count("DEKs", 16, 65_536),
        "unwrapped data keys that are kept for Decrypt").or("4096"),
    Key::new("cache.ttl", duration("1s", "24h"),
        "time after which a kept data key is unwrapped again").or("1h"),
    Key::new("probe.interval", duration("1s", "1h"),
        "time between two trial wraps at the KEK; two KMS calls each").or("60s"),
    Key::new("probe.timeout", duration("100ms", "10s"),
        "time that each KMS call of a probe may take").or("2s").with("less than probe.interval"),
    Key::new("rotation.observations", count("answers", 1, 10),
        "equal answers in a row before another KEK version is believed").or("2"),
    Key::new("revocation.confirmations", count("answers", 1, 10),
        "answers in a row before a dead KEK is believed, and data keys wiped").or("2"),
    Key::new("outage.grace", duration("0s", "365d"),
        "time that an outage of the KMS is hidden from kube-apiserver").or("1h"),
    Key::new("outage.onDenied", duration("1m", "365d"),
        "whether a denial by the KMS is an outage or a revocation, or after how long it is one").or("coast").with("or coast, or revoke"),
    Key::new("outage.onUnusable", Takes::Choice(&["coast", "revoke"]),
        "whether a key store that the KMS cannot use, or a state that it does not tell, is an outage or a revocation").or("coast"),
    Key::new("outage.stopAfter", duration("0s", "365d"),
        "time of outage after which writes stop").or("never").with("not less than outage.grace; or never"),
    Key::new("http.listen", Takes::Shape("IP address and port, or none"),
        "plain HTTP for /metrics, /livez and /readyz").or("127.0.0.1:9464").restart(),
    Key::new("otlp.endpoint", Takes::Shape("URL of an OTLP/gRPC collector; empty: the environment decides"),
        "where traces and metrics are sent").or("\"\"").restart(),
    Key::new("log.format", Takes::Choice(&["text", "json"]),
        "lines for people, or one JSON object per line").or("text").restart(),
    Key::new("log.level", Takes::Choice(LEVELS),
        "the least important level that is logged").or("info"),
    Key::new("stateDir", Takes::Shape("absolute path"),
        "directory of `state.json`: key_ids that were reported; nothing secret").or("/var/lib/kube-kms").restart(),
    Key::new("harden.landlock", Takes::Choice(ENFORCE),
        "leaves this process only the files and ports that serving needs").or("auto").restart(),
    Key::new("harden.seccomp", Takes::Choice(ENFORCE),
        "leaves this process only the system calls that serving makes").or("auto").restart(),
];

/// The key at a path as it stands in the table.
pub(super) fn at(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

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
