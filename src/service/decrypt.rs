//! Decrypt: find the DEK by its wrapped form, open. The network is asked only for a wrapped DEK never seen before.
//!
//! Guarantees: never wrong bytes (everything is authenticated, key_id and annotations included); one unwrap per distinct
//! wrapped DEK however many callers wait; while the KMS is away everything known goes on serving. SPEC: kube-apiserver
//! caches a wrong answer for a day, so an error is always better; docs/format.md.

use crate::core::annotation::{AdditionalData, Annotations};
use crate::core::envelope::Envelope;
use crate::core::fault::{Class, Fault, Reason};
use crate::core::health::OnDenied;
use crate::core::key_id::KeyId;
use crate::core::uid::Uid;
use crate::service::keyring::{Entry, Found, Joined};
use crate::service::observer::KeyringEvent;
use crate::service::plugin::Plugin;
use crate::service::unwrap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;
use zeroize::Zeroizing;

/// While the KMS is known to be away, how long an unwrap is waited for.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(1);

/// What kube-apiserver passes back.
#[derive(Debug)]
pub struct DecryptInput<'a> {
    /// DecryptRequest.ciphertext.
    pub ciphertext: &'a [u8],
    /// DecryptRequest.key_id.
    pub key_id: String,
    /// DecryptRequest.annotations.
    pub annotations: BTreeMap<String, Vec<u8>>,
    /// DecryptRequest.uid.
    pub uid: &'a Uid,
    /// How long the caller waits.
    pub patience: Duration,
}

/// Where the DEK came from, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DekSource {
    /// The write state.
    WriteState,
    /// The keyring.
    Keyring,
    /// An unwrap that this call started.
    Unwrapped,
    /// An unwrap that another call had started.
    Joined,
    /// The keyring, past its time, because the KMS is away.
    Expired,
}

impl DekSource {
    /// As it is spelled in the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::WriteState => "write-state",
            Self::Keyring => "keyring",
            Self::Unwrapped => "unwrapped",
            Self::Joined => "joined",
            Self::Expired => "expired",
        }
    }
}

/// A value that opened.
#[derive(Debug)]
pub struct Opened {
    /// Exactly the bytes that were given to Encrypt; wiped on drop.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Where the DEK came from.
    pub source: DekSource,
    /// The key_id that was passed back, parsed.
    pub key_id: KeyId,
}

impl Plugin {
    /// Opens what Encrypt of this or another replica sealed.
    ///
    /// # Errors
    /// Malformed input; `open-failed`, `wrapped-dek-rejected`; `kek-not-configured`; those of the KEK provider;
    /// `deadline`, `overloaded`.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the call; an unwrap that it started goes on and fills the keyring.
    pub async fn decrypt(self: &Arc<Self>, input: DecryptInput<'_>) -> Result<Opened, Fault> {
        let envelope = Envelope::parse(input.ciphertext)?;
        let key_id = KeyId::parse(input.key_id)?;
        let annotations = Annotations::parse(input.annotations)?;
        if let Some(plaintext) = self.open_with_write_state(envelope, &key_id, &annotations)? {
            return Ok(Opened { plaintext, source: DekSource::WriteState, key_id });
        }
        let (entry, source) = self.entry(&annotations, input.uid, input.patience).await?;
        let aad = entry.aad(&key_id, &annotations);
        let plaintext = entry.dek().open(envelope, &aad)?;
        if source != DekSource::Keyring {
            entry.remember(key_id.clone(), annotations, aad);
        }
        Ok(Opened { plaintext, source, key_id })
    }

    /// The DEK that seals now opens without a look into the keyring, and whatever its capacity.
    fn open_with_write_state(
        &self,
        envelope: Envelope<'_>,
        key_id: &KeyId,
        annotations: &Annotations,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        let published = self.published();
        if published.revoked.as_ref() == Some(annotations.kek()) {
            return Err(published.state.because().map_or_else(|| Reason::KekGone.into(), Fault::new));
        }
        let Some(write) = &published.write else { return Ok(None) };
        if write.annotations().wrapped_dek() != annotations.wrapped_dek() || write.version().kek != *annotations.kek() {
            return Ok(None);
        }
        let same = write.key_id() == key_id && write.annotations() == annotations;
        let aad = if same { *write.aad() } else { AdditionalData::bind(key_id, annotations.all()) };
        let plaintext = write.dek().open(envelope, &aad)?;
        self.observer().keyring(KeyringEvent::Hit);
        Ok(Some(plaintext))
    }

    async fn entry(
        self: &Arc<Self>,
        annotations: &Annotations,
        uid: &Uid,
        patience: Duration,
    ) -> Result<(Arc<Entry>, DekSource), Fault> {
        let outage = self.is_outage();
        let expired = match self.keyring().find(annotations, self.clock().now()) {
            Found::Fresh(entry) => {
                self.observer().keyring(KeyringEvent::Hit);
                return Ok((entry, DekSource::Keyring));
            }
            Found::Refused(fault) => {
                self.observer().keyring(KeyringEvent::RefusedAgain);
                return Err(fault);
            }
            Found::Excused(entry) => {
                self.observer().keyring(KeyringEvent::ServedExpired);
                return Ok((entry, DekSource::Expired));
            }
            Found::Expired(entry) if outage => {
                self.observer().keyring(KeyringEvent::ServedExpired);
                return Ok((entry, DekSource::Expired));
            }
            Found::Expired(entry) => Some(entry),
            Found::Absent => None,
        };
        if !self.keks().may_unwrap(annotations.kek()) {
            return Err(Reason::KekNotConfigured.into());
        }
        // With something to fall back on, or with little hope, the caller hears before its deadline.
        let patience = if outage || expired.is_some() { patience.min(OUTAGE_PATIENCE) } else { patience };
        match (self.unwrapped(annotations, uid, patience, outage).await, expired) {
            (Ok(found), _) => Ok(found),
            (Err(fault), Some(entry)) if self.may_serve_expired(&fault) => {
                entry.excuse(self.clock().now());
                self.observer().keyring(KeyringEvent::ServedExpired);
                Ok((entry, DekSource::Expired))
            }
            (Err(fault), _) => Err(fault),
        }
    }

    /// Joins or starts the unwrap and waits for it, no longer than `patience`.
    async fn unwrapped(
        self: &Arc<Self>,
        annotations: &Annotations,
        uid: &Uid,
        patience: Duration,
        outage: bool,
    ) -> Result<(Arc<Entry>, DekSource), Fault> {
        let (mut waiting, source) = match self.keyring().join(annotations)? {
            Joined::Waiting(waiting) => {
                self.observer().keyring(KeyringEvent::Joined);
                (waiting, DekSource::Joined)
            }
            Joined::Started(flight, waiting) => {
                self.observer().keyring(KeyringEvent::Miss);
                let plugin = Arc::clone(self);
                let (annotations, uid) = (annotations.clone(), uid.clone());
                // INVARIANT: a task of its own, so that it outlives the caller (docs/conformance.md, item 58).
                tokio::spawn(
                    async move {
                        let outcome = unwrap::unwrap_dek(&plugin, &annotations, &uid).await;
                        flight.settle(outcome, plugin.clock().now());
                    }
                    .in_current_span(),
                );
                (waiting, DekSource::Unwrapped)
            }
        };
        let outcome = match tokio::time::timeout(patience, waiting.wait_for(Option::is_some)).await {
            Ok(Ok(settled)) => settled.clone(),
            Ok(Err(_)) => Some(Err(Reason::Invariant.into())),
            Err(_) => Some(Err(if outage { Reason::KmsUnreachable } else { Reason::Deadline }.into())),
        };
        match outcome {
            Some(Ok(entry)) => Ok((entry, source)),
            Some(Err(fault)) => Err(fault),
            None => Err(Reason::Invariant.into()),
        }
    }

    fn may_serve_expired(&self, fault: &Fault) -> bool {
        match fault.class() {
            class if class.is_transient() => true,
            Class::KekDenied => self.settings().policy.on_denied == OnDenied::Coast,
            _ => false,
        }
    }
}
