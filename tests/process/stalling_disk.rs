//! A disk whose fsync does not come back, under the real binary: by a library that is loaded before the C library's.

use crate::support::site::{ALIAS, PATIENCE, Site};
use crate::support::skip::{skipped, target_dir};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int fsync(int fd) {
    struct timespec a_while = {0, 50000000};
    const char *stalls = getenv("STALLS_WHILE_THERE_IS");
    while (stalls && access(stalls, F_OK) == 0) nanosleep(&a_while, 0);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}
"#;

/// The library, built with the C compiler of this machine.
fn shim() -> Option<PathBuf> {
    let (source, library) =
        (target_dir().join("stall.c"), target_dir().join(format!("stall.{}.so", std::process::id())));
    std::fs::write(&source, SHIM).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
    built.is_ok_and(|status| status.success()).then_some(library)
}

#[tokio::test]
async fn a_disk_that_stalls_delays_neither_the_start_nor_a_rotation_nor_the_notice_of_a_dead_kek() {
    let name = "a_disk_that_stalls_delays_neither_the_start_nor_a_rotation_nor_the_notice_of_a_dead_kek";
    let Some(shim) = shim() else { return skipped(name, "no C compiler") };
    let mut site = Site::aws();
    let stalls = site.dir().join("stalls");
    std::fs::write(&stalls, "").unwrap();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    site.env("LD_PRELOAD", shim.to_str().unwrap()).env("STALLS_WHILE_THERE_IS", stalls.to_str().unwrap());
    let running = site.spawn();
    let first = running.until_ok().await;
    running.until_log("the disk under the state file stalls; going on without it").await;
    site.kms().rotate(ALIAS);
    let moved = running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != first)).await.unwrap().key_id;
    site.kms().disable(ALIAS);
    let began = Instant::now();
    while !running.http("/readyz").await.1.contains("state=revoked ") {
        assert!(began.elapsed() < PATIENCE, "{}", running.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.kms().enable(ALIAS);
    assert_eq!(running.until_ok().await, moved);
    assert!(!site.state_file().exists(), "it does stall");
    std::fs::remove_file(&stalls).unwrap();
    running.until_log("the state file is written again").await;
    let text = std::fs::read_to_string(site.state_file()).unwrap();
    assert!(text.contains(&moved) && text.contains(&first), "{text}");
    assert!(running.stop().await.success());
    std::fs::remove_file(shim).unwrap();
}
