//! The providers of one EncryptionConfiguration, in their order.
//!
//! Guarantees: the first writes; the first that a value belongs to reads it, and what any but the first has read is stale;
//! all KMS providers must be healthy for the API server to be ready. `identity` takes whatever does not look encrypted.
//! SPEC: k8s.io/apiserver value `prefixTransformers`, value/encrypt/identity, encryptionconfig `kmsHealthChecker`.

use crate::apiserver::probe::Probe;
use crate::apiserver::process::{Process, Settings, locked};
use crate::apiserver::rhythm::RELOAD_PATIENCE;
use crate::apiserver::transform::{self, Read, TransformError};
use crate::apiserver::unhealthy::Unhealthy;
use kms_v2_api::stored;
use kms_v2_client::plugin::KmsPlugin;
use kube_kms_core::port::Moment;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How the value of every provider but `identity` begins. SPEC: value/encrypt/identity `prefix`.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// One entry of the list.
#[derive(Clone, Debug)]
pub enum Provider {
    /// `kms`, v2.
    Kms {
        /// What the entry says.
        settings: Settings,
        /// The way to its endpoint.
        plugin: Arc<dyn KmsPlugin>,
    },
    /// `identity`: plaintext.
    Identity,
}

/// See the module. Loaded: every KMS provider has been evaluated once.
#[derive(Debug)]
pub(super) struct Configuration(Vec<Entry>);

#[derive(Debug)]
enum Entry {
    Kms(Box<Probe>),
    Identity,
}

impl Configuration {
    /// Builds all of it anew, one provider after the other. A failure is not fatal: the loops go on trying.
    pub(super) async fn load(process: &Process, providers: Vec<Provider>) -> (Self, Result<(), Unhealthy>) {
        let (mut entries, mut problems) = (Vec::with_capacity(providers.len()), Vec::new());
        for provider in providers {
            entries.push(match provider {
                Provider::Identity => Entry::Identity,
                Provider::Kms { settings, plugin } => {
                    let (probe, result) = Probe::load(process, settings, plugin).await;
                    problems.extend(result.err().into_iter().flat_map(|unhealthy| unhealthy.0));
                    Entry::Kms(Box::new(probe))
                }
            });
        }
        (Self(entries), ready_without(problems))
    }

    /// What it was loaded from.
    pub(super) fn providers(&self) -> Vec<Provider> {
        let provider = |entry: &Entry| match entry {
            Entry::Identity => Provider::Identity,
            Entry::Kms(probe) => Provider::Kms { settings: probe.settings.clone(), plugin: Arc::clone(&probe.plugin) },
        };
        self.0.iter().map(provider).collect()
    }

    /// The KMS providers.
    fn probes(&self) -> impl Iterator<Item = &Probe> {
        self.0.iter().filter_map(|entry| match entry {
            Entry::Kms(probe) => Some(&**probe),
            Entry::Identity => None,
        })
    }

    /// The KMS provider that writes, if one does.
    pub(super) fn writer(&self) -> Option<&Probe> {
        match self.0.first() {
            Some(Entry::Kms(probe)) => Some(probe),
            _ => None,
        }
    }

    /// The check `kms-providers`: one provider after the other, and all that is wrong.
    pub(super) async fn check(&self, process: &Process) -> Result<(), Unhealthy> {
        let mut problems = Vec::new();
        for probe in self.probes() {
            problems.extend(probe.check(process).await.err().into_iter().flat_map(|unhealthy| unhealthy.0));
        }
        ready_without(problems)
    }

    pub(super) async fn tick(&self, process: &Process) {
        for probe in self.probes() {
            probe.tick(process).await;
        }
    }

    pub(super) fn note_if_expired(&self, process: &Process) {
        self.probes().for_each(|probe| probe.note_if_expired(process));
    }

    /// When a loop is due next; never, without a KMS provider.
    pub(super) fn next_due(&self) -> Moment {
        self.probes().map(Probe::next_due).fold(Moment(u64::MAX), Moment::min)
    }

    /// When the first kept result ends.
    pub(super) fn health_expires(&self) -> Moment {
        self.probes().map(Probe::health_expires).fold(Moment(u64::MAX), Moment::min)
    }

    /// Seeds in the decrypt caches of all providers.
    pub(super) fn cached_seeds(&self) -> usize {
        self.probes().map(|probe| locked(&probe.cache).len()).fold(0, usize::saturating_add)
    }

    /// How long it is still polled when another is in use. SPEC: twice the sum of the timeouts, `KMSCloseGracePeriod`.
    pub(super) fn grace(&self) -> Duration {
        self.probes().fold(Duration::ZERO, |sum, p| sum.saturating_add(p.settings.timeout)).saturating_mul(2)
    }

    /// How long it may take to become healthy before it is dropped.
    pub(super) fn patience(&self) -> Duration {
        RELOAD_PATIENCE.max(self.grace())
    }

    pub(super) fn write(&self, process: &Process, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, TransformError> {
        match self.0.first() {
            Some(Entry::Kms(probe)) => transform::write(process, probe, key, plaintext),
            Some(Entry::Identity) => Ok(plaintext.to_vec()),
            None => Err(TransformError::NoState),
        }
    }

    pub(super) async fn read(&self, process: &Process, key: &str, value: &[u8]) -> Result<Read, TransformError> {
        let decoded = stored::decode(value);
        for (place, entry) in self.0.iter().enumerate() {
            let not_first = place != 0;
            match (entry, &decoded) {
                (Entry::Kms(probe), Ok((name, object))) if *name == probe.settings.name => {
                    let read = transform::read(process, probe, key, object).await?;
                    return Ok(Read { stale: read.stale || not_first, ..read });
                }
                (Entry::Identity, _) if !value.starts_with(ENCRYPTED) => {
                    return Ok(Read { plaintext: Zeroizing::new(value.to_vec()), stale: not_first });
                }
                _ => {}
            }
        }
        Err(match decoded {
            Ok((name, _)) => TransformError::OtherProvider(name.to_owned()),
            Err(why) => TransformError::NotStored(why),
        })
    }
}

fn ready_without(problems: Vec<super::unhealthy::Problem>) -> Result<(), Unhealthy> {
    if problems.is_empty() { Ok(()) } else { Err(Unhealthy(problems)) }
}
