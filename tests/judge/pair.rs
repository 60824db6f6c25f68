//! Two API servers on one plugin that live through the same: k8s.io/apiserver's own code, and our simulator of it.
//!
//! Guarantees: every step is done to both; [`Pair::agree`] fails the test when they made other RPCs, saw other key_ids or
//! keep another number of seeds.

use super::layout::{self, Layout, names, ordinary, providers};
use super::shadow::{Rpcs, Shadow, of_real, of_simulator};
use crate::support::apiserver_go::{RealApiServer, Release};
use crate::support::site::{PATIENCE, Site};
use kms_v2_judge::apiserver::{ApiServer, Rewrite};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module.
pub struct Pair {
    pub release: Release,
    pub real: RealApiServer,
    pub sim: Arc<ApiServer>,
    config: PathBuf,
    layout: Layout,
    /// What the real API servers before this one did.
    before: (Rpcs, BTreeSet<String>),
    _shadow: Shadow,
}

impl Pair {
    /// Both start, with the same configuration: the plugin of that site writes.
    pub async fn start(release: Release, site: &Site) -> Self {
        Self::start_with(release, site, ordinary(site)).await
    }

    /// Both start with these providers. The site lends its directory.
    pub async fn start_with(release: Release, site: &Site, layout: Layout) -> Self {
        let config = site.dir().join(format!("encryption-{}.yaml", uuid::Uuid::new_v4().simple()));
        layout::write(&layout, "secrets", &config);
        let (real, shadow) = tokio::join!(RealApiServer::start(release, &config), Shadow::start(&layout));
        let sim = Arc::clone(&shadow.sim);
        Self { release, real, sim, config, layout, before: Default::default(), _shadow: shadow }
    }

    /// Both are new processes.
    pub async fn restart(&mut self) {
        self.before = self.real_rpcs_and_hashes().await;
        let (real, ()) = tokio::join!(
            RealApiServer::start(self.release, &self.config),
            self.sim.restart_with(providers(&self.layout))
        );
        self.real = real;
    }

    /// Both are given a changed EncryptionConfiguration, and use it when this returns.
    pub async fn reload(&mut self, layout: Layout) {
        let before = self.reloads().await;
        layout::write(&layout, "secrets", &self.config);
        self.sim.reload(providers(&layout)).await.unwrap();
        self.layout = layout;
        let began = Instant::now();
        while self.reloads().await == before {
            assert!(began.elapsed() < PATIENCE, "{:?} did not reload\n{}", self.release, self.real.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn reloads(&self) -> u64 {
        self.real.metrics().await.iter().filter(|s| s.is_a_good_reload()).map(|s| s.value as u64).sum()
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

    /// A storage migration: read, write, and nothing is left behind. Each of the two rewrites half of it.
    pub async fn rewrite(&self, all: &[Stored]) -> Vec<Stored> {
        let mut rewritten = Vec::new();
        for (n, s) in all.iter().enumerate() {
            let value = if n % 4 < 2 {
                let object = self.real.read(&[(&s.key, &s.value)]).await.remove(0).unwrap();
                self.real.write(&[(&s.key, &object.plaintext)]).await.remove(0).unwrap()
            } else {
                match self.sim.rewrite(&s.key, &s.value).await.unwrap() {
                    Rewrite::Value(value) => value,
                    Rewrite::Unneeded => s.value.clone(),
                }
            };
            rewritten.push(Stored { value, ..s.clone() });
        }
        rewritten
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
            let (counts, sim_hashes) = of_simulator(&self.sim.report());
            let some = |rpcs: Rpcs| rpcs.into_iter().filter(|((rpc, _), _)| wanted(rpc)).collect::<Rpcs>();
            let real = (some(all.clone()), hashes, self.real_cached_seeds().await);
            let sim = (some(counts), sim_hashes, self.sim.cached_seeds());
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
        let (mut sim, sim_hashes) = of_simulator(&self.sim.report());
        let codes = |rpcs: &Rpcs| rpcs.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(codes(&real), codes(&sim), "other gRPC codes");
        for rpcs in [&mut real, &mut sim] {
            rpcs.retain(|(rpc, code), _| code == "OK" && rpc != "Status");
        }
        assert_eq!(real, sim);
        assert_eq!(hashes, sim_hashes);
        real
    }

    /// Of the providers that are there now: the gauge of one that left the configuration stays as it was.
    async fn real_cached_seeds(&self) -> usize {
        let here = names(&self.layout);
        let of_here = |name: &String| here.contains(&name.as_str());
        let samples = self.real.metrics().await;
        let sizes = samples.iter().filter(|s| s.name == "apiserver_envelope_encryption_dek_source_cache_size");
        sizes.filter(|s| s.labels.get("provider_name").is_some_and(of_here)).map(|s| s.value as usize).sum()
    }

    async fn real_rpcs_and_hashes(&self) -> (Rpcs, BTreeSet<String>) {
        let (mut rpcs, mut hashes) = self.before.clone();
        let (now, now_hashes) = of_real(&self.real.metrics().await);
        for (rpc, times) in now {
            *rpcs.entry(rpc).or_default() += times;
        }
        hashes.extend(now_hashes);
        (rpcs, hashes)
    }
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
