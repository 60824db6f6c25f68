//! Gauges: what a [`Snapshot`] says, made afresh for every scrape.
//!
//! Guarantees: what is not known is absent rather than zero; there is at most one `kube_kms_key_info`, and the KEK's
//! identity (an ARN names an account) is never a label. Refuses to know where the snapshot comes from.
//! SPEC: docs/conformance.md items 85 and 88; docs/observability.md.

use kube_kms_core::fault::Reason;
use kube_kms_core::health::State;
use kube_kms_os::wall_clock;
use kube_kms_service::snapshot::Snapshot;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::time::{Duration, SystemTime};

/// Before every name.
pub(super) const PREFIX: &str = "kube_kms";

/// What the process can say of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Bytes of secrets in memory that is locked: never swapped.
    pub locked: usize,
    /// Bytes of secrets in memory that could not be locked, for want of RLIMIT_MEMLOCK.
    pub unlocked: usize,
    /// Log lines that were dropped because whoever reads stderr did not keep up.
    pub log_lines_dropped: usize,
}

/// What is remembered of rotations; times since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotations {
    /// When this process last changed its key_id.
    pub(super) last: Option<Duration>,
    /// When it began to write under the KEK version of now.
    pub(super) version_since: Option<Duration>,
}

/// Everything about this moment.
pub(super) fn registry(snapshot: &Snapshot, process: ProcessFacts, rotations: Rotations) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let r = &mut registry;
    health(r, snapshot);
    key(r, snapshot);
    if let Some(at) = rotations.last {
        seconds(r, "last_rotation_timestamp", "When this process last changed its key_id, in Unix time", at);
    }
    if let (Some(since), Some(_)) = (rotations.version_since, &snapshot.kek) {
        let age = since_epoch().saturating_sub(since);
        seconds(r, "kek_version_age", "Time since this process began to write under this KEK version", age);
    }
    if !snapshot.recovery.is_empty() {
        let wrapped = Family::<[(&'static str, String); 1], Gauge>::default();
        for (number, is_wrapped) in (1..).zip(&snapshot.recovery) {
            let number: usize = number;
            wrapped.get_or_create_owned(&[("recovery", number.to_string())]).set(i64::from(*is_wrapped));
        }
        r.register(
            "recovery_wrapped",
            "1 when the DEK that seals now is wrapped under recovery KEK N, else 0",
            wrapped,
        );
    }
    number(r, "keyring_entries", "Unwrapped DEKs in the keyring", count(snapshot.keyring_entries));
    number(r, "keyring_capacity", "Unwrapped DEKs that the keyring keeps at most", count(snapshot.keyring_capacity));
    bytes(r, "locked_memory", "Memory for secrets that is locked", process.locked);
    bytes(r, "unlocked_memory", "Memory for secrets that could not be locked", process.unlocked);
    let dropped = ConstCounter::new(count(process.log_lines_dropped));
    r.register("log_lines_dropped", "Log lines dropped because stderr was not read", dropped);
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    r.register("build", "The version of this binary", version);
    registry
}

fn health(r: &mut Registry, snapshot: &Snapshot) {
    let states = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    for label in State::LABELS {
        states.get_or_create_owned(&[("state", label)]).set(i64::from(*label == snapshot.state));
    }
    r.register("state", "1 for the state that the writing KEK is in, 0 for every other", states);
    number(r, "status_ok", "1 while Status answers ok, else 0", u64::from(snapshot.is_ok));
    let is_refused = snapshot.because == Some(Reason::KeyIdRetired);
    let refused = "1 while the KMS answers with a KEK version that this node has left and refuses, else 0";
    number(r, "kek_version_refused", refused, u64::from(is_refused));
    let outage = snapshot.outage.unwrap_or_default();
    seconds(r, "outage", "How long the KMS has been away; 0 while it is not", outage);
    if let Some(outage) = snapshot.outage {
        // Whole seconds: the same at every scrape of one outage, or nearly.
        let began = since_epoch().saturating_sub(outage);
        let began = Duration::from_secs(began.as_secs());
        seconds(r, "coasting_since_timestamp", "When the KMS was last known to be well, in Unix time", began);
    }
    if let Some(age) = snapshot.last_good_probe {
        seconds(r, "last_good_probe", "Time since a probe of the writing KEK last went well", age);
    }
}

fn key(r: &mut Registry, snapshot: &Snapshot) {
    if let Some(key_id) = &snapshot.key_id {
        let (kind, version) = snapshot.kek.as_ref().map_or(("", ""), |kek| (kek.kek.kind(), &kek.version));
        // SECURITY: the kind and the version only, never the KEK's identity: an ARN names the account.
        let labels = vec![
            ("key_id", key_id.to_string()),
            ("key_id_hash", key_id.metric_hash()),
            ("kek_kind", kind.to_owned()),
            ("kek_version", version.to_owned()),
        ];
        r.register("key", "The key_id that Status reports and the KEK version behind it", Info::new(labels));
    }
    if let Some(at) = snapshot.deletion {
        seconds(r, "kek_deletion_timestamp", "When the KMS will delete the writing KEK, in Unix time", at);
    }
    if let Some(age) = snapshot.dek_age {
        seconds(r, "dek_age", "Age of the DEK that seals now", age);
    }
    if let Some(uses) = snapshot.dek_uses {
        number(r, "dek_uses", "Seals under the DEK that seals now", uses);
    }
}

fn since_epoch() -> Duration {
    wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn seconds(r: &mut Registry, name: &str, help: &str, value: Duration) {
    r.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(value.as_secs_f64()));
}

fn bytes(r: &mut Registry, name: &str, help: &str, value: usize) {
    r.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(count(value)));
}

fn number(r: &mut Registry, name: &str, help: &str, value: u64) {
    r.register(name, help, ConstGauge::new(value));
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Page, snapshot};
    use prometheus_client::encoding::text::encode;

    const ROTATIONS: Rotations = Rotations { last: None, version_since: Some(Duration::from_secs(1_700_000_000)) };

    fn page(snapshot: &Snapshot) -> Page {
        let mut text = String::new();
        encode(
            &mut text,
            &registry(snapshot, ProcessFacts { locked: 8192, unlocked: 4096, log_lines_dropped: 5 }, ROTATIONS),
        )
        .unwrap();
        Page::parse(&text).unwrap()
    }

    #[test]
    fn every_field_of_the_snapshot_is_on_the_page() {
        let page = page(&snapshot());
        for (name, value) in [
            ("kube_kms_status_ok", 1.0),
            ("kube_kms_outage_seconds", 90.5),
            ("kube_kms_last_good_probe_seconds", 95.25),
            ("kube_kms_dek_age_seconds", 3600.0),
            ("kube_kms_dek_uses", 17.0),
            ("kube_kms_keyring_entries", 3.0),
            ("kube_kms_keyring_capacity", 4096.0),
            ("kube_kms_locked_memory_bytes", 8192.0),
            ("kube_kms_unlocked_memory_bytes", 4096.0),
            ("kube_kms_log_lines_dropped_total", 5.0),
            ("kube_kms_key_info", 1.0),
            ("kube_kms_build_info", 1.0),
        ] {
            let samples: Vec<f64> = page.samples_of(name).map(|s| s.value).collect();
            assert_eq!(samples, [value], "{name}");
        }
    }

    #[test]
    fn exactly_one_state_is_1_and_all_are_there() {
        for state in State::LABELS {
            let page = page(&Snapshot { state, ..snapshot() });
            let on: Vec<_> = page.samples_of("kube_kms_state").filter(|s| s.value > 0.5).collect();
            assert_eq!(on.len(), 1);
            assert_eq!(on[0].labels["state"], *state);
            assert_eq!(page.samples_of("kube_kms_state").count(), State::LABELS.len());
        }
    }

    #[test]
    fn what_is_not_known_is_absent_and_no_outage_is_zero() {
        let bare = Snapshot {
            is_ok: false,
            outage: None,
            since: None,
            key_id: None,
            kek: None,
            dek_age: None,
            dek_uses: None,
            last_good_probe: None,
            ..snapshot()
        };
        let page = page(&bare);
        for absent in
            ["key_info", "dek_age_seconds", "dek_uses", "last_good_probe_seconds", "last_rotation_timestamp_seconds"]
        {
            assert_eq!(page.samples_of(&format!("kube_kms_{absent}")).count(), 0, "{absent}");
        }
        for zero in ["kube_kms_outage_seconds", "kube_kms_status_ok"] {
            assert_eq!(page.samples_of(zero).map(|s| s.value).collect::<Vec<_>>(), [0.0], "{zero}");
        }
    }

    #[test]
    fn a_kek_version_that_is_refused_is_a_number_whatever_the_state() {
        for (because, value) in [(Some(Reason::KeyIdRetired), 1.0), (Some(Reason::KmsUnreachable), 0.0), (None, 0.0)] {
            let page = page(&Snapshot { because, ..snapshot() });
            let samples: Vec<f64> = page.samples_of("kube_kms_kek_version_refused").map(|s| s.value).collect();
            assert_eq!(samples, [value], "{because:?}");
        }
    }

    #[test]
    fn a_key_id_without_its_kek_still_has_its_hash() {
        let known = Snapshot { kek: None, state: "starting-known", ..snapshot() };
        let page = page(&known);
        let info: Vec<_> = page.samples_of("kube_kms_key_info").collect();
        assert_eq!(info[0].labels["key_id_hash"], known.key_id.unwrap().metric_hash());
        assert_eq!(info[0].labels["kek_kind"], "");
    }

    #[test]
    fn a_hostile_kek_version_cannot_forge_a_series() {
        let mut hostile = snapshot();
        hostile.kek.as_mut().unwrap().version = "a\"} 1\nkube_kms_forged 1\n\\".to_owned();
        let page = page(&hostile);
        assert_eq!(page.samples_of("kube_kms_forged").count(), 0);
        let info: Vec<_> = page.samples_of("kube_kms_key_info").collect();
        assert_eq!(info[0].labels["kek_version"], "a\"} 1\nkube_kms_forged 1\n\\");
    }
}
