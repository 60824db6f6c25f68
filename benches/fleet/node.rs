//! One control-plane node: the real plugin with its real supervisor, keyring and pace, and an API server that reads.
//!
//! Only what is outside is made up: the KMS ([`crate::account`](super::account)), the clock (the runtime's, paused) and the
//! randomness (from the node's number, so that a run is the same as the one before).

use super::account::{Account, AccountKek, kek_ref, version};
use kube_kms_core::annotation::{AdditionalData, Annotations, WrappedDek};
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::{DEK_LEN, Dek, DekBytes};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::health::{OnDenied, OnUnusable, Policy};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Clock, Entropy, Moment};
use kube_kms_core::uid::Uid;
use kube_kms_service::decrypt::DecryptInput;
use kube_kms_service::kek_set::{KekEntry, KekSet};
use kube_kms_service::observer::{KekOperation, KeyringEvent, Observer, Rpc};
use kube_kms_service::plugin::{Parts, Plugin};
use kube_kms_service::settings::Settings;
use kube_kms_service::state_file::{Remembered, StateFile};
use kube_kms_service::supervisor::{Reload, Supervisor};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// kube-apiserver's `timeout` of a KMS provider, by default.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an API server waits before it lists again what it could not read.
const LIST_AGAIN: Duration = Duration::from_secs(1);

/// The defaults of docs/configuration.md.
fn settings() -> Settings {
    Settings {
        epoch: 0,
        dek_max_age: Duration::from_secs(86_400),
        dek_max_uses: 1 << 24,
        // Every source is read once, so that one entry is as good as 4,096, and thousands of nodes fit into one process.
        cache_capacity: 1,
        cache_ttl: Duration::from_secs(3600),
        probe_interval: Duration::from_secs(60),
        probe_timeout: Duration::from_secs(2),
        observations: 2,
        policy: Policy {
            grace: Duration::from_secs(3600),
            on_denied: OnDenied::Coast,
            on_unusable: OnUnusable::Coast,
            stop_after: None,
            confirmations: 2,
        },
    }
}

#[derive(Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }
}

/// The same bytes for the same node in every run.
#[derive(Debug)]
struct NumberedEntropy {
    node: u64,
    drawn: AtomicU64,
}

impl Entropy for NumberedEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        for chunk in bytes.chunks_mut(32) {
            let nth = self.drawn.fetch_add(1, Ordering::Relaxed);
            let digest = Sha256::digest([self.node.to_be_bytes(), nth.to_be_bytes()].concat());
            chunk.copy_from_slice(&digest[..chunk.len()]);
        }
        Ok(())
    }
}

/// When this node published its first write state, and when its newest key_id.
#[derive(Debug, Default)]
struct Milestones {
    ready: Mutex<Option<Instant>>,
    rotated: Mutex<Option<Instant>>,
}

impl Observer for Milestones {
    fn rpc(&self, _: Rpc, _: Result<(), Reason>, _: Duration) {}
    fn rpc_in_flight(&self, _: Rpc, _: i64) {}
    fn kek_call(&self, _: &'static str, _: KekOperation, _: Result<(), Reason>, _: Duration) {}
    fn keyring(&self, _: KeyringEvent) {}
    fn published(&self, rotated: bool) {
        self.ready.lock().unwrap().get_or_insert_with(Instant::now);
        if rotated {
            *self.rotated.lock().unwrap() = Some(Instant::now());
        }
    }
}

/// See the module.
pub struct Node {
    plugin: Arc<Plugin>,
    milestones: Arc<Milestones>,
    supervisor: Option<Supervisor>,
    reloads: Option<mpsc::Sender<Reload>>,
}

impl Node {
    /// One that was there before: it remembers the key_id that it reports.
    pub fn new(number: u64, account: &Arc<Account>) -> Self {
        let context = WrapContext::new(BTreeMap::new());
        let digest = hex::encode(context.digest());
        let kek = Arc::new(AccountKek(Arc::clone(account)));
        let milestones = Arc::<Milestones>::default();
        let parts = Parts {
            keks: KekSet::new(KekEntry { kek, context }, Vec::new()),
            settings: settings(),
            clock: Arc::new(RuntimeClock(Instant::now())),
            entropy: Arc::new(NumberedEntropy { node: number, drawn: AtomicU64::new(0) }),
            observer: Arc::clone(&milestones) as Arc<dyn Observer>,
        };
        let key_id = KeyId::derive(&version(1), 0);
        let plugin = Arc::new(Plugin::new(parts, Some(key_id.clone())));
        let remembered = Remembered::default().after(&key_id, digest);
        // No folder can be made under a device: nothing is written, and the plugin goes on without, as it does on a full disk.
        let supervisor = Supervisor::new(Arc::clone(&plugin), StateFile::new(Path::new("/dev/null/none")), remembered);
        Self { plugin, milestones, supervisor: Some(supervisor), reloads: None }
    }

    /// Starts the plugin after so long.
    pub fn start(&mut self, after: Duration) {
        let supervisor = self.supervisor.take().expect("started once");
        let (keep, reloads) = mpsc::channel(1);
        self.reloads = Some(keep);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            supervisor.run(reloads).await;
        });
    }

    /// What the API server of this node does at its start: it lists, and for that decrypts these one after the other.
    pub fn read_all(&self, after: Duration, sources: &Arc<Vec<Source>>) -> tokio::task::JoinHandle<Instant> {
        let (plugin, sources) = (Arc::clone(&self.plugin), Arc::clone(sources));
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            for source in sources.iter() {
                while !source.opens(&plugin).await {
                    tokio::time::sleep(LIST_AGAIN).await;
                }
            }
            Instant::now()
        })
    }

    pub fn is_ready(&self) -> bool {
        self.plugin.published().state.label() == "ready"
    }

    /// When Encrypt worked first.
    pub fn ready(&self) -> Option<Instant> {
        *self.milestones.ready.lock().unwrap()
    }

    /// When the newest key_id was reported.
    pub fn rotated(&self) -> Option<Instant> {
        *self.milestones.rotated.lock().unwrap()
    }
}

/// A value in etcd under a wrapped DEK that no node has unwrapped yet.
pub struct Source {
    key_id: KeyId,
    annotations: Annotations,
    ciphertext: Vec<u8>,
}

impl Source {
    pub fn new(number: u8) -> Self {
        let raw = [number; DEK_LEN];
        let blob = [&[1], raw.as_slice()].concat();
        let annotations = Annotations::new(&kek_ref(), &WrappedDek::parse(blob).unwrap());
        let key_id = KeyId::derive(&version(1), 0);
        let aad = AdditionalData::bind(&key_id, annotations.all());
        let dek = Dek::new(&DekBytes::copy_from(&raw).unwrap()).unwrap();
        let nonces = NumberedEntropy { node: u64::MAX, drawn: AtomicU64::new(u64::from(number)) };
        let ciphertext = dek.seal(&nonces, &aad, b"seed").unwrap();
        Self { key_id, annotations, ciphertext }
    }

    async fn opens(&self, plugin: &Arc<Plugin>) -> bool {
        let uid = Uid::parse("fleet");
        let input = DecryptInput {
            ciphertext: &self.ciphertext,
            key_id: self.key_id.as_str().to_owned(),
            annotations: self.annotations.all().clone(),
            uid: &uid,
            patience: PATIENCE,
        };
        tokio::time::timeout(PATIENCE, plugin.decrypt(input)).await.is_ok_and(|opened| opened.is_ok())
    }
}
