//! A world in one process, on tokio's paused time: a KMS that does as it is told, nodes (plugin and supervisor, as the daemon
//! wires them), and API server simulators in front of them. A day takes seconds.
//!
//! Guarantees: everything has the same clock; all randomness comes from one seed, so a failure can be played again. Refuses
//! to know sockets and gRPC: [`Seat`] answers as the server would, from the same functions.

use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kms_v2_client::plugin::{KmsPlugin, RpcFuture};
use kms_v2_judge::apiserver::{ApiServer, Settings as ServerSettings};
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::health::{OnDenied, OnUnusable, Policy};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Clock, Entropy, Kek, KekCall, KekFuture, Moment, Unwrapped, Wrapped};
use kube_kms_core::uid::Uid;
use kube_kms_grpc::server::API_VERSION;
use kube_kms_grpc::status::status as grpc_status;
use kube_kms_service::decrypt::DecryptInput;
use kube_kms_service::kek_set::{KekEntry, KekSet};
use kube_kms_service::observer::Unobserved;
use kube_kms_service::plugin::{Parts, Plugin};
use kube_kms_service::settings::Settings;
use kube_kms_service::snapshot::Snapshot;
use kube_kms_service::state_file::StateFile;
use kube_kms_service::supervisor::Supervisor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

pub const SECOND: Duration = Duration::from_secs(1);

/// The settings that docs/configuration.md gives as defaults.
pub fn defaults() -> Settings {
    Settings {
        epoch: 0,
        dek_max_age: Duration::from_secs(86_400),
        dek_max_uses: 1 << 24,
        cache_capacity: 4096,
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

/// Small and seeded (splitmix64): for games of chance that can be played again.
#[derive(Debug)]
pub struct Dice(Mutex<u64>);

impl Dice {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(seed)))
    }

    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 (inclusive) to this (exclusive).
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl Entropy for Dice {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        for chunk in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            let length = chunk.len();
            chunk.copy_from_slice(&next[..length]);
        }
        Ok(())
    }
}

/// The runtime's clock.
#[derive(Debug)]
pub struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }
}

/// How a KMS, or the way to it, fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Connections are refused.
    Away,
    /// It accepts and never answers.
    BlackHole,
    /// It answers that, at once.
    Says(Reason),
}

/// The KMS, shared by all nodes: one KEK with a current version. Old versions unwrap for ever.
#[derive(Debug)]
pub struct Kms {
    mind: Mutex<Mind>,
    dice: Arc<Dice>,
}

#[derive(Debug)]
struct Mind {
    versions: Vec<String>,
    /// While on: each wrap is under the newest version or the one before it, as a coin falls.
    undecided: bool,
    trouble: Option<Trouble>,
    wraps: usize,
    unwraps: usize,
}

impl Kms {
    pub fn rotate(&self) {
        let mut mind = self.mind.lock().unwrap();
        let next = format!("v{}", mind.versions.len());
        mind.versions.push(next);
    }

    pub fn undecided(&self, on: bool) {
        self.mind.lock().unwrap().undecided = on;
    }

    pub fn trouble(&self, trouble: Option<Trouble>) {
        self.mind.lock().unwrap().trouble = trouble;
    }

    /// Wraps and unwraps that arrived.
    pub fn calls(&self) -> (usize, usize) {
        let mind = self.mind.lock().unwrap();
        (mind.wraps, mind.unwraps)
    }

    /// The key_ids of all versions, oldest first.
    pub fn key_ids(&self) -> Vec<String> {
        let versions = self.mind.lock().unwrap().versions.clone();
        versions.into_iter().map(|v| KeyId::derive(&kek_version(v), 0).as_str().to_owned()).collect()
    }
}

fn kek_version(version: String) -> KekVersion {
    KekVersion { kek: KekRef::new(KekKind::LOCAL, "world").unwrap(), version }
}

/// One node's way to the KMS.
#[derive(Debug)]
pub struct Line {
    kms: Arc<Kms>,
    cut: Mutex<Option<Trouble>>,
}

impl Line {
    pub fn cut(&self, trouble: Option<Trouble>) {
        *self.cut.lock().unwrap() = trouble;
    }

    async fn obstacle(&self, call: &KekCall) -> Result<(), Fault> {
        let there = self.kms.mind.lock().unwrap().trouble;
        let cut = *self.cut.lock().unwrap();
        match cut.or(there) {
            None => Ok(()),
            Some(Trouble::Away) => Err(Fault::caused_by(Reason::KmsUnreachable, "refused")),
            Some(Trouble::Says(reason)) => Err(Fault::caused_by(reason, "scripted")),
            Some(Trouble::BlackHole) => {
                tokio::time::sleep(call.timeout).await;
                Err(Fault::caused_by(Reason::Deadline, "no answer"))
            }
        }
    }
}

impl Kek for Line {
    fn kind(&self) -> KekKind {
        KekKind::LOCAL
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        kek.identity() == "world"
    }

    fn wrap_dek<'a>(&'a self, dek: &'a DekBytes, _: &'a WrapContext, call: &'a KekCall) -> KekFuture<'a, Wrapped> {
        Box::pin(async move {
            self.kms.mind.lock().unwrap().wraps += 1;
            self.obstacle(call).await?;
            let version = {
                let mind = self.kms.mind.lock().unwrap();
                let back = usize::from(mind.undecided && self.kms.dice.below(2) == 0);
                mind.versions[mind.versions.len() - 1 - back].clone()
            };
            let blob = [version.as_bytes(), b"\0", dek.expose_bytes()].concat();
            Ok(Wrapped { dek: WrappedDek::parse(blob)?, kek: kek_version(version).kek })
        })
    }

    fn unwrap_dek<'a>(
        &'a self,
        _: &'a KekRef,
        dek: &'a WrappedDek,
        _: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped> {
        Box::pin(async move {
            self.kms.mind.lock().unwrap().unwraps += 1;
            self.obstacle(call).await?;
            let blob = dek.as_bytes();
            let nul = blob.iter().position(|b| *b == 0).unwrap();
            let version = String::from_utf8(blob[..nul].to_vec()).unwrap();
            Ok(Unwrapped { dek: DekBytes::copy_from(&blob[nul + 1..])?, version: kek_version(version) })
        })
    }
}

/// Everything that is shared.
pub struct World {
    pub clock: Arc<RuntimeClock>,
    pub dice: Arc<Dice>,
    pub kms: Arc<Kms>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let mind = Mind { versions: vec!["v0".to_owned()], undecided: false, trouble: None, wraps: 0, unwraps: 0 };
        let kms = Arc::new(Kms { mind: Mutex::new(mind), dice: Arc::clone(&dice) });
        Self { clock: Arc::new(RuntimeClock(Instant::now())), dice, kms }
    }

    /// A node that has just been started, with a state directory of its own.
    pub fn node(&self, settings: Settings) -> Node {
        let line = Arc::new(Line { kms: Arc::clone(&self.kms), cut: Mutex::default() });
        let node = Node {
            line,
            seat: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            settings,
            clock: Arc::clone(&self.clock),
            dice: Arc::clone(&self.dice),
            running: Mutex::default(),
        };
        node.start();
        node
    }

    /// An API server in front of that node.
    pub async fn server(&self, node: &Node) -> ApiServer {
        let plugin: Arc<dyn KmsPlugin> = Arc::clone(&node.seat) as _;
        let (clock, dice) = (Arc::clone(&self.clock), Arc::clone(&self.dice));
        ApiServer::start(ServerSettings::new("world"), plugin, clock, dice).await
    }

    pub fn seconds(&self) -> u64 {
        self.clock.now().0 / 1_000_000_000
    }

    /// Plays the loops of these API servers and a kubelet's readiness probe every second for so long; `each_second` is told
    /// how many seconds have passed.
    pub async fn play(&self, servers: &[&ApiServer], length: Duration, mut each_second: impl FnMut(u64)) {
        let began = Instant::now();
        for second in 0..length.as_secs() {
            each_second(second);
            let end = began + SECOND * u32::try_from(second + 1).unwrap();
            while Instant::now() < end {
                let next = servers.iter().map(|server| server.next_due()).min().unwrap();
                let wait = next.since(self.clock.now()).max(Duration::from_nanos(1));
                tokio::time::sleep_until(end.min(Instant::now() + wait)).await;
                for server in servers {
                    server.tick().await;
                }
            }
            for server in servers {
                let _ = server.readyz().await;
            }
        }
    }
}

/// One control-plane node: the plugin as the daemon wires it.
pub struct Node {
    pub line: Arc<Line>,
    pub seat: Arc<Seat>,
    dir: TempDir,
    settings: Settings,
    clock: Arc<RuntimeClock>,
    dice: Arc<Dice>,
    running: Mutex<Option<(JoinHandle<()>, mpsc::Sender<kube_kms_service::supervisor::Reload>)>>,
}

impl Node {
    fn start(&self) {
        let state_file = StateFile::new(self.dir.path());
        let remembered = state_file.load();
        let kek = KekEntry { kek: Arc::clone(&self.line) as _, context: WrapContext::new(BTreeMap::new()) };
        let parts = Parts {
            keks: KekSet::new(kek, Vec::new()),
            settings: self.settings.clone(),
            clock: Arc::clone(&self.clock) as _,
            entropy: Arc::clone(&self.dice) as _,
            observer: Arc::new(Unobserved),
        };
        let plugin = Arc::new(Plugin::new(parts, remembered.key_id.clone()));
        let (reloads, orders) = mpsc::channel(1);
        let supervisor = Supervisor::new(Arc::clone(&plugin), state_file, remembered);
        *self.running.lock().unwrap() = Some((tokio::spawn(supervisor.run(orders)), reloads));
        *self.seat.0.lock().unwrap() = Some(plugin);
    }

    /// The process ends; calls are refused.
    pub fn kill(&self) {
        self.seat.0.lock().unwrap().take();
        if let Some((supervision, _)) = self.running.lock().unwrap().take() {
            supervision.abort();
        }
    }

    /// A new process on the same state directory.
    pub fn restart(&self) {
        self.kill();
        self.start();
    }

    pub fn snapshot(&self) -> Snapshot {
        self.seat.plugin().unwrap().snapshot()
    }

    /// Waits until it is in this state, and says how long that took.
    pub async fn until(&self, state: &str) -> Duration {
        let began = Instant::now();
        while self.snapshot().state != state {
            assert!(began.elapsed() < Duration::from_secs(600), "never {state}: {:?}", self.snapshot());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        began.elapsed()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The socket of a node: the process behind it may change.
#[derive(Debug, Default)]
pub struct Seat(Mutex<Option<Arc<Plugin>>>);

impl Seat {
    fn plugin(&self) -> Result<Arc<Plugin>, Status> {
        self.0.lock().unwrap().clone().ok_or_else(|| Status::unavailable("nobody listens"))
    }
}

impl KmsPlugin for Seat {
    fn status(&self, _: Duration) -> RpcFuture<'_, StatusResponse> {
        Box::pin(async move {
            let answer = self.plugin()?.status().map_err(|fault| grpc_status(&fault, &Uid::parse("")))?;
            let key_id = answer.key_id.as_str().to_owned();
            Ok(StatusResponse { version: API_VERSION.to_owned(), healthz: answer.healthz, key_id })
        })
    }

    fn encrypt(&self, request: EncryptRequest, _: Duration) -> RpcFuture<'_, EncryptResponse> {
        Box::pin(async move {
            let uid = Uid::parse(&request.uid);
            let sealed = self.plugin()?.encrypt(&request.plaintext).map_err(|fault| grpc_status(&fault, &uid))?;
            Ok(EncryptResponse {
                ciphertext: sealed.ciphertext,
                key_id: sealed.write.key_id().as_str().to_owned(),
                annotations: sealed.write.annotations().all().clone(),
            })
        })
    }

    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse> {
        Box::pin(async move {
            let DecryptRequest { ciphertext, uid, key_id, annotations } = request;
            let (plugin, uid) = (self.plugin()?, Uid::parse(&uid));
            let patience = timeout.saturating_sub(Duration::from_millis(250));
            let input = DecryptInput { ciphertext: &ciphertext, key_id, annotations, uid: &uid, patience };
            let mut opened = plugin.decrypt(input).await.map_err(|fault| grpc_status(&fault, &uid))?;
            Ok(DecryptResponse { plaintext: std::mem::take(&mut *opened.plaintext) })
        })
    }
}
