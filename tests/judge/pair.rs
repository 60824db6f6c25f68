//! Two API servers on one plugin that live through the same: k8s.io/apiserver's own code, and our simulator of it.
//!
//! Guarantees: every step is done to both; [`Pair::agree`] fails the test when they made other RPCs, saw other key_ids or
//! keep another number of seeds. The simulator runs on the real clock and waits for a lost plugin as grpc-go does.

use crate::support::apiserver_go::{RealApiServer, Release};
use crate::support::site::{PATIENCE, Site};
use kube_kms::api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kube_kms::client::apiserver::{ApiServer, Settings};
use kube_kms::client::kms::{KmsClient, Target};
use kube_kms::client::plugin::{KmsPlugin, RpcFuture};
use kube_kms::core::port::Clock;
use kube_kms::os::{MonotonicClock, OsEntropy};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// The provider's name in the EncryptionConfiguration.
pub const PROVIDER: &str = "judge";
/// kube-apiserver's default.
const TIMEOUT: Duration = Duration::from_secs(3);

/// RPCs by method and gRPC code, as kube-apiserver spells them.
pub type Rpcs = BTreeMap<(String, String), u64>;

/// See the module.
pub struct Pair {
    pub release: Release,
    pub real: RealApiServer,
    pub sim: Arc<ApiServer>,
    config: PathBuf,
    target: Target,
    /// What the real API servers before this one did.
    before: (Rpcs, BTreeSet<String>),
    ticking: JoinHandle<()>,
}

impl Pair {
    /// Both start, with the same configuration.
    pub async fn start(release: Release, site: &Site) -> Self {
        let config = site.dir().join(format!("encryption-{}.yaml", uuid::Uuid::new_v4().simple()));
        write_config(&config, site, "3s");
        let target = Target::File(site.socket());
        let settings = Settings { timeout: TIMEOUT, ..Settings::new(PROVIDER) };
        let clock = Arc::new(MonotonicClock::default());
        let port: Arc<dyn Clock> = clock.clone();
        let (real, sim) = tokio::join!(
            RealApiServer::start(release, &config),
            ApiServer::start(settings, plugin(&target), port, Arc::new(OsEntropy))
        );
        let sim = Arc::new(sim);
        let ticking = tokio::spawn(tick(Arc::clone(&sim), clock));
        Self { release, real, sim, config, target, before: Default::default(), ticking }
    }

    /// Both are new processes.
    pub async fn restart(&mut self) {
        let (rpcs, hashes) = self.real_rpcs_and_hashes().await;
        self.before = (rpcs, hashes);
        let (real, ()) =
            tokio::join!(RealApiServer::start(self.release, &self.config), self.sim.restart_with(plugin(&self.target)));
        self.real = real;
    }

    /// Both are given a changed EncryptionConfiguration, and use it when this returns.
    pub async fn reload(&self, site: &Site) {
        let before = self.reloads().await;
        write_config(&self.config, site, "4s");
        self.sim.reload(plugin(&self.target)).await.unwrap();
        let began = Instant::now();
        while self.reloads().await == before {
            assert!(began.elapsed() < PATIENCE, "{:?} did not reload\n{}", self.release, self.real.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn reloads(&self) -> u64 {
        let samples = self.real.metrics().await;
        let ok = samples
            .iter()
            .filter(|s| s.name.contains("automatic_reload") && s.labels.get("status").is_some_and(|s| s == "success"));
        ok.map(|s| s.value as u64).sum()
    }

    /// The check `kms-providers` of both, which is the same.
    pub async fn readyz(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let (real, sim) = tokio::join!(self.real.readyz(), self.sim.readyz());
            let sim = sim.map_err(|e| e.to_string());
            if real.is_ok() == sim.is_ok() {
                return real;
            }
            // An evaluation that one repeats a moment before the other.
            let told = format!("{:?}: real {real:?}, simulator {sim:?}", self.release);
            assert!(began.elapsed() < Duration::from_secs(8), "health differs: {told}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks both for their health until neither is ready any more; at most so long.
    pub async fn until_unready(&self, patience: Duration) {
        let began = Instant::now();
        while self.readyz().await.is_ok() {
            assert!(began.elapsed() < patience, "{:?}: still ready after {patience:?}", self.release);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks each for its health until it is ready: the real one may be in a backoff of grpc-go, which the simulator leaves
    /// to its transport.
    pub async fn until_ready(&self, patience: Duration) {
        let began = Instant::now();
        let told = |who: &str, why: &dyn std::fmt::Debug| {
            assert!(
                began.elapsed() < patience,
                "{:?}: the {who} is not ready after {patience:?}: {why:?}",
                self.release
            );
        };
        while let Err(why) = self.real.readyz().await {
            told("real one", &why);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        while let Err(why) = self.sim.readyz().await {
            told("simulator", &why);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Each writes an object: the real one's value, then the simulator's.
    pub async fn write(&self, name: &str) -> [Stored; 2] {
        let real = self.try_write(name).await;
        real.map(|value| value.unwrap_or_else(|e| panic!("{:?}: {e}", self.release)))
    }

    /// As [`Pair::write`], for writes that may fail.
    pub async fn try_write(&self, name: &str) -> [Result<Stored, String>; 2] {
        let [a, b] = ["real", "sim"].map(|who| Stored::plan(&format!("{name}-{who}")));
        let real = self.real.write(&[(&a.key, &a.plaintext)]).await.remove(0);
        let sim = self.sim.write(&b.key, &b.plaintext).map_err(|e| e.to_string());
        [real.map(|v| a.with(v)), sim.map(|v| b.with(v))]
    }

    /// Each reads everything, whoever wrote it, and finds the plaintext; whether all of it is stale.
    pub async fn read(&self, all: &[Stored], stale: bool) {
        let values: Vec<_> = all.iter().map(|s| (s.key.as_str(), s.value.as_slice())).collect();
        for (object, stored) in self.real.read(&values).await.into_iter().zip(all) {
            let object = object.unwrap_or_else(|e| panic!("{:?}: {}: {e}", self.release, stored.key));
            assert_eq!(object.plaintext, stored.plaintext, "{}", stored.key);
            assert_eq!(object.stale, stale, "the real one on {}", stored.key);
        }
        for stored in all {
            let object = self.sim.read(&stored.key, &stored.value).await;
            let object = object.unwrap_or_else(|e| panic!("the simulator: {}: {e}", stored.key));
            assert_eq!(*object.plaintext, stored.plaintext, "{}", stored.key);
            assert_eq!(object.stale, stale, "the simulator on {}", stored.key);
        }
    }

    /// RPCs of the real ones and of the simulator, key_ids by hash, cached seeds: the same, or the test fails.
    pub async fn agree(&self) -> Rpcs {
        self.agree_on(|_| true).await
    }

    /// As [`Pair::agree`], on some of the RPCs.
    pub async fn agree_on(&self, wanted: impl Fn(&str) -> bool) -> Rpcs {
        let began = Instant::now();
        loop {
            let _ = self.readyz().await;
            let (all, hashes) = self.real_rpcs_and_hashes().await;
            let report = self.sim.report();
            let counts = report.counts.rpcs.iter().map(|c| ((c.rpc.to_string(), c.code.clone()), c.times));
            let some = |rpcs: Rpcs| rpcs.into_iter().filter(|((rpc, _), _)| wanted(rpc)).collect::<Rpcs>();
            let sim_hashes: BTreeSet<_> = report.key_ids.iter().map(|seen| hash(&seen.key_id)).collect();
            let real = (some(all.clone()), hashes, self.real_sum("dek_source_cache_size").await as usize);
            let sim = (some(counts.collect()), sim_hashes, self.sim.cached_seeds());
            if real == sim {
                return all;
            }
            let told = format!("{}\nreal      {real:?}\nsimulator {sim:?}", self.real.version);
            assert!(began.elapsed() < Duration::from_secs(10), "the simulator is not kube-apiserver: {told}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the plugin answered well: as [`Pair::agree`], for a time in which it was away. How often somebody asks in vain is
    /// a matter of moments. Status as well: when each found
    /// it again.
    pub async fn agree_on_successes(&self) -> Rpcs {
        let (mut real, hashes) = self.real_rpcs_and_hashes().await;
        let report = self.sim.report();
        let counts = report.counts.rpcs.iter().map(|c| ((c.rpc.to_string(), c.code.clone()), c.times));
        let mut sim: Rpcs = counts.collect();
        let codes = |rpcs: &Rpcs| rpcs.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(codes(&real), codes(&sim), "other gRPC codes");
        for rpcs in [&mut real, &mut sim] {
            rpcs.retain(|(rpc, code), _| code == "OK" && rpc != "Status");
        }
        assert_eq!(real, sim);
        assert_eq!(hashes, report.key_ids.iter().map(|seen| hash(&seen.key_id)).collect());
        real
    }

    async fn real_sum(&self, name: &str) -> f64 {
        let name = format!("apiserver_envelope_encryption_{name}");
        self.real.metrics().await.iter().filter(|s| s.name == name).map(|s| s.value).sum()
    }

    async fn real_rpcs_and_hashes(&self) -> (Rpcs, BTreeSet<String>) {
        let (mut rpcs, mut hashes) = self.before.clone();
        for sample in self.real.metrics().await {
            let label = |name: &str| sample.labels[name].clone();
            match sample.name.as_str() {
                "apiserver_envelope_encryption_kms_operations_latency_seconds" => {
                    let method = label("method_name");
                    let rpc = method.rsplit('/').next().unwrap().to_owned();
                    *rpcs.entry((rpc, label("grpc_status_code"))).or_default() += sample.value as u64;
                }
                "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds" => {
                    hashes.insert(label("key_id_hash"));
                }
                _ => {}
            }
        }
        (rpcs, hashes)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}

/// As kube-apiserver shows a key_id.
pub fn hash(key_id: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key_id.as_bytes())))
}

/// How often.
pub fn times(rpcs: &Rpcs, rpc: &str, code: &str) -> u64 {
    rpcs.get(&(rpc.to_owned(), code.to_owned())).copied().unwrap_or(0)
}

/// An object, and where and as what it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key: String,
    pub plaintext: Vec<u8>,
    pub value: Vec<u8>,
}

impl Stored {
    /// An object that is not stored yet.
    pub fn plan(name: &str) -> Self {
        let plaintext = format!("the plaintext of {name}, which must not be found in etcd").into_bytes();
        Self { key: format!("/registry/secrets/default/{name}"), plaintext, value: Vec::new() }
    }

    /// And now it is.
    pub fn with(self, value: Vec<u8>) -> Self {
        Self { value, ..self }
    }
}

fn write_config(path: &std::path::Path, site: &Site, timeout: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n  - kms: {{apiVersion: v2, name: {PROVIDER}, endpoint: 'unix://{}', timeout: {timeout}}}\n  \
         - identity: {{}}\n",
        site.socket().display()
    );
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn tick(sim: Arc<ApiServer>, clock: Arc<MonotonicClock>) {
    loop {
        let pause = sim.next_due().since(clock.now()).min(Duration::from_millis(100));
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        sim.tick().await;
    }
}

fn plugin(target: &Target) -> Arc<dyn KmsPlugin> {
    Arc::new(Patient { target: target.clone(), client: tokio::sync::Mutex::default() })
}

/// A client that waits for the plugin until the deadline, as grpc-go does with `WaitForReady`.
#[derive(Debug)]
struct Patient {
    target: Target,
    client: tokio::sync::Mutex<Option<KmsClient>>,
}

impl Patient {
    async fn client(&self) -> Option<KmsClient> {
        let mut client = self.client.lock().await;
        if client.is_none() {
            *client = KmsClient::connect(self.target.clone(), TIMEOUT).await.ok();
        }
        client.clone()
    }

    fn listens(&self) -> bool {
        let Target::File(path) = &self.target else { return true };
        std::os::unix::net::UnixStream::connect(path).is_ok()
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        call: impl Fn(KmsClient) -> RpcFuture<'static, T> + Send + Sync,
    ) -> Result<T, Status> {
        let calling = async {
            loop {
                if let Some(client) = self.client().await {
                    match call(client).await {
                        Err(status) if status.code() == Code::Unavailable && !self.listens() => {}
                        answer => return answer,
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(timeout, calling).await;
        waited.unwrap_or_else(|_| Err(Status::deadline_exceeded("nobody listens there")))
    }
}

impl KmsPlugin for Patient {
    fn status(&self, timeout: Duration) -> RpcFuture<'_, StatusResponse> {
        Box::pin(self.within(timeout, move |client| Box::pin(async move { KmsPlugin::status(&client, timeout).await })))
    }

    fn encrypt(&self, request: EncryptRequest, timeout: Duration) -> RpcFuture<'_, EncryptResponse> {
        Box::pin(self.within(timeout, move |client| {
            let request = request.clone();
            Box::pin(async move { KmsPlugin::encrypt(&client, request, timeout).await })
        }))
    }

    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse> {
        Box::pin(self.within(timeout, move |client| {
            let request = request.clone();
            Box::pin(async move { KmsPlugin::decrypt(&client, request, timeout).await })
        }))
    }
}
