//! A candidate for the next write state: a fresh DEK, wrapped, unwrapped again and compared.
//!
//! This is also the probe: it proves that the KEK can wrap and unwrap for us now, and which version of it does. So a
//! version is never announced that cannot wrap, and a label never comes from another moment than its wrap.

use crate::kek_set::{KekEntry, KekSet};
use crate::observer::{KekOperation, Observer};
use crate::plugin::Plugin;
use crate::recovery::RecoveryOutcomes;
use crate::settings::Settings;
use crate::unwrap::unanswered;
use crate::write_state::WriteState;
use kube_kms_core::annotation::{Annotations, WrappedDek};
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::health::Testimony;
use kube_kms_core::kek_ref::KekVersion;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Clock, Entropy, Kek, KekCall, Wrapped};
use kube_kms_span as span;
use std::pin::pin;
use std::sync::Arc;

/// Proven to wrap and unwrap; not yet published.
#[derive(Debug)]
pub struct Candidate {
    /// The id that it would be reported under.
    pub key_id: KeyId,
    version: KekVersion,
    wrapped: WrappedDek,
    bytes: Arc<DekBytes>,
}

impl Candidate {
    /// Makes it a write state, born now, with what the recovery KEKs made of its DEK.
    ///
    /// # Errors
    /// `memory`.
    pub fn into_write_state(
        self,
        recovery: &RecoveryOutcomes,
        clock: &dyn Clock,
        settings: &Settings,
    ) -> Result<WriteState, Fault> {
        let mut annotations = Annotations::new(&self.version.kek, &self.wrapped);
        for (number, outcome) in (1..).zip(recovery) {
            if let Ok(wrap) = outcome {
                annotations = annotations.and_recovery(number, wrap);
            }
        }
        let wrapped_under = recovery.iter().map(Result::is_ok).collect();
        let dek = Arc::new(Dek::new(&self.bytes)?);
        Ok(WriteState::new(self.key_id, self.version, annotations, wrapped_under, dek, clock.now(), settings))
    }

    /// The DEK itself, for the recovery KEKs to wrap.
    #[must_use]
    pub const fn bytes(&self) -> &Arc<DekBytes> {
        &self.bytes
    }

    /// The KEK version behind it.
    #[must_use]
    pub const fn version(&self) -> &KekVersion {
        &self.version
    }

    /// The DEK as the KEK wrapped it.
    #[must_use]
    pub const fn wrapped(&self) -> &WrappedDek {
        &self.wrapped
    }
}

/// Two calls to the KEK, each within `settings.probe_timeout`.
///
/// # Errors
/// Those of the provider; `readback-mismatch` when the DEK does not survive; `entropy`, `memory`.
///
/// # Cancel safety
/// Dropping the future abandons the candidate.
pub async fn prepare(
    entry: &KekEntry,
    settings: &Settings,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
    observer: &dyn Observer,
) -> Result<Candidate, Fault> {
    let call = KekCall { timeout: settings.probe_timeout, uid: None };
    let bytes = DekBytes::generate(entropy)?;
    let wrapping = entry.kek.wrap_dek(&bytes, &entry.context, &call);
    let Wrapped { dek: wrapped, kek } = observed(&*entry.kek, KekOperation::Wrap, clock, observer, wrapping).await?;
    let unwrapping = entry.kek.unwrap_dek(&kek, &wrapped, &entry.context, &call);
    let unwrapped = observed(&*entry.kek, KekOperation::Unwrap, clock, observer, unwrapping).await?;
    // INVARIANT: what is published was unwrapped from the blob that will be stored, and is the key that will seal.
    if !unwrapped.dek.same_as(&bytes) || unwrapped.version.kek != kek {
        return Err(Reason::ReadbackMismatch.into());
    }
    let key_id = KeyId::derive(&unwrapped.version, settings.epoch);
    Ok(Candidate { key_id, version: unwrapped.version, wrapped, bytes: Arc::new(bytes) })
}

/// One probe: a candidate, or why there is none and what that says of the KEK that `current` is under.
///
/// A dead answer may speak of another key than that: an alias that was pointed at a disabled one. So ours is asked to unwrap
/// the DEK of `current`, and while it does, the answer does not count. A denial proves nothing: a KMS looks at the caller's
/// rights first, and so it hides a dead key from whoever has lost his rights on the same day.
///
/// # Errors
/// As [`prepare`], a call that ran out of its time as `kms-unreachable`.
///
/// # Cancel safety
/// Dropping the future abandons the candidate.
pub(super) async fn probe(
    plugin: &Plugin,
    keks: &KekSet,
    settings: &Settings,
    current: Option<&WriteState>,
) -> Result<Candidate, (Fault, Testimony)> {
    let made = prepare(keks.write(), settings, plugin.clock(), plugin.entropy(), plugin.observer()).await;
    let fault = match made {
        Ok(candidate) => return Ok(candidate),
        Err(fault) => unanswered(fault),
    };
    let says = Testimony::of(fault.reason(), &settings.policy);
    let (Testimony::Dead, Some(write)) = (says, current) else { return Err((fault, says)) };
    match unwrap_again(write, keks, settings, plugin.clock(), plugin.observer()).await {
        Ok(()) => Err((Fault::caused_by(Reason::KekUnusable, fault), Testimony::Alive)),
        Err(open) if is_without_a_verdict(&open, settings) => Err((unanswered(open), Testimony::Unproven)),
        Err(_) => Err((fault, says)),
    }
}

fn is_without_a_verdict(open: &Fault, settings: &Settings) -> bool {
    let is_silent = open.class().is_transient() || open.reason() == Reason::KeyStateUnknown;
    is_silent && !settings.policy.is_dead(open.reason())
}

/// Whether the KEK that this write state's DEK is under still unwraps it: one call, within `settings.probe_timeout`.
///
/// # Errors
/// Those of the provider; `kek-not-configured`.
///
/// # Cancel safety
/// Dropping the future abandons the call.
async fn unwrap_again(
    write: &WriteState,
    keks: &KekSet,
    settings: &Settings,
    clock: &dyn Clock,
    observer: &dyn Observer,
) -> Result<(), Fault> {
    let kek = &write.version().kek;
    let entry = keks.readers(kek).next().ok_or(Reason::KekNotConfigured)?;
    let wrapped = WrappedDek::parse(write.annotations().wrapped_dek().to_vec())?;
    let call = KekCall { timeout: settings.probe_timeout, uid: None };
    let unwrapping = entry.kek.unwrap_dek(kek, &wrapped, &entry.context, &call);
    observed(&*entry.kek, KekOperation::Unwrap, clock, observer, unwrapping).await.map(|_| ())
}

/// Runs one provider call and counts it.
pub(super) async fn observed<T>(
    kek: &dyn Kek,
    operation: KekOperation,
    clock: &dyn Clock,
    observer: &dyn Observer,
    call: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let began = clock.now();
    let span = span::internal(operation.span());
    let outcome = span.scope().within(pin!(call)).await;
    let result = outcome.as_ref().map(|_| ()).map_err(Fault::reason);
    span.text("kube_kms.provider", kek.kind().as_str());
    span.text("kube_kms.outcome", result.err().map_or("ok", Reason::label));
    if let Err(reason) = result {
        span.failed(reason.label());
    }
    observer.kek_call(kek.kind().as_str(), operation, result, clock.now().since(began));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::settings;
    use crate::probe_fixture::{HandClock, Remembering, Script, ScriptedKek, entry, key_id_of};
    use kube_kms_os::OsEntropy;

    #[derive(Debug)]
    struct NoEntropy;

    impl Entropy for NoEntropy {
        fn fill(&self, _: &mut [u8]) -> Result<(), Fault> {
            Err(Reason::Entropy.into())
        }
    }

    /// What becomes of a candidate when the KEK does this, and the calls that were counted.
    async fn prepared(
        change: impl FnOnce(&mut Script),
    ) -> (Result<Candidate, Reason>, Vec<(KekOperation, Result<(), Reason>)>) {
        let kek = ScriptedKek::new("A");
        kek.set(change);
        let (clock, observer) = (HandClock::default(), Remembering::default());
        let made = prepare(&entry(&kek), &settings(), &clock, &OsEntropy, &observer).await;
        let calls = observer.kek_calls.into_inner().unwrap();
        (made.map_err(|fault| fault.reason()), calls)
    }

    #[tokio::test]
    async fn a_candidate_is_labelled_by_the_unwrap_of_its_own_blob() {
        let (made, calls) = prepared(|_| {}).await;
        let candidate = made.unwrap();
        assert_eq!(candidate.key_id, key_id_of("A", 0));
        assert_eq!(candidate.version().version, "A");
        assert!(candidate.wrapped().as_bytes().starts_with(b"A\0"));
        assert_eq!(calls, [(KekOperation::Wrap, Ok(())), (KekOperation::Unwrap, Ok(()))]);
        let clock = HandClock::default();
        clock.advance(std::time::Duration::from_secs(5));
        let write = candidate.into_write_state(&Vec::new(), &clock, &settings()).unwrap();
        assert_eq!((write.key_id(), write.born(), write.uses()), (&key_id_of("A", 0), clock.now(), 0));
    }

    #[tokio::test]
    async fn a_dek_that_does_not_survive_is_a_readback_mismatch_and_nothing_is_made_of_it() {
        let (made, calls) = prepared(|script| script.forgets = true).await;
        assert_eq!(made.unwrap_err(), Reason::ReadbackMismatch);
        assert_eq!(calls.len(), 2);
    }

    #[tokio::test]
    async fn an_unwrap_that_names_another_kek_than_the_wrap_is_a_readback_mismatch() {
        assert_eq!(prepared(|script| script.unwraps_as = "other").await.0.unwrap_err(), Reason::ReadbackMismatch);
    }

    #[tokio::test]
    async fn every_fault_of_the_provider_goes_through_and_is_counted() {
        for reason in Reason::ALL.iter().copied() {
            let (made, calls) = prepared(|script| script.wrap_fails = Some(reason)).await;
            assert_eq!((made.unwrap_err(), calls), (reason, vec![(KekOperation::Wrap, Err(reason))]));
            let (made, calls) = prepared(|script| script.unwrap_fails = Some(reason)).await;
            let expected = vec![(KekOperation::Wrap, Ok(())), (KekOperation::Unwrap, Err(reason))];
            assert_eq!((made.unwrap_err(), calls), (reason, expected));
        }
    }

    #[tokio::test]
    async fn without_randomness_the_kek_is_not_even_asked() {
        let kek = ScriptedKek::new("A");
        let made = prepare(&entry(&kek), &settings(), &HandClock::default(), &NoEntropy, &Remembering::default()).await;
        assert_eq!((made.unwrap_err().reason(), kek.wraps()), (Reason::Entropy, 0));
    }
}
