//! An API server simulator: the providers of an EncryptionConfiguration in one kube-apiserver process.
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
mod provider;
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
pub use provider::Provider;
pub use record::{Counts, Event, Happened, Report, RpcCount};
pub use rhythm::{
    DECRYPT_CACHE_TTL, HEALTH_TTL_BAD, HEALTH_TTL_GOOD, POLL_HEALTHY, POLL_UNHEALTHY, RELOAD_PATIENCE, WRITE_STATE_TTL,
};
pub use transform::{Read, Rewrite, TransformError};
pub use unhealthy::{Problem, Unhealthy};

use kms_v2_client::plugin::KmsPlugin;
use kube_kms_core::port::{Clock, Entropy, Moment};
use process::{Process, locked};
use provider::Configuration;
use record::count;
use rhythm::later;
use std::sync::{Arc, Mutex};

/// See the module. Every method takes `&self`: reads may run at once, as an API server's do.
#[derive(Debug)]
pub struct ApiServer {
    process: Process,
    loaded: Mutex<Loaded>,
}

/// The configurations that are there at one moment.
#[derive(Debug)]
struct Loaded {
    current: Arc<Configuration>,
    /// A new one that is not healthy yet, and until when it may become so.
    candidate: Option<(Arc<Configuration>, Moment)>,
    /// Old ones that are still polled, and until when.
    closing: Vec<(Arc<Configuration>, Moment)>,
}

impl Loaded {
    const fn only(current: Arc<Configuration>) -> Self {
        Self { current, candidate: None, closing: Vec::new() }
    }
}

impl ApiServer {
    /// Starts the process with one KMS provider, which is evaluated once inline. A plugin that is not there yet is not fatal.
    pub async fn start(
        settings: Settings,
        plugin: Arc<dyn KmsPlugin>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self::start_with(vec![Provider::Kms { settings, plugin }], clock, entropy).await
    }

    /// As [`ApiServer::start`], with these providers.
    pub async fn start_with(providers: Vec<Provider>, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let process = Process::new(clock, entropy);
        process.record().event(process.now(), Happened::Loaded);
        let (configuration, _) = Configuration::load(&process, providers).await;
        Self { process, loaded: Mutex::new(Loaded::only(Arc::new(configuration))) }
    }

    /// When something is due next. Nothing is lost when the driver comes later; it is then later.
    #[must_use]
    pub fn next_due(&self) -> Moment {
        let loaded = locked(&self.loaded);
        let candidate = loaded.candidate.iter().map(|(new, until)| new.health_expires().min(*until));
        let closing = loaded.closing.iter().map(|(old, until)| old.next_due().min(*until));
        candidate.chain(closing).fold(loaded.current.next_due(), Moment::min)
    }

    /// Does all that is due now.
    pub async fn tick(&self) {
        self.current().note_if_expired(&self.process);
        self.tick_candidate().await;
        let now = self.process.now();
        let polled: Vec<_> = {
            let mut loaded = locked(&self.loaded);
            loaded.closing.retain(|(_, until)| *until > now);
            let old = loaded.closing.iter().map(|(old, _)| Arc::clone(old));
            std::iter::once(Arc::clone(&loaded.current)).chain(old).collect()
        };
        for configuration in polled {
            configuration.tick(&self.process).await;
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

    /// Restarts the process: seeds, caches and the memory of the versions are gone; the providers are evaluated inline. The
    /// record stays.
    pub async fn restart(&self) {
        let providers = self.current().providers();
        self.restart_with(providers).await;
    }

    /// As [`ApiServer::restart`], with other providers, or another way to the same.
    pub async fn restart_with(&self, providers: Vec<Provider>) {
        self.current().note_if_expired(&self.process);
        self.process.record().event(self.process.now(), Happened::Restarted);
        let (configuration, _) = Configuration::load(&self.process, providers).await;
        *locked(&self.loaded) = Loaded::only(Arc::new(configuration));
    }

    /// Loads a changed configuration, whatever the change: new connections, Status, Encrypt, seeds and caches; the memory of
    /// the versions is gone. The old one stays in use until the new one is healthy, and is polled for twice its timeouts
    /// after that. A new one that is not healthy at once has [`RELOAD_PATIENCE`] or twice its timeouts; `tick` takes it into
    /// use or drops it.
    ///
    /// # Errors
    /// Why the new one is not in use yet.
    pub async fn reload(&self, providers: Vec<Provider>) -> Result<(), Unhealthy> {
        let began = self.process.now();
        let (configuration, result) = Configuration::load(&self.process, providers).await;
        let configuration = Arc::new(configuration);
        if result.is_ok() {
            self.take_into_use(configuration);
        } else {
            self.process.record().event(self.process.now(), Happened::ReloadPending);
            let until = later(began, configuration.patience());
            locked(&self.loaded).candidate = Some((configuration, until));
        }
        result
    }

    /// The value for etcd of an object with this full etcd key.
    ///
    /// # Errors
    /// Before the first good evaluation, and after the write state expired.
    pub fn write(&self, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, TransformError> {
        let result = self.current().write(&self.process, key, plaintext);
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
        let result = self.current().read(&self.process, key, value).await;
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
        self.current().writer()?.write_state().map(|state| state.object.key_id)
    }

    /// Until when writes go on if nothing more is heard of the plugin.
    #[must_use]
    pub fn write_expires(&self) -> Option<Moment> {
        self.current().writer()?.write_state().map(|state| state.expires())
    }

    /// Seeds in the decrypt caches: the sum of the API server's metric `dek_source_cache_size`.
    #[must_use]
    pub fn cached_seeds(&self) -> usize {
        self.current().cached_seeds()
    }

    /// What happened so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.current().note_if_expired(&self.process);
        self.process.record().report()
    }

    fn current(&self) -> Arc<Configuration> {
        Arc::clone(&locked(&self.loaded).current)
    }

    fn take_into_use(&self, new: Arc<Configuration>) {
        let now = self.process.now();
        let mut loaded = locked(&self.loaded);
        let old = std::mem::replace(&mut loaded.current, new);
        old.note_if_expired(&self.process);
        loaded.candidate = None;
        let until = later(now, old.grace());
        loaded.closing.push((old, until));
        self.process.record().event(now, Happened::Reloaded);
    }

    async fn tick_candidate(&self) {
        let candidate = locked(&self.loaded).candidate.clone();
        let Some((new, until)) = candidate else { return };
        if new.check(&self.process).await.is_ok() {
            self.take_into_use(new);
        } else if self.process.now() >= until {
            locked(&self.loaded).candidate = None;
            self.process.record().event(self.process.now(), Happened::ReloadRefused);
        }
    }
}
