//! Takes from this process what it does not need: core dumps, being traced, new privileges, files that others may read.
//!
//! Guarantees: every step is tried, read back from the kernel where it can be, and reported; none is fatal, because a
//! plugin that does not start takes the control plane down. Refuses to know: configuration. SPEC: SECURITY.md; prctl(2),
//! setrlimit(2), core(5).

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use std::io;

/// Permission bits that files never get unless their writer asks for them.
const UMASK: u32 = 0o077;

/// One step, and what came of it.
#[derive(Debug)]
pub struct HardeningStep {
    /// What it is about: stable, kebab-case.
    pub name: &'static str,
    /// What holds now, in words for the log, or why it could not be reached.
    pub outcome: io::Result<String>,
}

impl HardeningStep {
    fn new(name: &'static str, outcome: io::Result<String>) -> Self {
        Self { name, outcome }
    }

    /// Whether it holds.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.outcome.is_ok()
    }
}

/// Hardens the process, before it reads a secret.
///
/// To be called before there are other threads: no_new_privs belongs to a thread, and those that come later inherit it.
#[must_use]
pub fn harden() -> Vec<HardeningStep> {
    vec![
        HardeningStep::new("core-limit", no_core()),
        HardeningStep::new("not-dumpable", not_dumpable()),
        HardeningStep::new("no-new-privs", no_new_privs()),
        HardeningStep::new("umask", umask()),
    ]
}

/// Raises the limit on locked memory to the hard one: data keys are on locked pages.
#[must_use]
pub fn raise_memlock() -> HardeningStep {
    HardeningStep::new("memlock-limit", raise(Resource::Memlock))
}

/// Raises the limit on file descriptors to the hard one: every connection needs one.
#[must_use]
pub fn raise_nofile() -> HardeningStep {
    HardeningStep::new("nofile-limit", raise(Resource::Nofile))
}

fn no_core() -> io::Result<String> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)?;
    confirm(rustix::process::getrlimit(Resource::Core) == none, "no core files")
}

/// SECURITY: stops core dumps also where a core handler ignores the limit (a pipe in core_pattern), and keeps other
/// processes of the same user from attaching to this one or reading its memory.
fn not_dumpable() -> io::Result<String> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let now = rustix::process::dumpable_behavior()?;
    confirm(now == DumpableBehavior::NotDumpable, "no dumps, no tracing by the same user")
}

fn no_new_privs() -> io::Result<String> {
    rustix::thread::set_no_new_privs(true)?;
    confirm(rustix::thread::no_new_privs()?, "no program that is run from here gains privileges")
}

fn umask() -> io::Result<String> {
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    // The only way to read it is to set it.
    let now = rustix::process::umask(Mode::from_raw_mode(UMASK));
    confirm(now.as_raw_mode() == UMASK, "new files are for this user only")
}

fn raise(resource: Resource) -> io::Result<String> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(resource);
    if current != maximum {
        rustix::process::setrlimit(resource, Rlimit { current: maximum, maximum })?;
    }
    let now = rustix::process::getrlimit(resource).current;
    confirm(now == maximum, &format!("{} (was {})", in_words(now), in_words(current)))
}

fn in_words(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string())
}

fn confirm(holds: bool, what: &str) -> io::Result<String> {
    if holds { Ok(what.to_owned()) } else { Err(io::Error::other("the kernel took the setting but does not show it")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other steps would change the test process for good; tests/process looks at the running binary.
    #[test]
    fn limits_are_raised_to_what_is_allowed_and_say_so() {
        for (step, resource) in [(raise_nofile(), Resource::Nofile), (raise_memlock(), Resource::Memlock)] {
            let now = rustix::process::getrlimit(resource);
            assert_eq!(now.current, now.maximum, "{step:?}");
            assert!(step.holds() && step.outcome.unwrap().starts_with(&in_words(now.current)));
        }
    }

    #[test]
    fn a_setting_that_does_not_show_is_a_failure() {
        assert!(confirm(false, "x").is_err());
        assert_eq!(in_words(None), "unlimited");
    }
}
