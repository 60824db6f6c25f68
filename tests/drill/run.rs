//! One drill, in a temporary directory of its own, and what it left there.

use crate::support::site::{KMSCTL, PATIENCE, Site};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A drill that has ended.
pub struct Drill {
    pub status: i32,
    pub report: Value,
    pub out: String,
    pub err: String,
}

/// Where sandboxes are made: `TMPDIR` of the drills of this site.
pub fn sandboxes(site: &Site) -> PathBuf {
    let path = site.dir().join("t");
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// `drill rehearse` with these arguments, not started yet.
pub fn command(site: &Site, arguments: &[&str]) -> Command {
    let mut all = vec!["drill", "rehearse"];
    all.extend(arguments);
    let mut command = site.process(KMSCTL, &all);
    command.env("TMPDIR", sandboxes(site));
    command
}

/// `drill rehearse --output json` to its end; nothing of it may be left.
pub fn drill(site: &Site, arguments: &[&str]) -> Drill {
    let mut all = vec!["--output", "json"];
    all.extend(arguments);
    let Output { status, stdout, stderr } = command(site, &all).output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    nothing_is_left(site);
    let report = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}\n{out}\n{err}"));
    Drill { status: status.code().unwrap(), report, out, err }
}

impl Drill {
    /// The verdict of claim `4.2`.
    pub fn verdict(&self, number: &str) -> &str {
        self.claim(number)["verdict"].as_str().unwrap()
    }

    pub fn claim(&self, number: &str) -> &Value {
        self.claims().find(|claim| claim["number"] == number).unwrap_or_else(|| panic!("no claim {number}"))
    }

    pub fn claims(&self) -> impl Iterator<Item = &Value> {
        self.report["steps"].as_array().unwrap().iter().flat_map(|step| step["claims"].as_array().unwrap())
    }

    /// The verdict of a step, by its number.
    pub fn step(&self, number: usize) -> &str {
        self.report["steps"][number - 1]["verdict"].as_str().unwrap()
    }

    pub fn steps(&self) -> Vec<&str> {
        self.report["steps"].as_array().unwrap().iter().map(|step| step["verdict"].as_str().unwrap()).collect()
    }

    /// What did not hold, for a message.
    pub fn failed(&self) -> String {
        let failed = self.claims().filter(|claim| claim["verdict"] == "did not hold");
        failed.map(|c| format!("{} {}: {}\n", c["number"], c["claim"], c["detail"])).collect()
    }

    /// Exactly these claims, and no others, were not held.
    pub fn held_but(&self, others: &[(&str, &str)]) {
        let seen: Vec<(&str, &str)> = self
            .claims()
            .map(|claim| (claim["number"].as_str().unwrap(), claim["verdict"].as_str().unwrap()))
            .filter(|(_, verdict)| *verdict != "held")
            .collect();
        assert_eq!(seen, others, "{}\n{}", self.failed(), self.err);
    }
}

/// No sandbox, and no process that was started in one.
pub fn nothing_is_left(site: &Site) {
    let path = sandboxes(site);
    let left: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_in(&path), Vec::<String>::new());
}

/// The command lines of processes that name this directory.
pub fn processes_in(path: &Path) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(path.to_str().unwrap())).collect()
}

/// Waits until this holds, for as long as a step may take.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE * 2, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
