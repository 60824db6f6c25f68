//! The end of a soak: in calm, everything that was ever sealed is opened by a replica that has never seen any of it, and
//! every promise gets its verdict.

use super::Plan;
use super::client::{Front, Objects, request_for};
use super::court::Court;
use super::fault;
use super::ledger::{content, hash};
use super::node::Node;
use super::report::{Answers, Report, Spell, Verdict, as_millis};
use super::schedule::{NODES, Schedule};
use super::vitals::{self, Sample};
use crate::support::fake_kms::FakeKms;
use crate::support::site::{PATIENCE, Site};
use kms_v2_client::kms::KmsClient;
use kms_v2_client::plugin::KmsPlugin;
use kms_v2_judge::apiserver::{ApiServer, FindingCode, Settings};
use kube_kms_os::{MonotonicClock, OsEntropy};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A cold replica meets hundreds of data keys at once, and may wait in the queue for the KMS.
const COLD: Duration = Duration::from_secs(15);
/// Time for both nodes to see the last rotation: two observations, a second apart, on a busy machine.
const FOLLOW: Duration = Duration::from_secs(20);
const ASK: Duration = Duration::from_secs(3);
/// What an API server may find in bad weather; anything else is a fault of the plugin.
const WEATHER: [FindingCode; 6] = [
    FindingCode::HealthzNotOk,
    FindingCode::StatusSlow,
    FindingCode::DecryptOfOwnValueFailed,
    FindingCode::EncryptFailedAfterNewKeyId,
    FindingCode::EncryptKeyIdMismatch,
    FindingCode::WriteStateExpired,
];

/// A run that is over.
pub struct Run<'a> {
    pub plan: &'a Plan,
    pub schedule: Schedule,
    pub court: Arc<Court>,
    pub nodes: Vec<Arc<Node>>,
    pub fronts: Vec<Arc<Front>>,
    pub objects: Arc<Objects>,
    pub kms: FakeKms,
    pub cold: Site,
    pub samples: [Vec<Sample>; NODES],
    pub took: Duration,
    /// There was a C compiler for the disk that stalls.
    pub can_stall: bool,
}

/// What the cold replica found.
#[derive(Default)]
struct Opened {
    values: usize,
    objects: usize,
    lost: usize,
    wrong: usize,
    deks: BTreeSet<Vec<u8>>,
}

impl Run<'_> {
    /// Judges it.
    pub async fn end(self) -> Report {
        self.court.sky.clear();
        let followed = self.everybody_follows().await;
        let mut dropped = 0.0;
        for node in &self.nodes {
            dropped += node.metric("kube_kms_log_lines_dropped_total").await;
        }
        let pids: Vec<u32> = self.nodes.iter().flat_map(|node| node.pids()).collect();
        for node in &self.nodes {
            node.stop().await;
        }
        let zombies = vitals::zombies(&pids);
        let leftovers: Vec<_> = self.nodes.iter().flat_map(|node| node.leftovers()).collect();
        let opened = self.open_everything().await;
        let (log, log_lines, panics) = self.read_logs();
        let vitals = vitals::courses(&self.samples, self.plan.length);
        let (broken_count, broken) = self.court.broken();
        let findings = self.findings();
        let steady = vitals.iter().filter(|c| c.judged).count();
        let (sealed, objects) = self.court.ledger.len();
        let verdict = |promise, held, detail: String| Verdict { promise, held, detail };
        let verdicts = vec![
            verdict(
                "nothing is lost",
                opened.lost == 0 && opened.values == sealed && opened.objects == objects,
                format!(
                    "a cold replica opened {} of {sealed} values and {} of {objects} objects; {} lost",
                    opened.values, opened.objects, opened.lost
                ),
            ),
            verdict(
                "never wrong bytes",
                opened.wrong == 0,
                format!("{} values with other bytes at the end", opened.wrong),
            ),
            verdict("every answer was to be expected", broken_count == 0, format!("{broken_count} were not")),
            verdict("the API servers found no fault", findings.is_empty(), findings.join("; ")),
            self.every_fault_was_felt(),
            verdict(
                "both nodes follow the last rotation",
                followed.is_some(),
                followed.map_or_else(|| format!("not within {FOLLOW:?}"), |t| format!("{t:?} after the end")),
            ),
            verdict(
                "memory and descriptors are flat",
                vitals.iter().all(|c| c.flat || !c.judged),
                format!("{steady} of {NODES} nodes were alive for long enough to be judged"),
            ),
            verdict("no process is left", zombies.is_empty(), zombies.join("; ")),
            verdict("no file is left", leftovers.is_empty(), leftovers.join("; ")),
            verdict("no panic", panics.is_empty(), panics.join("; ")),
            verdict("no log line is lost", dropped == 0.0, format!("{dropped} by the last processes' own count")),
        ];
        let report = Report {
            seed: self.plan.seed,
            binary: self.plan.binary.clone(),
            seconds: self.took.as_secs(),
            load_average: std::fs::read_to_string("/proc/loadavg")
                .unwrap()
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
            sealed,
            objects,
            distinct_deks: opened.deks.len(),
            object_writes: (
                self.objects.written.load(Ordering::Relaxed),
                self.objects.not_written.load(Ordering::Relaxed),
            ),
            object_reads: (self.objects.read.load(Ordering::Relaxed), self.objects.not_read.load(Ordering::Relaxed)),
            rotations: self.court.rotations(),
            deeds: self.deeds(),
            felt: self.court.felt(),
            weather: self
                .court
                .sky
                .summary()
                .into_iter()
                .map(|(weather, times, lasted)| Spell { weather, times, seconds: lasted.as_secs_f64() })
                .collect(),
            answers: self.answers(),
            convergence_ms: self.convergence(),
            slowest_start_ms: as_millis(self.nodes.iter().map(|n| n.slowest_start()).max().unwrap_or_default()),
            late_on_a_busy_machine: self.court.late_on_a_busy_machine(),
            kms_calls: self.kms.total_calls(),
            vitals,
            log,
            log_lines,
            verdicts,
            broken,
            schedule: self.schedule.clone(),
        };
        self.keep(&report);
        report
    }

    /// A run of less than a minute may be over before; it says what it did all the same.
    fn every_fault_was_felt(&self) -> Verdict {
        let felt = self.court.felt();
        let mut missing = fault::expected(&self.schedule, self.can_stall);
        missing.retain(|what| felt.get(what).is_none_or(|times| *times == 0));
        let held = missing.is_empty() || self.plan.length < Duration::from_secs(60);
        let mut detail = if missing.is_empty() { "all".to_owned() } else { format!("not: {}", missing.join(", ")) };
        if !self.can_stall {
            detail.push_str("; no disk stalled, for want of a C compiler");
        }
        Verdict { promise: "every fault that counts did something", held, detail }
    }

    /// Waits until both nodes name the newest KEK version.
    async fn everybody_follows(&self) -> Option<Duration> {
        let began = Instant::now();
        for (n, node) in self.nodes.iter().enumerate() {
            loop {
                if let Ok(client) = KmsClient::connect(node.target(), ASK).await {
                    let asked = Instant::now();
                    let answer = KmsPlugin::status(&client, ASK).await;
                    if self.court.status(n, asked, &answer) == Some(self.court.rotations()) {
                        break;
                    }
                }
                if began.elapsed() > FOLLOW {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Some(began.elapsed())
    }

    async fn open_everything(&self) -> Opened {
        let mut site = self.cold.replica().without_proxy();
        site.set("cache: {capacity: 65536, ttl: 24h}");
        let config = site.write_config();
        let command = &mut site.process(&self.plan.binary, &["serve", "--config", config.to_str().unwrap()]);
        let running = site.run(command);
        running.until_ok().await;
        let client = Arc::new(running.client_with(COLD).await);
        let settings = Settings { timeout: COLD, ..Settings::new("soak") };
        let clock = Arc::new(MonotonicClock::new());
        let server = ApiServer::start(settings, Arc::clone(&client) as _, clock, Arc::new(OsEntropy)).await;
        let mut opened = Opened::default();
        for entry in self.court.ledger.read_back() {
            if let Some((seed, sealed)) = entry.to_response() {
                opened.deks.insert(sealed.annotations.get("dek.kube-kms").cloned().unwrap_or_default());
                match KmsPlugin::decrypt(&*client, request_for(sealed), COLD).await {
                    Ok(answer) if hash(&answer.plaintext) == seed => opened.values += 1,
                    Ok(_) => opened.wrong += 1,
                    Err(status) => {
                        opened.lost += 1;
                        self.court.accuse(&format!(
                            "LOST, the cold replica says {:?} {:?}",
                            status.code(),
                            status.message()
                        ));
                    }
                }
            } else if let Some((key, value)) = entry.to_object() {
                match server.read(&key, &value).await {
                    Ok(read) if read.plaintext.as_slice() == content(&key) => opened.objects += 1,
                    Ok(_) => opened.wrong += 1,
                    Err(error) => {
                        opened.lost += 1;
                        self.court.accuse(&format!("LOST, {key}: {error}"));
                    }
                }
            }
        }
        assert!(tokio::time::timeout(PATIENCE, running.stop()).await.is_ok());
        opened
    }

    fn findings(&self) -> Vec<String> {
        let reports = self.fronts.iter().map(|front| front.server.report());
        let findings = reports.enumerate().flat_map(|(n, report)| report.findings.into_iter().map(move |f| (n, f)));
        let faults = findings.filter(|(_, finding)| !WEATHER.contains(&finding.code));
        faults.map(|(n, f)| format!("node {n}: {} {} times ({})", f.code, f.times, f.detail)).collect()
    }

    fn deeds(&self) -> BTreeMap<String, usize> {
        let Schedule { sky, kek, nodes } = &self.schedule;
        let mut deeds = BTreeMap::new();
        for (_, deed) in sky.iter().chain(kek).chain(nodes.iter().flatten()) {
            let name = match serde_json::to_value(deed).unwrap() {
                serde_json::Value::Object(map) => map.keys().next().cloned().unwrap_or_default(),
                other => other.as_str().unwrap_or_default().to_owned(),
            };
            *deeds.entry(name).or_default() += 1;
        }
        deeds
    }

    fn answers(&self) -> Vec<Answers> {
        self.court.tallies(|((weather, rpc), tally)| Answers {
            weather: weather.clone(),
            rpc: rpc.to_string(),
            ok: tally.ok.len(),
            p50_micros: tally.ok.value_at_quantile(0.5),
            p99_micros: tally.ok.value_at_quantile(0.99),
            most_micros: tally.ok.max(),
            expected_errors: tally.expected.clone(),
        })
    }

    fn convergence(&self) -> Vec<Option<u64>> {
        let all = self.court.convergence().into_iter();
        all.map(|nodes| nodes.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max().map(as_millis)).collect()
    }

    /// Warnings and errors by their words, how many lines there are, and panics.
    fn read_logs(&self) -> (BTreeMap<String, usize>, usize, Vec<String>) {
        let (mut counts, mut lines, mut panics) = (BTreeMap::new(), 0, Vec::new());
        for path in self.nodes.iter().flat_map(|node| node.logs()) {
            let log = std::fs::read_to_string(path).unwrap_or_default();
            for line in log.lines() {
                lines += 1;
                if line.contains("panicked at") {
                    panics.push(line.to_owned());
                }
                if let Some(words) = words(line) {
                    *counts.entry(words).or_default() += 1;
                }
            }
        }
        (counts, lines, panics)
    }

    /// The report, and for a run that was not good the logs.
    fn keep(&self, report: &Report) {
        let dir = &self.plan.dir;
        std::fs::write(dir.join("report.json"), serde_json::to_string_pretty(report).unwrap()).unwrap();
        std::fs::write(dir.join("report.txt"), report.to_string()).unwrap();
        if !report.is_good() {
            for (n, node) in self.nodes.iter().enumerate() {
                for log in node.logs() {
                    let name = log.file_name().unwrap().to_string_lossy().into_owned();
                    std::fs::copy(&log, dir.join(format!("node-{n}.{name}"))).unwrap();
                }
            }
        }
    }
}

/// Level, target and message of a warning or an error, without its fields.
fn words(line: &str) -> Option<String> {
    let level = ["ERROR", "WARN"].into_iter().find(|level| line.contains(&format!(" {level} ")))?;
    let said = line.split_once(&format!(" {level} "))?.1.trim();
    // From the first field, the first name of an AWS operation or the first id on it is another line each time.
    let own = |word: &&str| !word.contains('=') && !word.starts_with("kms:") && !word.starts_with('(');
    let words: Vec<&str> = said.split_whitespace().take_while(own).collect();
    Some(format!("{level} {}", words.join(" ")))
}
