//! What a process has used, as /proc tells it.
//!
//! Guarantees: nanoseconds of the scheduler, over all threads that are alive. Refuses to guess: a process that may not be
//! looked at, or a kernel that keeps no such count, is `None`. SPEC: proc(5).

use std::fs;
use std::time::Duration;

/// CPU time, context switches and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a core, of all threads.
    pub(crate) cpu: Duration,
    /// Times a thread left its core, of its own will or not.
    pub(crate) switches: u64,
    /// Resident memory now, in KiB.
    pub(crate) resident_kib: u64,
}

impl Usage {
    /// What this process has used since it began.
    #[must_use]
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let mut usage =
            Self { resident_kib: field(&read(format!("/proc/{pid}/status"))?, "VmRSS:")?, ..Self::default() };
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let task = task.path();
            // A thread may end between the listing and the look.
            let (Some(times), Some(status)) = (read(task.join("schedstat")), read(task.join("status"))) else {
                continue;
            };
            usage.cpu = usage.cpu.saturating_add(Duration::from_nanos(times.split(' ').next()?.parse().ok()?));
            let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"].map(|name| field(&status, name));
            usage.switches = switches.into_iter().flatten().fold(usage.switches, u64::saturating_add);
        }
        (!usage.cpu.is_zero()).then_some(usage)
    }

    /// What was used since `before`; the memory is that of now.
    #[must_use]
    pub(crate) const fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            switches: self.switches.saturating_sub(before.switches),
            resident_kib: self.resident_kib,
        }
    }
}

fn read(path: impl AsRef<std::path::Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_and_a_process_that_is_not_there_is_none() {
        let before = Usage::of(std::process::id()).unwrap();
        let spun: u64 = (0..30_000_000_u64).fold(0, |a, b| std::hint::black_box(a ^ b));
        std::hint::black_box(spun);
        let used = Usage::of(std::process::id()).unwrap().since(before);
        assert!(used.cpu > Duration::from_millis(1), "{used:?}");
        assert!(used.resident_kib > 1000, "{used:?}");
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
