//! Memory and file descriptors of the plugins, second by second, and whether they stay flat.
//!
//! Guarantees: only what one process was over a time without a restart is judged, with the first quarter left out (caches
//! fill, pools open, the allocator takes what it needs). Refuses to know why something grows.

use super::schedule::{NODES, is_steady};
use serde::Serialize;
use std::time::Duration;

/// KiB a minute that resident memory may grow. The clients make some 100 requests a second, 6,000 a minute: 170 bytes lost with
/// each request would be seen, which is less than any request allocates. The allocator's own unrest is an order below it.
const RSS_PER_MINUTE: f64 = 1024.0;
/// File descriptors a minute. A connection lost with each weather, probe or reload would be more.
const FDS_PER_MINUTE: f64 = 1.0;
/// File descriptors that may come and go: the idle connections to the KMS, of which a burst opens several.
const FDS_UNREST: u64 = 6;
/// A shorter time says nothing about minutes.
const JUDGED_FROM: Duration = Duration::from_secs(90);

/// One look at one process.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: Duration,
    pub pid: u32,
    pub rss_kib: u64,
    pub fds: u64,
    pub threads: u64,
}

/// What became of one process in its steady time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Course {
    pub node: usize,
    pub seconds: u64,
    #[serde(rename = "rssKibFirst")]
    pub rss_first: u64,
    #[serde(rename = "rssKibLast")]
    pub rss_last: u64,
    #[serde(rename = "rssKibMost")]
    pub rss_most: u64,
    pub rss_per_minute: f64,
    pub fds_first: u64,
    pub fds_last: u64,
    pub fds_most: u64,
    pub fds_per_minute: f64,
    pub threads_most: u64,
    pub judged: bool,
    pub flat: bool,
}

/// One of its numbers.
type Of = fn(&Sample) -> u64;

/// Looks; `None` when there is no such process.
pub fn look(at: Duration, pid: u32) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(Sample { at, pid, rss_kib: number("VmRSS:")?, fds, threads: number("Threads:")? })
}

/// The course of each node's process over its steady half.
pub fn courses(samples: &[Vec<Sample>; NODES], length: Duration) -> Vec<Course> {
    let of_node = |(node, samples): (usize, &Vec<Sample>)| {
        let steady = |s: &&Sample| is_steady(node, s.at, length) && s.at < length;
        let pid = samples.iter().rfind(steady)?.pid;
        let own: Vec<Sample> = samples.iter().filter(steady).filter(|s| s.pid == pid).copied().collect();
        course(node, &own)
    };
    samples.iter().enumerate().filter_map(of_node).collect()
}

fn course(node: usize, samples: &[Sample]) -> Option<Course> {
    let judged = samples.get(samples.len() / 4..).filter(|s| s.len() >= 4)?;
    let time = judged[judged.len() - 1].at - judged[0].at;
    let most = |of: Of| judged.iter().map(of).max().unwrap_or(0);
    let (rss, fds): (Of, Of) = (|s| s.rss_kib, |s| s.fds);
    let (rss_first, rss_last) = (median(&judged[..judged.len() / 4], rss), median(tail(judged), rss));
    let (fds_first, fds_last) = (median(&judged[..judged.len() / 4], fds), median(tail(judged), fds));
    // The middles of the first and of the last quarter are three quarters of the time apart.
    let minutes = time.as_secs_f64() / 60.0 * 0.75;
    let slope = |first: u64, last: u64| (last as f64 - first as f64) / minutes;
    let (rss_per_minute, fds_per_minute) = (slope(rss_first, rss_last), slope(fds_first, fds_last));
    Some(Course {
        node,
        seconds: time.as_secs(),
        rss_first,
        rss_last,
        rss_most: most(rss),
        rss_per_minute,
        fds_first,
        fds_last,
        fds_most: most(fds),
        fds_per_minute,
        threads_most: most(|s| s.threads),
        judged: time >= JUDGED_FROM,
        flat: rss_per_minute < RSS_PER_MINUTE
            && (fds_per_minute < FDS_PER_MINUTE || fds_last <= fds_first + FDS_UNREST),
    })
}

fn tail(samples: &[Sample]) -> &[Sample] {
    &samples[samples.len() - samples.len() / 4..]
}

fn median(samples: &[Sample], of: Of) -> u64 {
    let mut all: Vec<u64> = samples.iter().map(of).collect();
    all.sort_unstable();
    all[all.len() / 2]
}

/// Children of ours, and of these processes, that ended and were not waited for.
pub fn zombies(pids: &[u32]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // SPEC: proc(5): pid (comm) state ppid …, and comm may hold anything.
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let pid = head.split(' ').next().and_then(|pid| pid.parse::<u32>().ok());
        let parent = fields.get(1).and_then(|parent| parent.parse::<u32>().ok());
        let ours = [pid, parent].into_iter().flatten().any(|one| pids.contains(&one));
        if fields.first() == Some(&"Z") && ours {
            found.push(format!("{head}) of {parent:?}"));
        }
    }
    found
}

#[test]
fn a_leak_of_memory_or_of_descriptors_is_seen_and_a_start_and_unrest_are_not() {
    fn made_up(rss_growth: u64, fd_every: u64) -> Vec<Sample> {
        // The first minute grows as a process does that has just started.
        let sample = |n: u64| Sample {
            at: Duration::from_secs(n),
            pid: 1,
            rss_kib: 20_000 + 100 * n.min(60) + n * rss_growth / 60 + n % 7 * 30,
            fds: 30 + n % 3 + n.checked_div(fd_every).unwrap_or(0),
            threads: 8,
        };
        (0..300).map(sample).collect()
    }
    let flat = course(0, &made_up(0, 0)).unwrap();
    assert!(flat.judged && flat.flat, "{flat:?}");
    assert!(!course(0, &made_up(1500, 0)).unwrap().flat, "1.5 MiB a minute");
    assert!(!course(0, &made_up(0, 15)).unwrap().flat, "four descriptors a minute");
    assert!(!course(0, &made_up(0, 0)[..60]).unwrap().judged);
}
