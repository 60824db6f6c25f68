//! The three clients of a soak: an API server on each node, and one that calls the RPCs itself, on both.
//!
//! Guarantees: every RPC goes through a [`Line`], which hands request and answer to the [`Court`]; every object and value is
//! in the ledger before it is read. The API servers live ten times as fast as the clock, so that a minute of their loops is
//! six seconds. Refuses to know what is done to the plugins.

use super::court::Court;
use super::ledger::content;
use super::schedule::{Dice, NODES};
use crate::support::site::{seed, uid};
use futures_util::future::join_all;
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kms_v2_client::kms::{KmsClient, Target};
use kms_v2_client::plugin::{KmsPlugin, RpcFuture};
use kms_v2_judge::apiserver::{ApiServer, Settings, TransformError, WRITE_STATE_TTL};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::OsEntropy;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// kube-apiserver's default deadline.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// So much faster goes the clock of the API servers.
const FASTER: u32 = 10;
const PAUSE: Duration = Duration::from_millis(40);
/// Rounds of the raw client between two bursts, and how many Decrypts a burst has.
const BURST_EVERY: usize = 100;
const BURST: usize = 24;

/// A client's connection to one node.
pub struct Line {
    node: usize,
    plugin: KmsClient,
    court: Arc<Court>,
    told: Mutex<Option<usize>>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line(node {})", self.node)
    }
}

impl Line {
    pub async fn new(node: usize, target: &Target, court: &Arc<Court>) -> Self {
        let plugin = KmsClient::connect(target.clone(), DEADLINE).await.expect("the node was ready a moment ago");
        Self { node, plugin, court: Arc::clone(court), told: Mutex::default() }
    }
}

impl Line {
    /// A Decrypt of what nobody has sealed. Whether it was refused as forged.
    pub async fn forged(&self, request: DecryptRequest) -> bool {
        let began = Instant::now();
        let answer = KmsPlugin::decrypt(&self.plugin, request, DEADLINE).await;
        self.court.forged(self.node, began, &answer)
    }
}

impl KmsPlugin for Line {
    fn status(&self, timeout: Duration) -> RpcFuture<'_, StatusResponse> {
        Box::pin(async move {
            let began = Instant::now();
            let answer = KmsPlugin::status(&self.plugin, timeout).await;
            let told = self.court.status(self.node, began, &answer);
            *self.told.lock().unwrap() = told;
            answer
        })
    }

    fn encrypt(&self, request: EncryptRequest, timeout: Duration) -> RpcFuture<'_, EncryptResponse> {
        Box::pin(async move {
            let (began, told) = (Instant::now(), *self.told.lock().unwrap());
            let answer = KmsPlugin::encrypt(&self.plugin, request.clone(), timeout).await;
            self.court.encrypt(self.node, began, &request, &answer, told);
            answer
        })
    }

    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse> {
        Box::pin(async move {
            let began = Instant::now();
            let answer = KmsPlugin::decrypt(&self.plugin, request.clone(), timeout).await;
            self.court.decrypt(self.node, began, &request, &answer);
            answer
        })
    }
}

/// What Decrypt is asked for this value.
pub fn request_for(sealed: EncryptResponse) -> DecryptRequest {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed;
    DecryptRequest { ciphertext, uid: uid(), key_id, annotations }
}

#[derive(Debug)]
struct FastClock(Instant);

impl Clock for FastClock {
    fn now(&self) -> Moment {
        Moment((self.0.elapsed() * FASTER).as_nanos() as u64)
    }
}

/// Writes and reads that API servers did.
#[derive(Default)]
pub struct Objects {
    pub written: AtomicUsize,
    pub not_written: AtomicUsize,
    pub read: AtomicUsize,
    pub not_read: AtomicUsize,
}

/// An API server of one node.
pub struct Front {
    pub server: ApiServer,
    node: usize,
    court: Arc<Court>,
}

impl Front {
    pub async fn new(node: usize, target: &Target, court: &Arc<Court>) -> Self {
        let line = Arc::new(Line::new(node, target, court).await);
        // Its watch runs fast, so it calls a Status slow that took a tenth of what it reads.
        let settings = Settings { status_slow: Duration::from_secs(1) * FASTER, ..Settings::new("soak") };
        let clock = Arc::new(FastClock(Instant::now()));
        let server = ApiServer::start(settings, line, clock, Arc::new(OsEntropy)).await;
        Self { server, node, court: Arc::clone(court) }
    }

    /// Its loops, and a readiness probe every second.
    pub async fn live(&self, stop: &AtomicBool) {
        let mut probed = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            self.server.tick().await;
            if probed.elapsed() >= Duration::from_secs(1) {
                probed = Instant::now();
                let _ = self.server.readyz().await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What its users do: they write, and read what any API server has written.
    pub async fn serve(&self, stop: &AtomicBool, objects: &Objects, mut dice: Dice) {
        for n in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if n.is_multiple_of(2) {
                let key = format!("/registry/secrets/of-{}/{n}", self.node);
                match self.server.write(&key, &content(&key)) {
                    Ok(value) => {
                        self.court.ledger.keep_object(&key, value);
                        objects.written.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        objects.not_written.fetch_add(1, Ordering::Relaxed);
                        self.judge(&key, &error);
                    }
                }
            }
            let (_, count) = self.court.ledger.len();
            if let Some((key, value)) = self.court.ledger.object(dice.below(count as u64 * 2) as usize) {
                match self.server.read(&key, &value).await {
                    Ok(read) if read.plaintext.as_slice() == content(&key) => {
                        objects.read.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(_) => self.court.accuse(&format!("{key} has OTHER BYTES than were written")),
                    Err(error) => {
                        objects.not_read.fetch_add(1, Ordering::Relaxed);
                        self.judge(&key, &error);
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// No write state is excused by a Status that could not be answered for as long as a write state lives.
    fn judge(&self, key: &str, error: &TransformError) {
        let excused = match error {
            // Judged where it came from.
            TransformError::Decrypt(_) => true,
            TransformError::NoState | TransformError::Expired { .. } => {
                self.court.was_troubled(self.node, WRITE_STATE_TTL / FASTER + Duration::from_secs(10))
            }
            _ => false,
        };
        if !excused {
            self.court.accuse(&format!("API server of node {}, {key}: {error}", self.node));
        }
    }
}

/// Seals on one node and opens on the other, old and new, one by one and in bursts.
pub async fn raw(lines: [Line; NODES], court: Arc<Court>, stop: Arc<AtomicBool>, mut dice: Dice) {
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (here, there) = (&lines[n % NODES], &lines[(n + 1) % NODES]);
        let _ = KmsPlugin::status(here, DEADLINE).await;
        let request = EncryptRequest { plaintext: seed(), uid: uid() };
        if let Ok(sealed) = KmsPlugin::encrypt(here, request, DEADLINE).await
            && n.is_multiple_of(4)
        {
            let _ = KmsPlugin::decrypt(there, request_for(sealed), DEADLINE).await;
        }
        let burst = if n % BURST_EVERY == BURST_EVERY - 1 { BURST } else { 1 };
        let (count, _) = court.ledger.len();
        let olds = (0..burst).filter_map(|_| court.ledger.value(dice.below(count as u64) as usize));
        let olds: Vec<_> = olds.map(|old| KmsPlugin::decrypt(here, request_for((*old).clone()), DEADLINE)).collect();
        join_all(olds).await;
        tokio::time::sleep(PAUSE).await;
    }
}
