//! The stage of the real binary: the API server simulator on its socket, on a clock that is moved by hand, and words for
//! waiting until the plugin is in a state.

use crate::support::site::{PATIENCE, Running, Site};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use kms_v2_judge::apiserver::{ApiServer, FindingCode, HandClock, Settings};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::OsEntropy;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Hours made seconds: as quick as the configuration allows.
pub const QUICK: &str = "probe: {interval: 1s, timeout: 500ms}";

/// An API server on a plugin's socket. Its time is its own; RPCs are real.
pub struct Stage {
    pub server: ApiServer,
    pub clock: Arc<HandClock>,
}

impl Stage {
    pub async fn new(running: &Running) -> Self {
        let clock = Arc::new(HandClock::default());
        // Long, because the machine may be busy and the clock does not see it.
        let timeout = Duration::from_secs(15);
        let plugin = Arc::new(KmsClient::connect(running.target.clone(), timeout).await.unwrap());
        let settings = Settings { timeout, ..Settings::new("scenario") };
        let server = ApiServer::start(settings, plugin, Arc::clone(&clock) as _, Arc::new(OsEntropy)).await;
        Self { server, clock }
    }

    pub fn seconds(&self) -> u64 {
        self.clock.now().0 / 1_000_000_000
    }

    /// So many seconds of its loops and of a readiness probe every second.
    pub async fn play(&self, seconds: u64) {
        let end = Moment(self.clock.now().0 + seconds * 1_000_000_000);
        while self.clock.now() < end {
            let second = Moment(self.clock.now().0 + 1_000_000_000);
            self.clock.set(self.server.next_due().min(second).min(end));
            self.server.tick().await;
            let _ = self.server.readyz().await;
        }
    }

    /// A few of its seconds for each moment of ours, until it writes under this key_id.
    pub async fn until_it_writes_under(&self, key_id: &str) {
        let began = Instant::now();
        while self.server.write_key_id().as_deref() != Some(key_id) {
            assert!(began.elapsed() < PATIENCE, "it writes under {:?}", self.server.write_key_id());
            self.play(5).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn codes(&self) -> Vec<FindingCode> {
        self.server.report().findings.iter().map(|f| f.code).collect()
    }

    /// Objects `/{prefix}{n}` with their own keys as content.
    pub fn write(&self, prefix: &str, count: usize) -> Vec<(String, Vec<u8>)> {
        let keys = (0..count).map(|n| format!("/{prefix}{n}"));
        keys.map(|key| (key.clone(), self.server.write(&key, key.as_bytes()).unwrap())).collect()
    }

    pub async fn reads(&self, objects: &[(String, Vec<u8>)]) {
        for (key, value) in objects {
            assert_eq!(self.server.read(key, value).await.unwrap().plaintext.as_slice(), key.as_bytes(), "{key}");
        }
    }
}

/// /readyz, as code and line.
pub async fn readyz(running: &Running) -> (u16, String) {
    running.http("/readyz").await
}

/// A healthz with its seconds or minutes left open.
pub fn without_age(healthz: &str) -> String {
    let mut open: String = healthz.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
    while open.contains("##") {
        open = open.replace("##", "#");
    }
    open
}

/// Waits until /readyz says this state, and returns its code and line.
pub async fn until_state(running: &Running, state: &str) -> (u16, String) {
    let began = Instant::now();
    loop {
        let (code, page) = readyz(running).await;
        if page.contains(&format!("state={state} ")) {
            return (code, page);
        }
        assert!(began.elapsed() < PATIENCE, "never {state}: {page}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Status every 20 ms until it has been another than `old` for `settled`; the key_ids in order, repeats left out.
pub async fn timeline(running: &Running, old: &str, settled: Duration) -> Vec<String> {
    let mut client = running.client().await;
    let (mut seen, mut since): (Vec<String>, Option<Instant>) = (Vec::new(), None);
    let began = Instant::now();
    while since.is_none_or(|since| since.elapsed() < settled) {
        let key_id = client.status().await.unwrap().key_id;
        if seen.last() != Some(&key_id) {
            since = (key_id != old).then(Instant::now);
            seen.push(key_id);
        }
        assert!(began.elapsed() < PATIENCE + settled, "it never came: {seen:?}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen
}

/// Waits until Status names another key_id, and returns that.
pub async fn moved(running: &Running, old: &str) -> String {
    timeline(running, old, Duration::ZERO).await.pop().unwrap()
}

pub async fn opens(running: &Running, values: &[(Vec<u8>, EncryptResponse)]) {
    let mut client = running.client().await;
    for (seed, answer) in values {
        let opened = client.decrypt(answer.clone(), crate::support::site::uid()).await;
        assert_eq!(&opened.unwrap().plaintext, seed, "{}", running.log());
    }
}

/// A node with a fake KMS of its own and quick settings, with this YAML besides.
pub fn quick(yaml: &str) -> Site {
    let mut site = Site::aws();
    site.set(QUICK).set(yaml);
    site
}
