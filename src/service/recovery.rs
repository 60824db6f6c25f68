//! Recovery KEKs: every DEK wrapped a second time, under a KEK in another region or of another kind, so that losing one KMS
//! loses nothing.
//!
//! Guarantees: a recovery KEK that is away or dead never stops writes and delays a new DEK by `probe.timeout` at most; a wrap
//! that does not open again is not stored. How they are used for opening is in [`crate::decrypt`].

use crate::kek_set::{KekEntry, KekSet};
use crate::observer::{KekOperation, Observer};
use crate::plugin::Plugin;
use crate::prepare::observed;
use crate::settings::Settings;
use kube_kms_core::annotation::RecoveryWrap;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::port::{Clock, KekCall};
use std::sync::Arc;
use std::time::Duration;

/// What the recovery KEKs made of a DEK, in the order of the configuration.
pub type RecoveryOutcomes = Vec<Result<RecoveryWrap, Fault>>;

/// Wraps the DEK under every recovery KEK at once.
pub(super) async fn wrap_under_all(
    plugin: &Arc<Plugin>,
    keks: &KekSet,
    bytes: &Arc<DekBytes>,
    settings: &Settings,
) -> RecoveryOutcomes {
    let tasks: Vec<_> = keks
        .recovery()
        .iter()
        .map(|entry| {
            let (plugin, entry, bytes) = (Arc::clone(plugin), entry.clone(), Arc::clone(bytes));
            let timeout = settings.probe_timeout;
            tokio::spawn(async move { wrap_under(&entry, &bytes, timeout, plugin.clock(), plugin.observer()).await })
        })
        .collect();
    let mut outcomes = Vec::with_capacity(tasks.len());
    for task in tasks {
        outcomes.push(task.await.unwrap_or_else(|panic| Err(Fault::caused_by(Reason::Invariant, panic))));
    }
    outcomes
}

/// Wraps the DEK under one recovery KEK, unwraps it again and compares, all within `timeout`.
///
/// # Errors
/// Those of the provider; `kms-unreachable` when the time is over; `readback-mismatch`.
///
/// # Cancel safety
/// Dropping the future abandons the wrap.
pub async fn wrap_under(
    entry: &KekEntry,
    bytes: &DekBytes,
    timeout: Duration,
    clock: &dyn Clock,
    observer: &dyn Observer,
) -> Result<RecoveryWrap, Fault> {
    let call = KekCall { timeout, uid: None };
    let both = async {
        let wrapping = entry.kek.wrap_dek(bytes, &entry.context, &call);
        let wrapped = observed(&*entry.kek, KekOperation::Wrap, clock, observer, wrapping).await?;
        let unwrapping = entry.kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &entry.context, &call);
        let unwrapped = observed(&*entry.kek, KekOperation::Unwrap, clock, observer, unwrapping).await?;
        if !unwrapped.dek.same_as(bytes) {
            return Err(Reason::ReadbackMismatch.into());
        }
        Ok(RecoveryWrap { kek: wrapped.kek, dek: wrapped.dek })
    };
    tokio::time::timeout(timeout, both).await.unwrap_or_else(|_| Err(Reason::KmsUnreachable.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe_fixture::{HandClock, Remembering, Script, ScriptedKek, entry};
    use kube_kms_os::OsEntropy;

    async fn wrapped(change: impl FnOnce(&mut Script)) -> Result<RecoveryWrap, Reason> {
        let kek = ScriptedKek::new("A");
        kek.set(change);
        let bytes = DekBytes::generate(&OsEntropy).unwrap();
        let timeout = Duration::from_secs(1);
        let made = wrap_under(&entry(&kek), &bytes, timeout, &HandClock::default(), &Remembering::default()).await;
        made.map_err(|fault| fault.reason())
    }

    #[tokio::test]
    async fn a_recovery_wrap_counts_only_when_it_gives_the_same_dek_back() {
        assert!(wrapped(|_| {}).await.unwrap().dek.as_bytes().starts_with(b"A\0"));
        assert_eq!(wrapped(|script| script.forgets = true).await.unwrap_err(), Reason::ReadbackMismatch);
        assert_eq!(wrapped(|script| script.wrap_fails = Some(Reason::KekGone)).await.unwrap_err(), Reason::KekGone);
    }

    #[tokio::test(start_paused = true)]
    async fn every_recovery_kek_is_asked_and_says_for_itself_in_the_order_of_the_configuration() {
        use crate::decrypt_fixture::{Line, ScriptedKek, entry, plugin_over};
        let keks = ["one", "two", "three"].map(|name| ScriptedKek::new(name, &[Line::Unwrap(Duration::ZERO)]));
        keks[0].say(Line::Unwrap(Duration::ZERO));
        keks[1].say(Line::Fail(Reason::KmsUnreachable));
        keks[2].say(Line::Unwrap(Duration::ZERO));
        let write = ScriptedKek::new("k", &[Line::Panic]);
        let set = KekSet::new(entry(&write), Vec::new()).with_recovery(keks.iter().map(entry).collect(), false);
        let plugin = plugin_over(set, |_| {});
        let bytes = Arc::new(DekBytes::generate(&OsEntropy).unwrap());
        let made = wrap_under_all(&plugin, &plugin.keks(), &bytes, &plugin.settings()).await;
        let said: Vec<_> =
            made.iter().map(|r| r.as_ref().map(|wrap| wrap.kek.identity()).map_err(Fault::reason)).collect();
        assert_eq!(said, [Ok("one"), Err(Reason::KmsUnreachable), Ok("three")]);
    }
}
