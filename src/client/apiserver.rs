//! An API server simulator: one KMS v2 provider in one kube-apiserver process.
//!
//! Guarantees: it polls, rotates, expires, coasts, caches and refuses as kube-apiserver does, on an injected clock and
//! with injected randomness, so that a driver plays a day in a second or runs it in real time. It has no timer of its own:
//! the driver calls [`ApiServer::tick`] when [`ApiServer::next_due`] has come, and [`ApiServer::readyz`] as often as a
//! kubelet would. Refuses to know how the plugin is reached. SPEC: k8s.io/apiserver encryptionconfig and kmsv2; KEP-3299.

mod decrypt_cache;
mod dek_source;
mod finding;
mod hand_clock;
mod key_history;
mod probe;
mod process;
mod record;
mod rhythm;
#[cfg(test)]
mod tests;
mod transform;
mod unhealthy;
mod write_state;

pub use dek_source::{DekSource, SEED_LEN, WrongLength};
pub use finding::{Finding, FindingCode};
pub use hand_clock::HandClock;
pub use key_history::KeyIdSeen;
pub use process::Settings;
pub use record::{Counts, Event, Happened, Report, RpcCount};
pub use rhythm::{
    DECRYPT_CACHE_TTL, HEALTH_TTL_BAD, HEALTH_TTL_GOOD, POLL_HEALTHY, POLL_UNHEALTHY, RELOAD_PATIENCE, WRITE_STATE_TTL,
};
pub use transform::{Read, Rewrite, TransformError};
pub use unhealthy::{Problem, Unhealthy};

use crate::client::plugin::KmsPlugin;
use crate::core::port::{Clock, Entropy, Moment};
use probe::Probe;
use process::{Process, locked};
use record::count;
use rhythm::later;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// See the module. Every method takes `&self`: reads may run at once, as an API server's do.
#[derive(Debug)]
pub struct ApiServer {
    process: Process,
    loaded: Mutex<Loaded>,
}

/// The configurations that are there at one moment.
#[derive(Debug)]
struct Loaded {
    current: Arc<Probe>,
    /// A new one that is not healthy yet, and until when it may become so.
    candidate: Option<(Arc<Probe>, Moment)>,
    /// Old ones that are still polled, and until when.
    closing: Vec<(Arc<Probe>, Moment)>,
}

impl Loaded {
    const fn only(current: Arc<Probe>) -> Self {
        Self { current, candidate: None, closing: Vec::new() }
    }
}

impl ApiServer {
    /// Starts the process: loads the provider, which is evaluated once inline. A plugin that is not there yet is not fatal.
    pub async fn start(
        settings: Settings,
        plugin: Arc<dyn KmsPlugin>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let process = Process::new(settings, clock, entropy);
        process.record().event(process.now(), Happened::Loaded);
        let (probe, _) = Probe::load(&process, plugin).await;
        Self { process, loaded: Mutex::new(Loaded::only(Arc::new(probe))) }
    }

    /// When something is due next. Nothing is lost when the driver comes later; it is then later.
    #[must_use]
    pub fn next_due(&self) -> Moment {
        let loaded = locked(&self.loaded);
        let candidate = loaded.candidate.iter().map(|(probe, until)| probe.health_expires().min(*until));
        let closing = loaded.closing.iter().map(|(probe, until)| probe.next_due().min(*until));
        candidate.chain(closing).fold(loaded.current.next_due(), Moment::min)
    }

    /// Does all that is due now.
    pub async fn tick(&self) {
        self.current().note_if_expired(&self.process);
        self.tick_candidate().await;
        let now = self.process.now();
        let probes: Vec<_> = {
            let mut loaded = locked(&self.loaded);
            loaded.closing.retain(|(_, until)| *until > now);
            let old = loaded.closing.iter().map(|(probe, _)| Arc::clone(probe));
            std::iter::once(Arc::clone(&loaded.current)).chain(old).collect()
        };
        for probe in probes {
            probe.tick(&self.process).await;
        }
    }

    /// What `/readyz/kms-providers` answers: an evaluation, or the result of the last one while it is kept (20 s when
    /// good, 3 s when bad).
    ///
    /// # Errors
    /// All that was wrong.
    pub async fn readyz(&self) -> Result<(), Unhealthy> {
        let current = self.current();
        current.note_if_expired(&self.process);
        current.check(&self.process).await
    }

    /// Restarts the process: seed, caches and the memory of the version are gone; the provider is evaluated inline. The
    /// record stays.
    pub async fn restart(&self) {
        let plugin = Arc::clone(&self.current().plugin);
        self.restart_with(plugin).await;
    }

    /// As [`ApiServer::restart`], with another way to the plugin.
    pub async fn restart_with(&self, plugin: Arc<dyn KmsPlugin>) {
        self.current().note_if_expired(&self.process);
        self.process.record().event(self.process.now(), Happened::Restarted);
        let (probe, _) = Probe::load(&self.process, plugin).await;
        *locked(&self.loaded) = Loaded::only(Arc::new(probe));
    }

    /// Loads a changed configuration: a new connection, Status, Encrypt, seed and cache; the memory of the version is
    /// gone. The old one stays in use until the new one is healthy, and is polled for twice the timeout after that. A new
    /// one that is not healthy at once has [`RELOAD_PATIENCE`]; `tick` takes it into use or drops it.
    ///
    /// # Errors
    /// Why the new one is not in use yet.
    pub async fn reload(&self, plugin: Arc<dyn KmsPlugin>) -> Result<(), Unhealthy> {
        let patience = RELOAD_PATIENCE.max(self.grace());
        let until = later(self.process.now(), patience);
        let (probe, result) = Probe::load(&self.process, plugin).await;
        let probe = Arc::new(probe);
        if result.is_ok() {
            self.take_into_use(probe);
        } else {
            self.process.record().event(self.process.now(), Happened::ReloadPending);
            locked(&self.loaded).candidate = Some((probe, until));
        }
        result
    }

    /// The value for etcd of an object with this full etcd key.
    ///
    /// # Errors
    /// Before the first good evaluation, and after the write state expired.
    pub fn write(&self, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, TransformError> {
        let result = transform::write(&self.process, &self.current(), key, plaintext);
        let counts = &mut self.process.record().counts;
        count(if result.is_ok() { &mut counts.writes_ok } else { &mut counts.writes_failed });
        result
    }

    /// The object in a value that was stored under this full etcd key.
    ///
    /// # Errors
    /// Before the first good evaluation; when Decrypt fails; when the object does not open.
    ///
    /// # Cancel safety
    /// Dropping the future cancels its Decrypt.
    pub async fn read(&self, key: &str, value: &[u8]) -> Result<Read, TransformError> {
        let current = self.current();
        let result = transform::read(&self.process, &current, key, value).await;
        let counts = &mut self.process.record().counts;
        count(if result.is_ok() { &mut counts.reads_ok } else { &mut counts.reads_failed });
        result
    }

    /// An update that changes nothing, as a storage migration makes it: the object is written again exactly if it is
    /// stale.
    ///
    /// # Errors
    /// As [`ApiServer::read`] and [`ApiServer::write`].
    pub async fn rewrite(&self, key: &str, value: &[u8]) -> Result<Rewrite, TransformError> {
        let object = self.read(key, value).await?;
        if object.stale {
            return self.write(key, &object.plaintext).map(Rewrite::Value);
        }
        count(&mut self.process.record().counts.rewrites_unneeded);
        Ok(Rewrite::Unneeded)
    }

    /// The driver has restarted the plugin, and nothing was rotated meanwhile: the next key_id must be the last.
    pub fn plugin_restarted(&self) {
        self.process.record().plugin_restarted(self.process.now());
    }

    /// The key_id that writes use, when there is one.
    #[must_use]
    pub fn write_key_id(&self) -> Option<String> {
        self.current().write_state().map(|state| state.object.key_id)
    }

    /// Until when writes go on if nothing more is heard of the plugin.
    #[must_use]
    pub fn write_expires(&self) -> Option<Moment> {
        self.current().write_state().map(|state| state.expires())
    }

    /// Seeds in the decrypt cache: the API server's metric `dek_source_cache_size`.
    #[must_use]
    pub fn cached_seeds(&self) -> usize {
        locked(&self.current().cache).len()
    }

    /// What happened so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.current().note_if_expired(&self.process);
        self.process.record().report()
    }

    fn current(&self) -> Arc<Probe> {
        Arc::clone(&locked(&self.loaded).current)
    }

    /// How long an old configuration stays after a new one is in use. SPEC: twice the sum of the timeouts.
    fn grace(&self) -> Duration {
        self.process.settings.timeout.saturating_mul(2)
    }

    fn take_into_use(&self, probe: Arc<Probe>) {
        let now = self.process.now();
        let mut loaded = locked(&self.loaded);
        let old = std::mem::replace(&mut loaded.current, probe);
        old.note_if_expired(&self.process);
        loaded.candidate = None;
        loaded.closing.push((old, later(now, self.grace())));
        self.process.record().event(now, Happened::Reloaded);
    }

    async fn tick_candidate(&self) {
        let candidate = locked(&self.loaded).candidate.clone();
        let Some((probe, until)) = candidate else { return };
        if probe.check(&self.process).await.is_ok() {
            self.take_into_use(probe);
        } else if self.process.now() >= until {
            locked(&self.loaded).candidate = None;
            self.process.record().event(self.process.now(), Happened::ReloadRefused);
        }
    }
}
