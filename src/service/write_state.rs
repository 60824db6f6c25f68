//! The write state: one immutable snapshot of key_id, DEK and annotations, and the count of seals under that DEK.
//!
//! Guarantees: what Encrypt answers comes from one of these and from nothing else, so key_id, annotations and the key
//! that sealed always belong together; no DEK seals more often than the hard limit. SPEC: NIST SP 800-38D 8.3.

use crate::settings::Settings;
use kube_kms_core::annotation::{AdditionalData, Annotations};
use kube_kms_core::dek::{Dek, check_plaintext};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::KekVersion;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::limit;
use kube_kms_core::port::{Entropy, Moment};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// See the module.
#[derive(Debug)]
pub struct WriteState {
    key_id: KeyId,
    version: KekVersion,
    annotations: Annotations,
    recovery: Vec<bool>,
    aad: AdditionalData,
    dek: Arc<Dek>,
    born: Moment,
    uses: AtomicU64,
    encoded: OnceLock<Vec<u8>>,
    renew_at: u64,
}

/// One sealed value.
#[derive(Debug)]
pub struct Sealed {
    /// EncryptResponse.ciphertext.
    pub ciphertext: Vec<u8>,
    /// True for exactly one seal of a DEK: the one that used up `dek.maxUses`.
    pub renewal_due: bool,
}

impl WriteState {
    /// Built only from a verified candidate; see [`crate::prepare`].
    pub(super) fn new(
        key_id: KeyId,
        version: KekVersion,
        annotations: Annotations,
        recovery: Vec<bool>,
        dek: Arc<Dek>,
        born: Moment,
        settings: &Settings,
    ) -> Self {
        let aad = AdditionalData::bind(&key_id, annotations.all());
        let renew_at = settings.dek_max_uses.min(limit::DEK_USES_HARD_MAX);
        let (uses, encoded) = (AtomicU64::new(0), OnceLock::new());
        Self { key_id, version, annotations, recovery, aad, dek, born, uses, encoded, renew_at }
    }

    /// Seals one value.
    ///
    /// # Errors
    /// `dek-exhausted` from the 2^32nd seal on; `plaintext-empty`, `plaintext-too-long`, `entropy`.
    pub fn seal(&self, entropy: &dyn Entropy, plaintext: &[u8]) -> Result<Sealed, Fault> {
        // Before it is counted: a refused plaintext is no use of the DEK, and must not be the one that asks for the next.
        check_plaintext(plaintext)?;
        // INVARIANT: the count goes up before the seal, so that concurrent calls cannot pass the limit together
        // (test `a_dek_never_seals_more_often_than_the_hard_limit`).
        let before = self.uses.fetch_add(1, Ordering::Relaxed);
        if before >= limit::DEK_USES_HARD_MAX {
            self.uses.fetch_sub(1, Ordering::Relaxed);
            return Err(Reason::DekExhausted.into());
        }
        let ciphertext = self.dek.seal(entropy, &self.aad, plaintext)?;
        Ok(Sealed { ciphertext, renewal_due: before.saturating_add(1) == self.renew_at })
    }

    /// Whether this DEK should be replaced: by age or by use.
    #[must_use]
    pub fn is_due(&self, now: Moment, settings: &Settings) -> bool {
        now.since(self.born) >= settings.dek_max_age || self.uses() >= settings.dek_max_uses.min(self.renew_at)
    }

    /// What Status reports while this is the write state.
    #[must_use]
    pub const fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The KEK version that wrapped the DEK.
    #[must_use]
    pub const fn version(&self) -> &KekVersion {
        &self.version
    }

    /// EncryptResponse.annotations.
    #[must_use]
    pub const fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    /// key_id and annotations as `encode` puts them on the wire, which happens once: they are the same for every Encrypt.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.encoded.get_or_init(|| encode(self))
    }

    /// For each recovery KEK, in the order of the configuration: whether this DEK is wrapped under it.
    #[must_use]
    pub fn recovery(&self) -> &[bool] {
        &self.recovery
    }

    /// Tells this write state from every other: the beginning of a hash over its key_id, its wrapped DEK and its KEK.
    pub(super) fn mark(&self) -> u64 {
        self.aad.as_bytes().first_chunk().map_or(0, |mark| u64::from_be_bytes(*mark))
    }

    /// Seals so far.
    #[must_use]
    pub fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    /// When the DEK was made.
    #[must_use]
    pub const fn born(&self) -> Moment {
        self.born
    }

    pub(super) const fn aad(&self) -> &AdditionalData {
        &self.aad
    }

    pub(super) const fn dek(&self) -> &Arc<Dek> {
        &self.dek
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{settings, write_state};
    use kube_kms_os::OsEntropy;

    #[test]
    fn a_dek_never_seals_more_often_than_the_hard_limit() {
        let state = write_state(&settings());
        state.uses.store(limit::DEK_USES_HARD_MAX - 2, Ordering::Relaxed);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| state.seal(&OsEntropy, b"seed").map(|_| ()))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 2);
        assert!(results.iter().flat_map(|r| r.as_ref().err()).all(|f| f.reason() == Reason::DekExhausted));
        assert_eq!(state.uses(), limit::DEK_USES_HARD_MAX);
    }

    #[test]
    fn renewal_is_asked_for_once_by_use_and_is_due_by_use_and_by_age() {
        let mut settings = settings();
        settings.dek_max_uses = 3;
        let state = write_state(&settings);
        let asked: Vec<bool> = (0..5).map(|_| state.seal(&OsEntropy, b"seed").unwrap().renewal_due).collect();
        assert_eq!(asked, [false, false, true, false, false]);
        assert!(state.is_due(Moment(1), &settings));
        let fresh = write_state(&settings);
        assert!(!fresh.is_due(Moment(0), &settings));
        let day = Moment(u64::try_from(settings.dek_max_age.as_nanos()).unwrap());
        assert!(fresh.is_due(day, &settings));
    }

    #[test]
    fn what_is_sealed_opens_under_the_dek_and_the_binding_of_this_state_and_under_no_other() {
        let state = write_state(&settings());
        let sealed = state.seal(&OsEntropy, b"seed").unwrap().ciphertext;
        let envelope = || kube_kms_core::envelope::Envelope::parse(&sealed).unwrap();
        assert_eq!(state.dek().open(envelope(), state.aad()).unwrap().as_slice(), b"seed");
        let renamed = AdditionalData::bind(&KeyId::derive(state.version(), 1), state.annotations().all());
        assert!(state.dek().open(envelope(), &renamed).is_err());
        assert!(write_state(&settings()).dek().open(envelope(), state.aad()).is_err());
    }

    #[test]
    fn a_refused_plaintext_is_no_use_and_does_not_swallow_the_renewal() {
        let settings = Settings { dek_max_uses: 2, ..settings() };
        let state = write_state(&settings);
        state.seal(&OsEntropy, b"seed").unwrap();
        assert_eq!(state.seal(&OsEntropy, b"").unwrap_err().reason(), Reason::PlaintextEmpty);
        assert_eq!(state.seal(&OsEntropy, &[0; 996]).unwrap_err().reason(), Reason::PlaintextTooLong);
        assert_eq!(state.uses(), 1);
        assert!(state.seal(&OsEntropy, b"seed").unwrap().renewal_due);
    }

    #[test]
    fn renewal_is_due_at_the_hard_limit_whatever_is_configured() {
        let settings = Settings { dek_max_uses: u64::MAX, ..settings() };
        let state = write_state(&settings);
        state.uses.store(limit::DEK_USES_HARD_MAX - 1, Ordering::Relaxed);
        assert!(state.seal(&OsEntropy, b"seed").unwrap().renewal_due);
        assert!(state.is_due(Moment(0), &settings));
        assert_eq!(state.seal(&OsEntropy, b"seed").unwrap_err().reason(), Reason::DekExhausted);
    }

    #[test]
    fn a_settings_change_to_fewer_uses_makes_an_old_dek_due() {
        let state = write_state(&settings());
        state.seal(&OsEntropy, b"seed").unwrap();
        assert!(!state.is_due(Moment(0), &settings()));
        assert!(state.is_due(Moment(0), &Settings { dek_max_uses: 1, ..settings() }));
    }
}
