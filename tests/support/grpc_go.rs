//! A client that loses and finds its connection as kube-apiserver's does: grpc-go's schedule on the real clock.
//!
//! SPEC: grpc-go's default backoff. After a failed attempt: 1 s, then 1.6 times as long each
//! time, ±20 %, at most 120 s. An attempt has max(20 s, that backoff) for connect and the server's SETTINGS. A lost
//! connection is made again at once. Calls wait for a connection (WaitForReady) up to their deadline, and a call is sent
//! again only when the server provably did not process it (transparent retry).

use super::wire::{Answer, Call, Wire};
use kms_v2_client::kms::Target;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const BASE: Duration = Duration::from_secs(1);
const FACTOR: f64 = 1.6;
const JITTER: f64 = 0.2;
const LONGEST: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(20);

/// The `n`th backoff; the first has no jitter.
fn backoff(n: i32) -> Duration {
    if n == 0 {
        return BASE;
    }
    let nominal = BASE.mul_f64(FACTOR.powi(n)).min(LONGEST);
    let random = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
    nominal.mul_f64(1.0 + JITTER * (random * 2.0 - 1.0))
}

/// The client. Its connection loop ends with it.
pub struct GrpcGo {
    wires: watch::Receiver<Option<Arc<Wire>>>,
    made: Arc<AtomicUsize>,
    tried: Arc<AtomicUsize>,
    looping: JoinHandle<()>,
}

impl GrpcGo {
    /// Begins to connect, and goes on for ever.
    pub fn start(target: &Target) -> Self {
        let (publish, wires) = watch::channel(None);
        let (made, tried) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counters = (Arc::clone(&made), Arc::clone(&tried));
        let looping = tokio::spawn(keep_connected(target.clone(), publish, counters));
        Self { wires, made, tried, looping }
    }

    /// Starts and waits for the first connection.
    pub async fn connect(target: &Target) -> Self {
        let mut client = Self::start(target);
        client.wires.wait_for(Option::is_some).await.unwrap();
        client
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// How often it has knocked.
    pub fn attempts(&self) -> usize {
        self.tried.load(Ordering::Relaxed)
    }

    /// Waits until it has noticed that its connection is gone.
    pub async fn lost(&mut self) {
        self.wires.wait_for(Option::is_none).await.unwrap();
    }

    /// A call that waits for a connection; everything within `deadline`.
    ///
    /// # Errors
    /// In words, when the deadline passes or when a call that may have been processed is lost.
    pub async fn call(&mut self, call: Call, deadline: Duration) -> Result<Answer, String> {
        let began = Instant::now();
        let calling = async {
            loop {
                let found = self.wires.wait_for(|w| w.as_ref().is_some_and(|w| usable(w))).await;
                let Some(wire) = found.map_err(|e| e.to_string())?.clone() else { continue };
                // A call that could not be sent as a whole was not processed either.
                let Ok(pending) = wire.start(call.clone()).await else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                };
                match pending.answer().await {
                    Ok(answer) => return Ok(answer),
                    Err(error) if unprocessed(&error) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => return Err(format!("lost on the way: {error}")),
                }
            }
        };
        let waited = tokio::time::timeout(deadline, calling).await;
        waited.unwrap_or_else(|_| Err(format!("deadline exceeded after {:?}", began.elapsed())))
    }
}

impl Drop for GrpcGo {
    fn drop(&mut self) {
        self.looping.abort();
    }
}

fn usable(wire: &Wire) -> bool {
    wire.is_open() && !wire.saw(super::wire::GOAWAY)
}

/// REFUSED_STREAM, or a stream id above GOAWAY's last one.
fn unprocessed(error: &h2::Error) -> bool {
    error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

async fn keep_connected(
    target: Target,
    publish: watch::Sender<Option<Arc<Wire>>>,
    (made, tried): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    let mut failures = 0;
    loop {
        let pause = backoff(failures);
        tried.fetch_add(1, Ordering::Relaxed);
        let Some(wire) = Wire::try_connect(&target, CONNECT.max(pause)).await else {
            tokio::time::sleep(pause).await;
            failures += 1;
            continue;
        };
        failures = 0;
        made.fetch_add(1, Ordering::Relaxed);
        let wire = Arc::new(wire);
        publish.send_replace(Some(Arc::clone(&wire)));
        while usable(&wire) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Calls that run on the old connection keep it alive until they end.
        publish.send_replace(None);
    }
}
