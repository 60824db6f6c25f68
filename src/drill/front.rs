//! An API server in front of a plugin of the sandbox: the simulator, played in real time but faster.
//!
//! Guarantees: its loops and a readiness probe run until this is dropped; what it reports is on its own, faster clock.

use crate::store::Store;
use crate::task::Tasks;
use crate::tempo::{SPEED, Tempo, scaled};
use kms_v2_client::kms::{KmsClient, Target};
use kms_v2_judge::apiserver::{ApiServer, Finding, FindingCode, Provider, Settings};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::{MonotonicClock, OsEntropy};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The provider's name in every stored value.
pub(crate) const PROVIDER: &str = "drill";
const TICK: Duration = Duration::from_millis(25);

/// Real time, [`SPEED`] times as fast.
#[derive(Debug)]
struct FastClock(MonotonicClock);

impl Clock for FastClock {
    fn now(&self) -> Moment {
        Moment(self.0.now().0.saturating_mul(u64::from(SPEED)))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) name: String,
    pub(crate) server: Arc<ApiServer>,
    is_ready: Arc<AtomicBool>,
    _loops: Tasks,
}

impl Front {
    /// Starts it on the plugin that listens there.
    pub(crate) async fn start(name: &str, target: Target, tempo: Tempo) -> Result<Self, String> {
        let providers = providers(target, tempo).await?;
        let clock = Arc::new(FastClock(MonotonicClock::new()));
        let server = Arc::new(ApiServer::start_with(providers, clock, Arc::new(OsEntropy)).await);
        let is_ready = Arc::new(AtomicBool::new(server.readyz().await.is_ok()));
        let mut loops = Tasks::default();
        let (ticking, asked, answer) = (Arc::clone(&server), Arc::clone(&server), Arc::clone(&is_ready));
        loops.spawn(async move {
            loop {
                ticking.tick().await;
                tokio::time::sleep(TICK).await;
            }
        });
        loops.spawn(async move {
            loop {
                // As a kubelet every 10 s.
                tokio::time::sleep(scaled(Duration::from_secs(10))).await;
                answer.store(asked.readyz().await.is_ok(), Ordering::Relaxed);
            }
        });
        Ok(Self { name: name.to_owned(), server, is_ready, _loops: loops })
    }

    /// The API server process is restarted: its seed and its caches are gone.
    pub(crate) async fn restart(&self, target: Target, tempo: Tempo) -> Result<(), String> {
        self.server.restart_with(providers(target, tempo).await?).await;
        Ok(())
    }

    /// Whether `/readyz` was fine when it was asked last.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Reads these objects and compares them byte for byte: what does not open, with the reason.
    pub(crate) async fn read_all(&self, store: &Store, keys: &[String]) -> Vec<(String, String)> {
        let mut failed = Vec::new();
        for key in keys {
            let Some(value) = store.get(key) else { continue };
            match self.server.read(key, value).await {
                Ok(read) if *read.plaintext == Store::content(key) => {}
                Ok(_) => failed.push((key.clone(), "it opens to other bytes".to_owned())),
                Err(error) => failed.push((key.clone(), error.to_string())),
            }
        }
        failed
    }

    /// What it has to say against its plugin, but for these.
    pub(crate) fn findings_but(&self, expected: &[FindingCode]) -> Vec<Finding> {
        self.server.report().findings.into_iter().filter(|finding| !expected.contains(&finding.code)).collect()
    }
}

/// An EncryptionConfiguration with this one provider.
async fn providers(target: Target, tempo: Tempo) -> Result<Vec<Provider>, String> {
    let client = KmsClient::connect(target, tempo.rpc_timeout).await;
    let plugin = client.map(Arc::new).map_err(|error| format!("nobody listens on its socket: {error}"))?;
    let settings = Settings {
        name: PROVIDER.to_owned(),
        timeout: tempo.rpc_timeout,
        // On its clock: 2 s of ours.
        status_slow: Duration::from_secs(2).saturating_mul(SPEED),
    };
    Ok(vec![Provider::Kms { settings, plugin }])
}

/// What was found, for a detail.
pub(crate) fn describe(findings: &[Finding]) -> String {
    let all: Vec<String> = findings.iter().map(|f| format!("{} ({} times): {}", f.code, f.times, f.detail)).collect();
    all.join("; ")
}

/// The first objects that did not open, for a detail.
pub(crate) fn unopened(failed: &[(String, String)]) -> String {
    let first = failed.first().map_or_else(String::new, |(key, why)| format!(", the first {key}: {why}"));
    format!("{} objects do not open{first}", failed.len())
}
