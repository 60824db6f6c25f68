//! A write state for tests, here and in the crates above: the only way to have one without a KEK.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use crate::settings::Settings;
use crate::write_state::WriteState;
use kube_kms_core::annotation::{Annotations, WrappedDek};
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::health::{OnDenied, OnUnusable, Policy};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::Moment;
use kube_kms_os::OsEntropy;
use std::sync::Arc;
use std::time::Duration;

/// Those of docs/configuration.md.
#[must_use]
pub fn settings() -> Settings {
    Settings {
        epoch: 0,
        dek_max_age: Duration::from_secs(86_400),
        dek_max_uses: 1 << 24,
        cache_capacity: 4096,
        cache_ttl: Duration::from_secs(3600),
        probe_interval: Duration::from_secs(60),
        probe_timeout: Duration::from_secs(2),
        observations: 2,
        policy: Policy {
            grace: Duration::from_secs(3600),
            on_denied: OnDenied::Coast,
            on_unusable: OnUnusable::Coast,
            stop_after: None,
            confirmations: 2,
        },
    }
}

/// A write state that no KEK has made.
#[must_use]
pub fn write_state(settings: &Settings) -> WriteState {
    let dek = Arc::new(Dek::new(&DekBytes::generate(&OsEntropy).unwrap()).unwrap());
    let version = KekVersion { kek: KekRef::new(KekKind::LOCAL, "k").unwrap(), version: "v".to_owned() };
    let wrapped = WrappedDek::parse(vec![1, 2, 3]).unwrap();
    let annotations = Annotations::new(&version.kek, &wrapped);
    WriteState::new(KeyId::derive(&version, 0), version, annotations, Vec::new(), dek, Moment(0), settings)
}
