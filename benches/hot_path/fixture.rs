//! What the benches share: names as long as those of AWS, and a plugin with a write state.

use kube_kms_core::annotation::{Annotations, WrappedDek};
use kube_kms_core::context::WrapContext;
use kube_kms_core::health::{OnDenied, OnUnusable, Policy};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::Entropy;
use kube_kms_kek_local::LocalKek;
use kube_kms_os::{MonotonicClock, OsEntropy};
use kube_kms_service::kek_set::{KekEntry, KekSet};
use kube_kms_service::observer::Unobserved;
use kube_kms_service::plugin::{Parts, Plugin};
use kube_kms_service::settings::Settings;
use kube_kms_service::state_file::{Remembered, StateFile};
use kube_kms_service::supervisor::Supervisor;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes of a DEK as AWS KMS wraps it.
const WRAPPED_LEN: usize = 184;

pub(crate) fn version() -> KekVersion {
    KekVersion { kek: kek(), version: "a1".repeat(32) }
}

pub(crate) fn key_id() -> KeyId {
    KeyId::derive(&version(), 0)
}

fn kek() -> KekRef {
    KekRef::new(KekKind::AWS, "arn:aws:kms:eu-central-1:111122223333:key/0d1f6a52-5c3e-4f0a-9d2e-1b2c3d4e5f60").unwrap()
}

/// The annotations of the `n`th wrapped DEK.
pub(crate) fn annotations(n: usize) -> Annotations {
    let mut wrapped = vec![7; WRAPPED_LEN];
    // As AWS does it: the beginning is the same for all, what tells them apart stands at the end.
    wrapped[WRAPPED_LEN - 8..].copy_from_slice(&n.to_be_bytes());
    Annotations::new(&kek(), &WrappedDek::parse(wrapped).unwrap())
}

/// A plugin on this keyring file, with a write state.
pub(crate) async fn plugin(keyring: &Path) -> Arc<Plugin> {
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let kek = Arc::new(LocalKek::new(keyring.to_owned(), Arc::clone(&entropy)));
    let settings = Settings {
        epoch: 0,
        dek_max_age: Duration::from_secs(86_400),
        dek_max_uses: 1 << 32,
        cache_capacity: 4096,
        cache_ttl: Duration::from_secs(3600),
        probe_interval: Duration::from_secs(3600),
        probe_timeout: Duration::from_secs(2),
        observations: 2,
        policy: Policy {
            grace: Duration::from_secs(3600),
            on_denied: OnDenied::Coast,
            on_unusable: OnUnusable::Coast,
            stop_after: None,
            confirmations: 2,
        },
    };
    let parts = Parts {
        keks: KekSet::new(KekEntry { kek, context: WrapContext::new(BTreeMap::new()) }, Vec::new()),
        settings,
        clock: Arc::new(MonotonicClock::new()),
        entropy,
        observer: Arc::new(Unobserved),
    };
    let plugin = Arc::new(Plugin::new(parts, None));
    let (keep, reloads) = mpsc::channel(1);
    let supervisor =
        Supervisor::new(Arc::clone(&plugin), StateFile::new(&keyring.with_extension("state")), Remembered::default());
    tokio::spawn(async move {
        let _keep = keep;
        supervisor.run(reloads).await;
    });
    while plugin.published().write.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    plugin
}
