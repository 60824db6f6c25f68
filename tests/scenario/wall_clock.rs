//! docs/conformance.md, item 30: the wall clock is set back and forward under a running plugin, and nothing that it decides
//! changes.
//!
//! A small library in front of libc's `clock_gettime` shifts CLOCK_REALTIME by what a file says. It is compiled by the C
//! compiler that a Rust toolchain links with; without one the test says so.

use super::socket::{QUICK, opens, until_state};
use crate::support::hand::{on_both_keks, rotate};
use crate::support::site::{Running, Site, sealed};
use crate::support::skipped;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, id, now);
    const char *path = getenv("SHIFTED_CLOCK");
    if (result != 0 || path == NULL || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return (int)result;
    char text[32] = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
        close(file);
    }
    return 0;
}
"#;

/// The library, or why there is none.
fn shim(dir: &Path) -> Result<PathBuf, String> {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let done = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    let done = done.map_err(|error| format!("no C compiler: {error}"))?;
    if done.status.success() { Ok(library) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

on_both_keks! {
    item_30_a_wall_clock_that_is_set_back_and_forward_changes_no_key_id_and_no_state: shifted;
}

const DAY: i64 = 86_400;

/// The year of the last line of the log.
fn year(running: &Running) -> i32 {
    running.log().lines().last().unwrap()[..4].parse().unwrap()
}

/// Wraps that the KEK was asked for: one for each probe.
async fn probes(running: &Running) -> u64 {
    let (_, page) = running.http("/metrics").await;
    let wraps = page.lines().filter(|l| l.starts_with("kube_kms_kek_calls_total") && l.contains("\"wrap\""));
    wraps.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

async fn shifted(mut site: Site) {
    let library = match shim(site.dir()) {
        Ok(library) => library,
        Err(why) => return skipped("item_30_a_wall_clock_that_is_set_back_and_forward", &why),
    };
    let shift = site.dir().join("shift");
    std::fs::write(&shift, "0").unwrap();
    site.env("LD_PRELOAD", library.to_str().unwrap()).env("SHIFTED_CLOCK", shift.to_str().unwrap());
    site.set(QUICK).set("outage: {grace: 1s, stopAfter: 2s}\ndek: {maxAge: 1m}");
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let mut values = vec![sealed(&mut running.client().await).await];
    running.until_log("listening").await;
    let now = year(&running);
    for days in [3650, -3650, 1, -1] {
        std::fs::write(&shift, (days * DAY).to_string()).unwrap();
        // Longer than the time after which an outage would stop writes, if one were seen.
        let probed = probes(&running).await;
        while probes(&running).await < probed + 3 {
            assert_eq!(running.until_ok().await, key_id, "{days} days");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until_state(&running, "ready").await;
        values.push(sealed(&mut running.client().await).await);
        if days.abs() > 365 {
            let is_shifted = || i64::from(year(&running) - now).signum() == days.signum();
            running.until("the clock was never shifted", is_shifted).await;
        }
        assert!(running.metric("kube_kms_dek_age_seconds").await < 60.0);
        opens(&running, &values).await;
    }
    assert_eq!(running.metric("kube_kms_write_state_published_total{rotated=\"false\"}").await as usize, 1);
    let log = running.settled_log().await;
    assert!(!log.contains("the probe of the KEK failed"), "{log}");
    // Restarted ten years ago, and rotated: still the same, and the next.
    running.kill();
    std::fs::write(&shift, (-3650 * DAY).to_string()).unwrap();
    let again = site.start().await;
    assert_eq!(again.until_ok().await, key_id);
    rotate(&site);
    let next = super::socket::moved(&again, &key_id).await;
    std::fs::write(&shift, "0").unwrap();
    assert_eq!(again.until_ok().await, next);
    opens(&again, &values).await;
}
