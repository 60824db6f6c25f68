//! What the simulator has to say against a plugin: a closed list of codes, each at most once with how often.
//!
//! Guarantees: codes are stable (reports and exit statuses are built on them); details never hold key material, and text
//! that the plugin chose is quoted and cut. A finding is what an operator would feel, not always a fault: an outage may
//! well end in `write-state-expired`.

use kms_v2_client::limit::Violation;
use kube_kms_core::port::Moment;
use serde::{Serialize, Serializer};
use std::fmt;

/// Characters of text from the plugin that a detail keeps.
const QUOTED: usize = 120;

macro_rules! codes {
    ($($name:ident, $label:literal, $meaning:literal;)+) => {
        /// What was found, in a closed list. The label is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FindingCode {
            $(#[doc = $meaning] $name,)+
        }

        impl FindingCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable kebab-case name.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }
        }
    };
}

codes! {
    VersionNotAccepted, "version-not-accepted", "Status.version is neither v2 nor v2beta1";
    VersionChanged, "version-changed", "Status.version is not what it was first; a running API server never takes the change";
    HealthzNotOk, "healthz-not-ok", "Status.healthz is not exactly `ok`: the API server is not ready, and writes go on";
    StatusSlow, "status-slow", "Status took so long that it cannot have been answered from memory";
    KeyIdEmpty, "key-id-empty", "a key_id is empty";
    KeyIdTooLong, "key-id-too-long", "a key_id is longer than 1024 bytes";
    KeyIdCameBack, "key-id-came-back", "Status.key_id went back to one that had been left; a key_id must never be used again";
    KeyIdFlipFlop, "key-id-flip-flop", "Status.key_id goes to and fro; every turn makes stored objects stale and costs a seed";
    KeyIdUnstableOverRestart, "key-id-unstable-over-restart", "Status.key_id changed with a restart of the plugin, so replicas cannot agree on it either";
    EncryptKeyIdMismatch, "encrypt-key-id-mismatch", "Encrypt.key_id is not the Status.key_id before it; the answer is thrown away";
    EncryptFailedAfterNewKeyId, "encrypt-failed-after-new-key-id", "Status announced a key_id that Encrypt could not use";
    CiphertextEmpty, "ciphertext-empty", "Encrypt.ciphertext is empty";
    CiphertextTooLong, "ciphertext-too-long", "Encrypt.ciphertext is longer than 1024 bytes";
    AnnotationName, "annotation-name", "the name of an annotation is not a fully qualified domain name";
    AnnotationsTooLarge, "annotations-too-large", "the annotations are larger than 32 KiB";
    DecryptWrongLength, "decrypt-wrong-length", "Decrypt returned a plaintext of a length that cannot be what Encrypt was given";
    DecryptWrongBytes, "decrypt-wrong-bytes", "Decrypt returned other bytes than Encrypt was given; the API server keeps them for a day";
    DecryptOfOwnValueFailed, "decrypt-of-own-value-failed", "Decrypt failed on what this plugin's Encrypt had returned";
    WriteStateExpired, "write-state-expired", "for three minutes no Status agreed with Encrypt: every write of an encrypted resource fails";
}

impl fmt::Display for FindingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl Serialize for FindingCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

impl From<&Violation> for FindingCode {
    fn from(violation: &Violation) -> Self {
        match violation {
            Violation::KeyIdEmpty => Self::KeyIdEmpty,
            Violation::KeyIdTooLong(_) => Self::KeyIdTooLong,
            Violation::CiphertextEmpty => Self::CiphertextEmpty,
            Violation::CiphertextTooLong(_) => Self::CiphertextTooLong,
            Violation::AnnotationName(_) => Self::AnnotationName,
            Violation::AnnotationsTooLarge(_) => Self::AnnotationsTooLarge,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What.
    pub code: FindingCode,
    /// How often.
    pub times: u64,
    /// When first, in milliseconds of the simulator's clock.
    #[serde(rename = "firstMs", serialize_with = "milliseconds")]
    pub first: Moment,
    /// When last, likewise.
    #[serde(rename = "lastMs", serialize_with = "milliseconds")]
    pub last: Moment,
    /// What exactly, the first time.
    pub detail: String,
}

/// All findings, in the order in which they were first made.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Counts one more. Whether it is the first of its code.
    pub(super) fn add(&mut self, now: Moment, code: FindingCode, detail: String) -> bool {
        if let Some(known) = self.0.iter_mut().find(|f| f.code == code) {
            known.times = known.times.saturating_add(1);
            known.last = now;
            return false;
        }
        self.0.push(Finding { code, times: 1, first: now, last: now, detail });
        true
    }

    /// What looked like one thing turns out to be another.
    pub(super) fn withdraw(&mut self, code: FindingCode) {
        self.0.retain(|f| f.code != code);
    }

    pub(super) fn to_vec(&self) -> Vec<Finding> {
        self.0.clone()
    }
}

/// Text that the plugin chose, safe to show.
#[must_use]
pub(super) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}

pub(super) fn milliseconds<S: Serializer>(moment: &Moment, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(moment.since(Moment(0)).as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_a_label_of_its_own() {
        let labels: HashSet<_> = FindingCode::ALL.iter().map(|c| c.label()).collect();
        assert_eq!(labels.len(), FindingCode::ALL.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }

    #[test]
    fn the_same_finding_is_counted_and_keeps_its_first_detail() {
        let mut all = Findings::default();
        assert!(all.add(Moment(1_000_000), FindingCode::StatusSlow, "a".to_owned()));
        assert!(!all.add(Moment(9_000_000), FindingCode::StatusSlow, "b".to_owned()));
        let json = serde_json::to_string(&all.to_vec()).unwrap();
        assert_eq!(json, r#"[{"code":"status-slow","times":2,"firstMs":1,"lastMs":9,"detail":"a"}]"#);
        all.withdraw(FindingCode::StatusSlow);
        assert!(all.to_vec().is_empty());
    }

    #[test]
    fn text_from_the_plugin_is_quoted_and_cut() {
        assert_eq!(quoted("a\n\u{1b}[2J"), r#""a\n\u{1b}[2J""#);
        assert!(quoted(&"ü".repeat(500)).len() < 260);
    }
}
