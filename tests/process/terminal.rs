//! A plugin that was started from a terminal, as `make run` is.

use crate::support::site::{BINARY, Site};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::os::fd::OwnedFd;

/// Both ends of a terminal.
fn terminal() -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs =
        rustix::fs::openat(CWD, &*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    (ours, theirs)
}

#[tokio::test]
async fn it_ends_when_its_terminal_is_closed_and_on_sighup_and_says_why() {
    for is_closed in [true, false] {
        let site = Site::local();
        let config = site.write_config();
        let (ours, theirs) = terminal();
        // The terminal is the controlling one, so that the kernel says that it was closed.
        let command = ["--ctty", BINARY, "serve", "--config", config.to_str().unwrap()];
        let mut running = site.run(site.process("setsid", &command).stdin(theirs));
        running.until_ok().await;
        if is_closed {
            drop(ours);
        } else {
            running.signal(Signal::HUP);
        }
        assert!(running.wait().await.success());
        let said = running.log();
        assert!(said.contains("SIGHUP, and a terminal is at stdin or stderr") && said.contains("stopped"), "{said}");
        assert!(!site.socket().exists(), "an end in order");
    }
}
