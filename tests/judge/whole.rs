//! A whole API server on a real etcd: objects through its HTTPS API, what etcd has of them, and the simulator beside it.
//!
//! Guarantees: everything is done to both, and what etcd holds is read by the simulator as well. [`Whole::agree`] fails the
//! test when they had another number of seeds wrapped or saw other key_ids, [`Whole::readyz`] when their health differs.

mod away;
mod day;
mod late;
mod reload;
mod rotation;

pub use away::dead_for_three_minutes;

use super::layout::{self, Layout, ordinary, providers};
use super::pair::Stored;
use super::shadow::{Rpcs, Shadow, of_real, of_simulator, times};
use crate::support::apiserver_whole::{ETCD_PREFIX, Machine, WholeApiServer};
use crate::support::site::{PATIENCE, Site};
use crate::support::skipped;
use kms_v2_api::stored;
use kms_v2_judge::apiserver::{ApiServer, FindingCode, Rewrite};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const WIDGETS: &str = "/apis/example.com/v1/widgets";
const SECRET: &str = "a-secret-that-must-not-be-found-in-etcd";

/// See the module.
pub struct Whole {
    pub api: WholeApiServer,
    pub machine: Arc<Machine>,
    pub sim: Arc<ApiServer>,
    config: PathBuf,
    layout: Layout,
    /// What the simulator wrote: its etcd.
    kept: Mutex<Vec<Stored>>,
    /// Seeds that the real processes before this one had wrapped.
    before: (Rpcs, BTreeSet<String>),
    _shadow: Shadow,
}

/// etcd, or `None` when the test has to be skipped.
fn machine(test: &str, site: &Site) -> Option<Arc<Machine>> {
    Machine::start(site).map_err(|reason| skipped(test, &reason)).ok()
}

impl Whole {
    /// Both start, on an etcd of their own; the plugin of that site writes. `None` when the test has to be skipped.
    pub async fn start(test: &str, site: &Site) -> Option<Self> {
        Some(Self::on(&machine(test, site)?, site, ordinary(site)).await)
    }

    /// Both start with these providers. The site lends its directory.
    pub async fn on(machine: &Arc<Machine>, site: &Site, layout: Layout) -> Self {
        let config = site.dir().join(format!("encryption-{}.yaml", uuid::Uuid::new_v4().simple()));
        layout::write(&layout, "widgets.example.com", &config);
        let real = {
            let (machine, config) = (Arc::clone(machine), config.clone());
            tokio::task::spawn_blocking(move || WholeApiServer::start(&machine, &config))
        };
        let (api, shadow) = tokio::join!(real, Shadow::start(&layout));
        let (api, sim, machine) = (api.unwrap(), Arc::clone(&shadow.sim), Arc::clone(machine));
        let whole = Self {
            api,
            machine,
            sim,
            config,
            layout,
            kept: Mutex::default(),
            before: Default::default(),
            _shadow: shadow,
        };
        whole.define_widgets();
        whole
    }

    fn define_widgets(&self) {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
        let names = json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"});
        let spec = json!({"group": "example.com", "scope": "Cluster", "names": names, "versions": [version]});
        let kind = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "widgets.example.com"}, "spec": spec,
        });
        let (status, body) =
            self.api.try_api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", Some(&kind));
        // Conflict: another API server on this etcd was first.
        assert!(status == 201 || status == 409, "{status} {body}");
        self.until_served();
    }

    /// Waits until the collection is served, which needs a plugin as soon as there is something in it.
    pub fn until_served(&self) {
        self.api.until("widgets are served", |w| w.try_api("GET", WIDGETS, None).0 == 200);
    }

    /// Both are new processes.
    pub async fn restart(&mut self) {
        self.before = self.so_far();
        tokio::task::block_in_place(|| self.api.restart());
        self.sim.restart_with(providers(&self.layout)).await;
    }

    /// Both are given a changed EncryptionConfiguration, and use it when this returns.
    pub async fn reload(&mut self, layout: Layout) {
        let before = self.reloads();
        layout::write(&layout, "widgets.example.com", &self.config);
        self.sim.reload(providers(&layout)).await.unwrap();
        self.layout = layout;
        self.api.until("the configuration is reloaded", |_| self.reloads() > before);
    }

    fn reloads(&self) -> u64 {
        self.api.metrics().iter().filter(|s| s.is_a_good_reload()).map(|s| s.value as u64).sum()
    }

    /// Each writes an object; under which provider and key_id, or in the clear.
    pub fn write(&self, name: &str) -> [Option<(String, String)>; 2] {
        let written = self.try_write(name);
        written.map(|written| written.unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.api.log())))
    }

    /// As [`Whole::write`], for writes that may fail.
    pub fn try_write(&self, name: &str) -> [Result<Option<(String, String)>, String>; 2] {
        let (status, body) = self.api.try_api("POST", WIDGETS, Some(&widget(name)));
        let real = if status == 201 { Ok(under(&self.machine.stored(&key(name)))) } else { Err(body) };
        let plan = Stored { key: key(name), plaintext: widget(name).to_string().into_bytes(), value: Vec::new() };
        let sim = self.sim.write(&plan.key, &plan.plaintext).map_err(|e| e.to_string());
        let sim = sim.map(|value| {
            let under = under(&value);
            self.kept.lock().unwrap().push(plan.with(value));
            under
        });
        [real, sim]
    }

    /// Everything is read: by the API server one by one and as a list, by the simulator from etcd and what it wrote itself.
    pub async fn read_all(&self) {
        let listed = self.api.api("GET", WIDGETS, None);
        let listed = listed["items"].as_array().unwrap();
        let stored = self.machine.all_stored(&key(""));
        assert_eq!(listed.len(), stored.len(), "the list is complete");
        assert!(listed.iter().all(|item| item["spec"]["secret"] == SECRET), "{listed:?}");
        let kept = self.kept.lock().unwrap().clone();
        for s in &kept {
            let object =
                self.sim.read(&s.key, &s.value).await.unwrap_or_else(|e| panic!("the simulator: {}: {e}", s.key));
            assert_eq!(*object.plaintext, s.plaintext);
        }
        for (key, value) in stored {
            let name = key.rsplit('/').next().unwrap();
            let object = self.api.api("GET", &format!("{WIDGETS}/{name}"), None);
            assert_eq!(object["spec"]["secret"], SECRET, "{name}");
            let object = self.sim.read(&key, &value).await.unwrap_or_else(|e| panic!("the simulator: {key}: {e}"));
            let object: Value = serde_json::from_slice(&object.plaintext).unwrap();
            assert_eq!(
                (object["metadata"]["name"].as_str(), object["spec"]["secret"].as_str()),
                (Some(name), Some(SECRET))
            );
        }
    }

    /// A storage migration: every object is updated without a change.
    pub async fn rewrite_all(&self) {
        for (key, _) in self.machine.all_stored(&key("")) {
            let path = format!("{WIDGETS}/{}", key.rsplit('/').next().unwrap());
            let object = self.api.api("GET", &path, None);
            self.api.api("PUT", &path, Some(&object));
        }
        let mut kept = self.kept.lock().unwrap().clone();
        for s in &mut kept {
            if let Rewrite::Value(value) = self.sim.rewrite(&s.key, &s.value).await.unwrap() {
                s.value = value;
            }
        }
        *self.kept.lock().unwrap() = kept;
    }

    /// Under which providers and key_ids etcd has objects, and the simulator.
    pub fn in_use(&self) -> [BTreeSet<Option<(String, String)>>; 2] {
        let stored = self.machine.all_stored(&key(""));
        let kept = self.kept.lock().unwrap();
        [stored.iter().map(|(_, value)| under(value)).collect(), kept.iter().map(|s| under(&s.value)).collect()]
    }

    /// The check `kms-providers` of both, which is the same.
    pub async fn readyz(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let (real, sim) = (self.api.readyz(), self.sim.readyz().await.map_err(|e| e.to_string()));
            if real.is_ok() == sim.is_ok() {
                return real;
            }
            // An evaluation that one repeats a moment before the other.
            assert!(began.elapsed() < Duration::from_secs(8), "health differs: real {real:?}, simulator {sim:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks each for its health until it is ready: the real one may be in a backoff of grpc-go.
    pub async fn until_ready(&self, patience: Duration) {
        let began = Instant::now();
        while let Err(why) = self.api.readyz() {
            assert!(began.elapsed() < patience, "not ready after {patience:?}: {why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        while let Err(why) = self.sim.readyz().await {
            assert!(began.elapsed() < patience + PATIENCE, "the simulator is not ready: {why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Seeds wrapped, key_ids seen and codes of failed RPCs: the same, or the test fails. What the real one did.
    pub fn agree(&self) -> Rpcs {
        let (real, hashes) = self.so_far();
        let (sim, sim_hashes) = of_simulator(&self.sim.report());
        assert_eq!(hashes, sim_hashes, "other key_ids");
        assert_eq!(times(&real, "Encrypt", "OK"), times(&sim, "Encrypt", "OK"), "{real:?} {sim:?}");
        let codes = |rpcs: &Rpcs| rpcs.keys().filter(|(rpc, _)| rpc != "Decrypt").cloned().collect::<BTreeSet<_>>();
        assert_eq!(codes(&real), codes(&sim), "other gRPC codes");
        // A Status that nobody answers is slow as well: that is the time in which the plugin was away.
        let findings: Vec<_> =
            self.sim.report().findings.into_iter().filter(|f| f.code != FindingCode::StatusSlow).collect();
        assert!(findings.is_empty(), "{findings:?}");
        real
    }

    fn so_far(&self) -> (Rpcs, BTreeSet<String>) {
        let (mut rpcs, mut hashes) = self.before.clone();
        let (now, now_hashes) = of_real(&self.api.metrics());
        for (rpc, times) in now {
            *rpcs.entry(rpc).or_default() += times;
        }
        hashes.extend(now_hashes);
        (rpcs, hashes)
    }
}

fn widget(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"secret": SECRET}})
}

fn key(name: &str) -> String {
    format!("{ETCD_PREFIX}/example.com/widgets/{name}")
}

/// The provider and key_id of a value, which then has no plaintext; `None` for plaintext.
fn under(value: &[u8]) -> Option<(String, String)> {
    let (provider, object) = stored::decode(value).ok()?;
    assert!(!value.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "plaintext in etcd");
    Some((provider.to_owned(), object.key_id))
}
