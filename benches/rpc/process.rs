//! A server under measurement: a process pinned to one core, and what the kernel says it has used.
//!
//! Guarantees: killed and gone when it is dropped. CPU time is the scheduler's own, in nanoseconds, of all its threads, those
//! of the log included; where the kernel keeps none, it is that of /proc/PID/stat in ticks of 10 ms.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the servers run, and the client when it has a core of its own.
pub const SERVER_CORE: usize = 0;
pub const CLIENT_CORE: usize = 1;

/// Pins this thread, and what it starts from now on.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// What a process has used since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub cpu: Duration,
    /// Times a thread of it was taken from its core, or gave it up.
    pub switches: u64,
}

/// See the module.
pub struct Process(Child);

impl Process {
    /// Starts it on the servers' core and waits until its socket is there.
    pub fn start(command: &mut Command, socket: &Path) -> io::Result<Self> {
        pin(SERVER_CORE)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut process = Self(child?);
        let began = Instant::now();
        while !socket.exists() {
            if let Some(status) = process.0.try_wait()? {
                return Err(io::Error::other(format!("{command:?} ended: {status}")));
            }
            if began.elapsed() > Duration::from_secs(10) {
                return Err(io::Error::other(format!("{command:?} does not listen")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(process)
    }

    /// What it has used.
    pub fn used(&self) -> io::Result<Used> {
        let mut used = Used::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let task = task?.path();
            // A thread may end between the listing and the look.
            let (Ok(times), Ok(status)) =
                (fs::read_to_string(task.join("schedstat")), fs::read_to_string(task.join("status")))
            else {
                continue;
            };
            used.cpu += Duration::from_nanos(times.split(' ').next().and_then(|t| t.parse().ok()).unwrap_or(0));
            used.switches +=
                number(&status, "voluntary_ctxt_switches:") + number(&status, "nonvoluntary_ctxt_switches:");
        }
        if used.cpu.is_zero() {
            used.cpu = self.ticks()?;
        }
        Ok(used)
    }

    fn ticks(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: u64 = after.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// Resident memory in KiB.
    pub fn rss(&self) -> io::Result<u64> {
        Ok(number(&fs::read_to_string(format!("/proc/{}/status", self.0.id()))?, "VmRSS:"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn number(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
