//! A candidate for the next write state: a fresh DEK, wrapped, unwrapped again and compared.
//!
//! This is also the probe: it proves that the KEK can wrap and unwrap for us now, and which version of it does. So a
//! version is never announced that cannot wrap, and a label never comes from another moment than its wrap.

use crate::core::annotation::WrappedDek;
use crate::core::dek::{Dek, DekBytes};
use crate::core::fault::{Fault, Reason};
use crate::core::kek_ref::KekVersion;
use crate::core::key_id::KeyId;
use crate::core::port::{Clock, Entropy, Kek, KekCall, Wrapped};
use crate::service::kek_set::KekEntry;
use crate::service::observer::{KekOperation, Observer};
use crate::service::settings::Settings;
use crate::service::write_state::WriteState;
use std::sync::Arc;

/// Proven to wrap and unwrap; not yet published.
#[derive(Debug)]
pub struct Candidate {
    /// The id that it would be reported under.
    pub key_id: KeyId,
    version: KekVersion,
    wrapped: WrappedDek,
    dek: Arc<Dek>,
}

impl Candidate {
    /// Makes it a write state, born now.
    #[must_use]
    pub fn into_write_state(self, clock: &dyn Clock, settings: &Settings) -> WriteState {
        WriteState::new(self.key_id, self.version, &self.wrapped, self.dek, clock.now(), settings)
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
    let dek = Arc::new(Dek::new(&bytes)?);
    Ok(Candidate { key_id, version: unwrapped.version, wrapped, dek })
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
    let outcome = call.await;
    let result = outcome.as_ref().map(|_| ()).map_err(Fault::reason);
    observer.kek_call(kek.kind().as_str(), operation, result, clock.now().since(began));
    outcome
}
