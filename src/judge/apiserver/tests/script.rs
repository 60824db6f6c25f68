//! A plugin that does as it is told, and a simulator on it.

use crate::apiserver::{ApiServer, FindingCode, HandClock, Provider, Settings};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kms_v2_client::plugin::{KmsPlugin, Rpc, RpcFuture};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::OsEntropy;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tonic::{Code, Status};

pub(super) const KEY: &str = "/registry/secrets/default/s";

/// What it answers next.
#[derive(Debug)]
pub(super) struct Face {
    pub(super) version: String,
    pub(super) healthz: String,
    pub(super) key_id: String,
    pub(super) status_fails: Option<Code>,
    /// The key_id of Encrypt, when it is not that of Status.
    pub(super) encrypt_key_id: Option<String>,
    pub(super) encrypt_fails: Option<Code>,
    /// Replaces parts of what Encrypt returns.
    pub(super) ciphertext: Option<Vec<u8>>,
    pub(super) annotations: BTreeMap<String, Vec<u8>>,
    pub(super) decrypt_fails: Option<Code>,
    /// Replaces what Decrypt returns.
    pub(super) plaintext: Option<Vec<u8>>,
    /// How much time an RPC takes.
    pub(super) takes: HashMap<Rpc, Duration>,
    pub(super) calls: HashMap<Rpc, u32>,
    pub(super) seeds: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Script {
    face: Mutex<Face>,
    clock: Arc<HandClock>,
}

impl Script {
    pub(super) fn new(clock: &Arc<HandClock>) -> Arc<Self> {
        let face = Face {
            version: "v2".to_owned(),
            healthz: "ok".to_owned(),
            key_id: "A".to_owned(),
            status_fails: None,
            encrypt_key_id: None,
            encrypt_fails: None,
            ciphertext: None,
            annotations: BTreeMap::new(),
            decrypt_fails: None,
            plaintext: None,
            takes: HashMap::new(),
            calls: HashMap::new(),
            seeds: Vec::new(),
        };
        Arc::new(Self { face: Mutex::new(face), clock: Arc::clone(clock) })
    }

    pub(super) fn face(&self) -> MutexGuard<'_, Face> {
        self.face.lock().unwrap()
    }

    pub(super) fn calls(&self, rpc: Rpc) -> u32 {
        self.face().calls.get(&rpc).copied().unwrap_or(0)
    }

    fn called(&self, rpc: Rpc, timeout: Duration, fails: impl Fn(&Face) -> Option<Code>) -> Result<(), Status> {
        let mut face = self.face();
        *face.calls.entry(rpc).or_default() += 1;
        let takes = face.takes.get(&rpc).copied().unwrap_or_default();
        self.clock.advance(takes.min(timeout));
        if takes > timeout {
            return Err(Status::deadline_exceeded("late"));
        }
        fails(&face).map_or(Ok(()), |code| Err(Status::new(code, "as told")))
    }
}

impl KmsPlugin for Script {
    fn status(&self, timeout: Duration) -> RpcFuture<'_, StatusResponse> {
        Box::pin(async move {
            self.called(Rpc::Status, timeout, |f| f.status_fails)?;
            let f = self.face();
            Ok(StatusResponse { version: f.version.clone(), healthz: f.healthz.clone(), key_id: f.key_id.clone() })
        })
    }

    fn encrypt(&self, request: EncryptRequest, timeout: Duration) -> RpcFuture<'_, EncryptResponse> {
        Box::pin(async move {
            self.called(Rpc::Encrypt, timeout, |f| f.encrypt_fails)?;
            assert_eq!(request.uid.len(), 36, "{}", request.uid);
            let mut f = self.face();
            f.seeds.push(request.plaintext.clone());
            let number = u8::try_from(f.seeds.len() - 1).unwrap();
            Ok(EncryptResponse {
                ciphertext: f.ciphertext.clone().unwrap_or_else(|| vec![number]),
                key_id: f.encrypt_key_id.clone().unwrap_or_else(|| f.key_id.clone()),
                annotations: f.annotations.clone(),
            })
        })
    }

    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse> {
        Box::pin(async move {
            // Others get their turn, as they do while a call is on the wire.
            tokio::task::yield_now().await;
            self.called(Rpc::Decrypt, timeout, |f| f.decrypt_fails)?;
            let f = self.face();
            let plaintext = f.plaintext.clone().or_else(|| f.seeds.get(usize::from(request.ciphertext[0])).cloned());
            plaintext.map(|plaintext| DecryptResponse { plaintext }).ok_or_else(|| Status::data_loss("not mine"))
        })
    }
}

/// That plugin under this name in the configuration.
pub(super) fn kms(name: &str, plugin: &Arc<Script>) -> Provider {
    let plugin: Arc<dyn KmsPlugin> = plugin.clone();
    Provider::Kms { settings: Settings::new(name), plugin }
}

/// A simulator, its plugin and its clock.
pub(super) struct Stage {
    pub(super) server: ApiServer,
    pub(super) plugin: Arc<Script>,
    pub(super) clock: Arc<HandClock>,
}

impl Stage {
    pub(super) async fn new() -> Self {
        Self::prepared(|_| {}).await
    }

    /// With a plugin that is like this already at load.
    pub(super) async fn prepared(prepare: impl FnOnce(&mut Face)) -> Self {
        let clock = Arc::new(HandClock::default());
        let plugin = Script::new(&clock);
        prepare(&mut plugin.face());
        let clock_port: Arc<dyn Clock> = clock.clone();
        let server = ApiServer::start(Settings::new("demo"), plugin.clone(), clock_port, Arc::new(OsEntropy)).await;
        Self { server, plugin, clock }
    }

    /// Plays its own loops, and a readiness probe every second when wanted, for so many seconds.
    pub(super) async fn play(&self, seconds: u64, readyz: bool) {
        let end = Moment(self.clock.now().0 + seconds * 1_000_000_000);
        loop {
            let mut next = self.server.next_due();
            if readyz {
                next = next.min(Moment(self.clock.now().0 + 1_000_000_000));
            }
            if next > end {
                break;
            }
            self.clock.set(next);
            self.server.tick().await;
            if readyz {
                let _ = self.server.readyz().await;
            }
        }
        self.clock.set(end);
    }

    /// Seconds from now on to the end of the write state; negative when it is over.
    pub(super) fn seconds_left(&self) -> i64 {
        let at = |m: Moment| i64::try_from(m.0 / 1_000_000_000).unwrap();
        at(self.server.write_expires().expect("a write state")) - at(self.clock.now())
    }

    pub(super) fn codes(&self) -> Vec<FindingCode> {
        self.server.report().findings.iter().map(|f| f.code).collect()
    }

    pub(super) fn write(&self) -> Vec<u8> {
        self.server.write(KEY, b"object").unwrap()
    }
}
