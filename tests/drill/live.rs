//! `kmsctl drill run`: on API servers that are known by their metrics alone, over a real etcd; and (`whole`) on real plugins and
//! a real API server.

mod refused;
mod resumed;
mod svm;
mod whole;

use crate::drill::run::until;
use crate::support::etcd_store::EtcdStore;
use crate::support::fake_api::{FakeApi, envelope};
use crate::support::site::{KMSCTL, Running, Site};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

pub const OLD: &str = "k1-old";
pub const NEW: &str = "k1-new";
/// Objects that are there before.
pub const BEFORE: usize = 20;

/// A cluster, and a place for the drill.
pub struct Field {
    pub site: Site,
    pub api: FakeApi,
    pub etcd: Arc<EtcdStore>,
}

/// A drill that has ended.
pub struct Ended {
    pub status: i32,
    pub report: Value,
    pub out: String,
    pub log: String,
}

impl Field {
    /// Two API servers on the old key, and objects under it; `Err` when there is no etcd here.
    pub async fn new() -> Result<Self, String> {
        let site = Site::local();
        let dir = site.dir().join("store");
        std::fs::create_dir(&dir).unwrap();
        let etcd = Arc::new(EtcdStore::start(&dir, &[]).await?);
        etcd.put((0..BEFORE).map(|n| (format!("/registry/secrets/default/s{n}").into_bytes(), envelope(OLD)))).await;
        let api = FakeApi::start(Arc::clone(&etcd), 2, OLD).await;
        Ok(Self { site, api, etcd })
    }

    pub fn state(&self) -> PathBuf {
        self.site.dir().join("drill.json")
    }

    /// Starts a drill with these arguments besides those that every one has.
    pub fn start(&self, more: &[&str]) -> Running {
        let kubeconfig = self.site.dir().join("kubeconfig");
        std::fs::write(&kubeconfig, self.api.kubeconfig()).unwrap();
        let state = self.state();
        let mut all = vec!["drill", "run", "--kubeconfig", kubeconfig.to_str().unwrap(), "--poll", "100ms"];
        all.extend(["--state", state.to_str().unwrap(), "--endpoints", self.etcd.url(), "--output", "json"]);
        for url in &self.api.urls {
            all.extend(["--apiserver", url]);
        }
        all.extend(more);
        self.site.run(&mut self.site.process(KMSCTL, &all))
    }

    /// Runs a drill to its end; the rotation happens when it waits for it.
    pub async fn drill(&self, more: &[&str]) -> Ended {
        let running = self.start(more);
        self.rotate_when_asked(&running, &[0, 1]).await;
        end(running).await
    }

    /// These API servers move when the drill asks for the rotation.
    pub async fn rotate_when_asked(&self, running: &Running, moving: &[usize]) {
        running.until_log("rotate the KEK now").await;
        moving.iter().for_each(|at| self.api.move_to(*at, NEW));
    }

    /// Paths of what is there of the drill.
    pub fn made(&self) -> Vec<String> {
        self.api.cluster().objects.keys().cloned().collect()
    }
}

/// Waits for its end.
pub async fn end(mut running: Running) -> Ended {
    let status = running.wait().await;
    let (out, log) = (running.out(), running.log());
    Ended { status: status.code().unwrap(), report: serde_json::from_str(&out).unwrap_or(Value::Null), out, log }
}

/// Waits until the state file says so.
pub async fn until_state(field: &Field, what: &str, holds: impl Fn(&Value) -> bool) {
    let path = field.state();
    tokio::task::block_in_place(|| {
        until(what, || {
            let state = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            state.is_some_and(|state| holds(&state))
        });
    });
}

impl Ended {
    pub fn claim(&self, number: &str) -> (&str, &str) {
        let steps = self.report["steps"].as_array().unwrap_or_else(|| panic!("{}\n{}", self.out, self.log));
        let mut all = steps.iter().flat_map(|step| step["claims"].as_array().unwrap());
        let claim = all.find(|claim| claim["number"] == number).unwrap();
        (claim["verdict"].as_str().unwrap(), claim["detail"].as_str().unwrap())
    }

    /// Exactly these claims were held.
    pub fn held(&self, numbers: &[&str]) {
        let steps = self.report["steps"].as_array().unwrap_or_else(|| panic!("{}\n{}", self.out, self.log));
        let all = steps.iter().flat_map(|step| step["claims"].as_array().unwrap());
        let held: Vec<&str> =
            all.filter(|claim| claim["verdict"] == "held").map(|claim| claim["number"].as_str().unwrap()).collect();
        assert_eq!(held, numbers, "{}\n{}", self.out, self.log);
    }
}
