//! What an API server does all the time: Status, Encrypt, and Decrypt of what it has seen. None of it may fail or be slow.

use crate::support::beside::Beside;
use crate::support::site::{Running, seed, uid};
use kms_v2_api::v2::{EncryptResponse, StatusResponse};
use kms_v2_client::kms::KmsClient;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// A seed and what Encrypt made of it.
pub(super) type Value = (Vec<u8>, EncryptResponse);

const PAUSE: Duration = Duration::from_millis(40);
/// From memory; docs/conformance.md, item 27.
const SOON: Duration = Duration::from_millis(500);
/// The most that a busy machine is allowed to add, once in a while: less than a call waits that waits for a hanging KMS.
const MACHINE: Duration = Duration::from_secs(2);

/// All at once; [`Load::finish`] tells how it went.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    watch: Watch,
    written: Arc<Mutex<Vec<Value>>>,
}

impl Load {
    /// On a plugin that is ready, with these values known to it.
    pub(super) async fn begin(running: &Running, known: Vec<Value>) -> Self {
        assert!(!known.is_empty());
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(known));
        let watch = Watch::begin(running, |answer| {
            let answer = answer.as_ref().expect("Status of a running plugin never fails for a passing fault");
            assert_eq!((answer.version.as_str(), answer.healthz.as_str()), ("v2", "ok"));
        });
        let tasks = vec![
            tokio::spawn(write(running.client().await, Arc::clone(&stop), Arc::clone(&written))),
            tokio::spawn(read(running.client().await, Arc::clone(&stop), Arc::clone(&written))),
        ];
        Self { stop, tasks, watch, written }
    }

    /// Ends it: nothing has failed, Status was soon. Everything that was ever written.
    pub(super) async fn finish(self, what: &str) -> Vec<Value> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            if let Err(error) = task.await {
                panic!("{what}: {error}");
            }
        }
        self.watch.finish(what);
        std::mem::take(&mut *self.written.lock().unwrap())
    }
}

/// Status again and again, from a thread and a runtime of its own, so that only the plugin can make it late.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Option<Beside>>,
}

impl Watch {
    /// Every answer is as `fits` asserts.
    pub(super) fn begin(running: &Running, fits: impl Fn(&Result<StatusResponse, Status>) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (target, stopped) = (running.target.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // The socket may not be there yet.
                let mut client = loop {
                    match KmsClient::connect(target.clone(), Duration::from_secs(3)).await {
                        Ok(client) => break client,
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                    if stopped.load(Ordering::Relaxed) {
                        return None;
                    }
                };
                let mut beside = Beside::start().await;
                // Often enough to say something, however busy the machine.
                while !stopped.load(Ordering::Relaxed) || beside.len() <= 10 {
                    fits(&beside.time(client.status()).await);
                    tokio::time::sleep(PAUSE).await;
                }
                Some(beside)
            })
        });
        Self { stop, thread }
    }

    /// Nine of ten were within half a second, and none took so long that it waited for a KMS, but for what the machine did.
    pub(super) fn finish(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let beside =
            self.thread.join().unwrap_or_else(|_| panic!("{what}: a Status was not as it has to be; see above"));
        let beside = beside.unwrap_or_else(|| panic!("{what}: never asked"));
        beside.assert_late_at_most(what, SOON, beside.len() / 10);
        beside.assert_late_at_most(what, MACHINE, 0);
    }
}

async fn write(mut client: KmsClient, stop: Arc<AtomicBool>, written: Arc<Mutex<Vec<Value>>>) {
    while !stop.load(Ordering::Relaxed) {
        let before = client.status().await.unwrap().key_id;
        let seed = seed();
        let answer = client.encrypt(seed.clone(), uid()).await.expect("Encrypt never fails for a passing fault");
        let after = client.status().await.unwrap().key_id;
        assert!(answer.key_id == before || answer.key_id == after, "Encrypt and Status agree");
        written.lock().unwrap().push((seed, answer));
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read(mut client: KmsClient, stop: Arc<AtomicBool>, written: Arc<Mutex<Vec<Value>>>) {
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (seed, value) = {
            let written = written.lock().unwrap();
            // The oldest and the newest by turns.
            written[if n.is_multiple_of(2) { n / 2 % written.len().min(8) } else { written.len() - 1 }].clone()
        };
        let opened =
            client.decrypt(value, uid()).await.expect("Decrypt of a known DEK never fails for a passing fault");
        assert!(opened.plaintext == seed, "other bytes");
        tokio::time::sleep(PAUSE).await;
    }
}

/// When a machine without time to spare has the client's timer of 3 s fire.
const LOST: Duration = Duration::from_millis(3300);

/// Whether three times as many tasks want to run as there are processors.
fn is_overloaded() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    load > 3.0 * std::thread::available_parallelism().unwrap().get() as f64
}

/// A Decrypt of what may not be known: the right bytes, or one of these codes within the caller's time.
pub(super) async fn try_open(client: &mut KmsClient, value: &Value, allowed: &[Code]) -> Result<(), Status> {
    let began = Instant::now();
    match client.decrypt(value.1.clone(), uid()).await {
        Ok(opened) => {
            assert!(opened.plaintext == value.0, "other bytes");
            Ok(())
        }
        Err(status) => {
            // The plugin's own word, not that of the client's timer; it speaks 250 ms before it, which a machine with several
            // times more work than cores can lose.
            let is_late = status.message() == "Timeout expired" || status.code() == Code::DeadlineExceeded;
            if is_late && began.elapsed() < LOST && is_overloaded() {
                return Err(status);
            }
            assert!(allowed.contains(&status.code()), "after {:?}: {status:?}", began.elapsed());
            assert!(status.message() != "Timeout expired", "it was not answered in time");
            Err(status)
        }
    }
}
