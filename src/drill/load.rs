//! Requests while something happens to the plugins: writes and reads at every API server, Encrypts and Decrypts at every plugin.
//!
//! Guarantees: one request at a time in each lane; every one is counted, with its time, and so is the longest stretch without a
//! success: nobody is asked again in silence. Refuses to know which failures were to be expected.

use crate::claim::millis;
use crate::front::Front;
use crate::node::Node;
use crate::store::Store;
use crate::task::Tasks;
use crate::tempo::Tempo;
use hdrhistogram::Histogram;
use kms_v2_client::kms::{KmsClient, Target};
use kube_kms_os::Stopwatch;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const PAUSE: Duration = Duration::from_millis(10);

/// What one lane saw.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    /// `API server a`, `plugin a`.
    pub(crate) name: String,
    /// Whether it is an API server's.
    pub(crate) is_api_server: bool,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) first_error: Option<String>,
    /// The longest time from one success to the next, or to the end.
    pub(crate) longest_gap: Duration,
    pub(crate) slowest: Duration,
    pub(crate) p99: Duration,
}

impl Lane {
    /// For a detail.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{}: {} requests, {} failed", self.name, self.requests, self.failed);
        if let Some(error) = &self.first_error {
            text.push_str(&format!(" (the first: {error}); no success for {} ms", millis(self.longest_gap)));
        }
        text
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<Lane>>,
    _tasks: Tasks,
}

impl Load {
    /// Begins.
    pub(crate) fn start(fronts: &[Front], nodes: &[Node], tempo: Tempo) -> Self {
        let (stop, mut tasks, mut lanes) = (Arc::new(AtomicBool::new(false)), Tasks::default(), Vec::new());
        for front in fronts {
            let (server, key) = (Arc::clone(&front.server), Store::key(&format!("load-{}", front.name), 0));
            let request = move || {
                let (server, key) = (Arc::clone(&server), key.clone());
                async move {
                    let content = Store::content(&key);
                    let value = server.write(&key, &content).map_err(|e| e.to_string())?;
                    let read = server.read(&key, &value).await.map_err(|e| e.to_string())?;
                    if *read.plaintext == content { Ok(()) } else { Err("other bytes came back".to_owned()) }
                }
            };
            let lane = run(format!("API server {}", front.name), true, Arc::clone(&stop), request);
            lanes.push(tasks.spawn(lane));
        }
        for node in nodes {
            let target = node.target();
            let request = move || exchange(target.clone(), tempo);
            lanes.push(tasks.spawn(run(format!("plugin {}", node.name), false, Arc::clone(&stop), request)));
        }
        Self { stop, lanes, _tasks: tasks }
    }

    /// Ends, and says what happened.
    pub(crate) async fn end(self) -> Vec<Lane> {
        self.stop.store(true, Ordering::Relaxed);
        let mut lanes = Vec::new();
        for lane in self.lanes {
            lanes.extend(lane.await.ok());
        }
        lanes
    }
}

/// A seed there and back, on a connection of its own: the plugin must not need the one of before.
async fn exchange(target: Target, tempo: Tempo) -> Result<(), String> {
    let mut client = KmsClient::connect(target, tempo.rpc_timeout).await.map_err(|_| "nobody listens".to_owned())?;
    let say = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
    let (uid, seed) = (uuid::Uuid::new_v4(), [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()]);
    let seed = seed.iter().flat_map(|half| *half.as_bytes()).collect::<Vec<u8>>();
    let sealed = client.encrypt(seed.clone(), uid.to_string()).await.map_err(say)?;
    let opened = client.decrypt(sealed, uid.to_string()).await.map_err(say)?;
    if opened.plaintext == seed { Ok(()) } else { Err("other bytes came back".to_owned()) }
}

async fn run<F>(name: String, is_api_server: bool, stop: Arc<AtomicBool>, request: impl Fn() -> F) -> Lane
where
    F: Future<Output = Result<(), String>>,
{
    let mut lane = Lane {
        name,
        is_api_server,
        requests: 0,
        failed: 0,
        first_error: None,
        longest_gap: Duration::ZERO,
        slowest: Duration::ZERO,
        p99: Duration::ZERO,
    };
    let mut times = Histogram::<u64>::new(3).ok();
    let mut since_success = Stopwatch::start();
    while !stop.load(Ordering::Relaxed) {
        let watch = Stopwatch::start();
        let outcome = request().await;
        let took = watch.elapsed();
        lane.requests = lane.requests.saturating_add(1);
        lane.slowest = lane.slowest.max(took);
        if let Some(times) = &mut times {
            times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        match outcome {
            Ok(()) => {
                lane.longest_gap = lane.longest_gap.max(since_success.elapsed());
                since_success = Stopwatch::start();
            }
            Err(error) => {
                lane.failed = lane.failed.saturating_add(1);
                lane.first_error.get_or_insert(error);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    lane.longest_gap = lane.longest_gap.max(since_success.elapsed());
    lane.p99 = Duration::from_micros(times.map_or(0, |times| times.value_at_quantile(0.99)));
    lane
}

/// All of them as a detail, and whether none failed.
pub(crate) fn verdict(lanes: &[&Lane]) -> Result<String, String> {
    let text = lanes.iter().map(|lane| lane.describe()).collect::<Vec<_>>().join("; ");
    let is_fine = lanes.iter().all(|lane| lane.failed == 0 && lane.requests > 0) && !lanes.is_empty();
    if is_fine { Ok(text) } else { Err(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_counted_and_makes_the_verdict() {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
        let ending = Arc::clone(&stop);
        let lane = run("x".to_owned(), false, stop, || {
            let n = calls.fetch_add(1, Ordering::Relaxed);
            ending.store(n == 4, Ordering::Relaxed);
            async move { if n == 2 { Err("gone".to_owned()) } else { Ok(()) } }
        })
        .await;
        assert_eq!((lane.requests, lane.failed, lane.first_error.as_deref()), (5, 1, Some("gone")));
        assert!(verdict(&[&lane]).is_err());
        assert!(verdict(&[]).is_err(), "no lane is no proof");
        assert!(verdict(&[&Lane { failed: 0, ..lane }]).is_ok());
    }
}
