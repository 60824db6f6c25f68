//! Our simulator of an API server, on the real clock, beside a real one: it is given the same and must have done the same.
//!
//! Guarantees: it waits for a lost plugin as grpc-go does, with `WaitForReady`; what a real one says of itself in its metrics
//! is brought into the simulator's words in one place.

use super::layout::{Layout, providers};
use crate::support::apiserver_go::Sample;
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kms_v2_client::kms::{KmsClient, Target};
use kms_v2_client::plugin::{KmsPlugin, RpcFuture};
use kms_v2_judge::apiserver::{ApiServer, Report};
use kube_kms_core::port::Clock;
use kube_kms_os::{MonotonicClock, OsEntropy};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// RPCs by method and gRPC code, as kube-apiserver spells them.
pub type Rpcs = BTreeMap<(String, String), u64>;

/// See the module.
pub struct Shadow {
    pub sim: Arc<ApiServer>,
    ticking: JoinHandle<()>,
}

impl Shadow {
    pub async fn start(layout: &Layout) -> Self {
        let clock = Arc::new(MonotonicClock::default());
        let port: Arc<dyn Clock> = clock.clone();
        let sim = Arc::new(ApiServer::start_with(providers(layout), port, Arc::new(OsEntropy)).await);
        let ticking = tokio::spawn(tick(Arc::clone(&sim), clock));
        Self { sim, ticking }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}

async fn tick(sim: Arc<ApiServer>, clock: Arc<MonotonicClock>) {
    loop {
        let pause = sim.next_due().since(clock.now()).min(Duration::from_millis(100));
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        sim.tick().await;
    }
}

/// What the simulator did, and the key_ids it saw.
pub fn of_simulator(report: &Report) -> (Rpcs, BTreeSet<String>) {
    let rpcs = report.counts.rpcs.iter().map(|c| ((c.rpc.to_string(), c.code.clone()), c.times));
    (rpcs.collect(), report.key_ids.iter().map(|seen| hash(&seen.key_id)).collect())
}

/// What a real one did in all, and the key_ids it saw.
pub fn of_real(samples: &[Sample]) -> (Rpcs, BTreeSet<String>) {
    let (mut rpcs, mut hashes) = (Rpcs::new(), BTreeSet::new());
    for sample in samples {
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

/// As kube-apiserver shows a key_id.
pub fn hash(key_id: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key_id.as_bytes())))
}

/// How often.
pub fn times(rpcs: &Rpcs, rpc: &str, code: &str) -> u64 {
    rpcs.get(&(rpc.to_owned(), code.to_owned())).copied().unwrap_or(0)
}

/// A client that waits for the plugin until the deadline, as grpc-go does with `WaitForReady`.
#[derive(Debug)]
pub struct Patient {
    target: Target,
    timeout: Duration,
    client: tokio::sync::Mutex<Option<KmsClient>>,
}

impl Patient {
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { target: Target::File(socket), timeout, client: tokio::sync::Mutex::default() }
    }

    async fn client(&self) -> Option<KmsClient> {
        let mut client = self.client.lock().await;
        if client.is_none() {
            *client = KmsClient::connect(self.target.clone(), self.timeout).await.ok();
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
