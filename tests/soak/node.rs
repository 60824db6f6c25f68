//! One node of a soak: its process, and what is done to it.
//!
//! Guarantees: the court knows of every deed before it is done and when it is over; a process that does not become ready,
//! does not end when told, or ends by itself is a broken promise; every process is waited for.

use super::court::{Blow, Court};
use super::current;
use super::fault::{STALLS, silence};
use super::schedule::Deed;
use crate::support::site::{ALIAS, Running, Site};
use crate::support::stall::Shim;
use kms_v2_client::kms::{KmsClient, Target};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long after the KMS is well a start may take; the aftermath of a weather, and what a busy machine adds.
const READY: Duration = Duration::from_secs(15);
/// kube-kms ends within 10 s of SIGTERM.
const END: Duration = Duration::from_secs(13);
const LOOK: Duration = Duration::from_millis(30);
const STALLED: &str = "the disk under the state file stalls; going on without it";
const WRITTEN: &str = "the state file is written again";
const TTL: &str = "cache: {ttl: 3s}";
/// Quick probes; DEKs that are used up within seconds, so that there are many; a cache that forgets.
pub const SETTINGS: &str = "probe: {interval: 1s, timeout: 900ms}\ndek: {maxUses: 400}\ncache: {ttl: 3s}";

/// See the module.
pub struct Node {
    number: usize,
    pub site: Site,
    binary: String,
    court: Arc<Court>,
    running: Mutex<Option<Running>>,
    pid: AtomicU32,
    /// Every process that ever was.
    pids: std::sync::Mutex<Vec<u32>>,
    slowest_start: std::sync::Mutex<Duration>,
    /// fsync does not come back while there is this file; `None` where that cannot be made.
    stalls: Option<PathBuf>,
}

impl Node {
    pub fn new(number: usize, mut site: Site, binary: &str, court: &Arc<Court>, shim: Option<&Shim>) -> Self {
        let stalls = shim.map(|shim| {
            let stalls = site.dir().join("stalls");
            shim.under(&mut site, &stalls);
            stalls
        });
        let (running, pid, binary) = (Mutex::default(), AtomicU32::new(0), binary.to_owned());
        let (pids, slowest_start) = Default::default();
        Self { number, site, binary, court: Arc::clone(court), running, pid, pids, slowest_start, stalls }
    }

    pub fn court(&self) -> &Court {
        &self.court
    }

    pub fn target(&self) -> Target {
        Target::File(self.site.socket())
    }

    /// The process that serves, or 0.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub fn pids(&self) -> Vec<u32> {
        self.pids.lock().unwrap().clone()
    }

    /// The longest time from a start, or from the end of the weather that was at the start, to `ok`.
    pub fn slowest_start(&self) -> Duration {
        *self.slowest_start.lock().unwrap()
    }

    fn spawn(&self, more: &[&str]) -> Running {
        let config = self.site.write_config();
        let mut arguments = vec!["serve", "--config", config.to_str().unwrap()];
        arguments.extend(more);
        let running = self.site.run(&mut self.site.process(&self.binary, &arguments));
        self.pids.lock().unwrap().push(running.pid());
        running
    }

    /// Starts it and waits until it is ready, however long the weather lasts.
    pub async fn start(&self) {
        let mut turn = self.running.lock().await;
        self.start_in(&mut turn).await;
    }

    async fn start_in(&self, turn: &mut Option<Running>) {
        let began = Instant::now();
        self.court.blow(self.number, Blow::Starting);
        let running = self.spawn(&[]);
        self.pid.store(running.pid(), Ordering::Relaxed);
        let ready = self.until(began, "it is ready", || is_ok(&running.target)).await;
        self.court.over(self.number, Blow::Starting);
        if let Some(took) = ready {
            let mut slowest = self.slowest_start.lock().unwrap();
            *slowest = took.max(*slowest);
        }
        *turn = Some(running);
    }

    /// Waits until this holds: [`READY`] long, counted from when the KMS is well. How long that was.
    async fn until<F: Future<Output = bool>>(
        &self,
        began: Instant,
        what: &str,
        holds: impl Fn() -> F,
    ) -> Option<Duration> {
        loop {
            let since = self.court.sky.clear_since().map(|clear| clear.max(began));
            if holds().await {
                return Some(since.map_or(Duration::ZERO, |since| since.elapsed()));
            }
            if since.is_some_and(|since| since.elapsed() > READY) {
                self.court.accuse(&format!("node {}: waited {READY:?} in vain until {what}", self.number));
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// SIGTERM, and it ends well and in time.
    async fn end(&self, mut old: Running) {
        self.court.blow(self.number, Blow::Stopped);
        old.signal(Signal::TERM);
        match tokio::time::timeout(END, old.wait()).await {
            Ok(status) if status.success() => {}
            Ok(status) => self.court.accuse(&format!("node {}: SIGTERM ended it with {status}", self.number)),
            Err(_) => self.court.accuse(&format!("node {}: it did not end within {END:?}", self.number)),
        }
        self.court.over(self.number, Blow::Stopped);
    }

    /// For good.
    pub async fn stop(&self) {
        if let Some(running) = self.running.lock().await.take() {
            self.end(running).await;
        }
    }

    /// One value of `/metrics`; 0 when it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        match &*self.running.lock().await {
            Some(running) => running.metric(series).await,
            None => 0.0,
        }
    }

    /// Does it.
    pub async fn suffer(&self, deed: Deed) {
        let mut turn = self.running.lock().await;
        let Some(mut running) = turn.take() else { return };
        if has_ended(&mut running).await {
            self.court.accuse(&format!("node {}: the process ended by itself\n{}", self.number, tail(&running)));
            return self.start_in(&mut turn).await;
        }
        match deed {
            Deed::Kill(pause) => {
                self.court.blow(self.number, Blow::Killed);
                running.kill();
                tokio::time::sleep(pause).await;
                self.court.over(self.number, Blow::Killed);
                return self.start_in(&mut turn).await;
            }
            Deed::Restart => {
                self.end(running).await;
                return self.start_in(&mut turn).await;
            }
            Deed::TakeOver(overlap) => running = self.taken_over(running, overlap).await,
            Deed::Freeze(lasts) => {
                self.court.blow(self.number, Blow::Frozen);
                running.signal(Signal::STOP);
                tokio::time::sleep(lasts).await;
                running.signal(Signal::CONT);
                self.court.over(self.number, Blow::Frozen);
            }
            Deed::Reload { ttl, by_signal } => self.reload(&running, &format!("cache: {{ttl: {ttl}s}}"), by_signal),
            Deed::BadReload => {
                self.reload(&running, "cache: {ttl: never}", true);
                tokio::time::sleep(Duration::from_millis(300)).await;
                self.reload(&running, TTL, true);
            }
            Deed::DiskAway(lasts) => {
                let (state, aside) = (self.site.dir().join("state"), self.site.dir().join("state.away"));
                std::fs::rename(&state, &aside).unwrap();
                std::fs::write(&state, "not a directory").unwrap();
                tokio::time::sleep(lasts).await;
                std::fs::remove_file(&state).unwrap();
                std::fs::rename(&aside, &state).unwrap();
            }
            Deed::DiskStalls(lasts) => self.stall(&running, lasts).await,
            Deed::Silence(lasts) => silence(self, &running, lasts).await,
            Deed::Weather(..) | Deed::RotateMaterial | Deed::RotateAlias | Deed::ApiServerRestart => {}
        }
        *turn = Some(running);
    }

    /// At least for so long; the rotation that it has to write is noticed, and the stall, and its end.
    async fn stall(&self, running: &Running, lasts: Duration) {
        let Some(stalls) = &self.stalls else { return };
        let count = |words: &str| running.log().matches(words).count();
        let (stalled, healed) = (count(STALLED), count(WRITTEN));
        std::fs::write(stalls, "").unwrap();
        let began = Instant::now();
        self.court.rotate(|| {
            self.site.kms().rotate(ALIAS);
            current(self.site.kms())
        });
        let noticed = self.until(began, "the stalling disk is noticed", || async { count(STALLED) > stalled }).await;
        tokio::time::sleep(lasts.saturating_sub(began.elapsed())).await;
        std::fs::remove_file(stalls).unwrap();
        let again =
            self.until(Instant::now(), "the state is written again", || async { count(WRITTEN) > healed }).await;
        self.court.feel(STALLS, usize::from(noticed.is_some() && again.is_some()));
    }

    async fn taken_over(&self, old: Running, overlap: Duration) -> Running {
        let (began, new) = (Instant::now(), self.spawn(&["--take-over"]));
        self.until(began, "the successor listens", || async { new.log().contains("listening") }).await;
        tokio::time::sleep(overlap).await;
        self.pid.store(new.pid(), Ordering::Relaxed);
        self.end(old).await;
        new
    }

    fn reload(&self, running: &Running, ttl: &str, by_signal: bool) {
        let text = std::fs::read_to_string(self.site.write_config()).unwrap();
        self.site.write_raw_config(&text.replace(TTL, ttl));
        if by_signal {
            running.signal(Signal::HUP);
        }
    }

    /// What lies about after everything has ended, and should not.
    pub fn leftovers(&self) -> Vec<String> {
        let expected = |name: &str| {
            ["config.yaml", "state", ".kms.sock.lock"].contains(&name)
                || name.starts_with("log.")
                || name.starts_with("out.")
        };
        let mut found: Vec<_> = names(self.site.dir()).into_iter().filter(|name| !expected(name)).collect();
        let state = names(&self.site.dir().join("state"));
        found.extend(state.into_iter().filter(|name| name != "state.json").map(|name| format!("state/{name}")));
        found.into_iter().map(|name| format!("node {}: {name}", self.number)).collect()
    }

    /// The log files of all its processes.
    pub fn logs(&self) -> Vec<PathBuf> {
        let all = names(self.site.dir()).into_iter().filter(|name| name.starts_with("log."));
        all.map(|name| self.site.dir().join(name)).collect()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn has_ended(running: &mut Running) -> bool {
    tokio::time::timeout(Duration::from_millis(1), running.wait()).await.is_ok()
}

fn tail(running: &Running) -> String {
    let log = running.log();
    let lines: Vec<_> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

async fn is_ok(target: &Target) -> bool {
    let Ok(mut client) = KmsClient::connect(target.clone(), Duration::from_secs(1)).await else { return false };
    client.status().await.is_ok_and(|status| status.healthz == "ok")
}
