//! A disk whose fsync does not come back, under the real binary.

use crate::support::site::{ALIAS, PATIENCE, Site};
use crate::support::skip::skipped;
use crate::support::stall::Shim;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_disk_that_stalls_delays_neither_the_start_nor_a_rotation_nor_the_notice_of_a_dead_kek() {
    let name = "a_disk_that_stalls_delays_neither_the_start_nor_a_rotation_nor_the_notice_of_a_dead_kek";
    let Some(shim) = Shim::build() else { return skipped(name, "no C compiler") };
    let mut site = Site::aws();
    let stalls = site.dir().join("stalls");
    std::fs::write(&stalls, "").unwrap();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    shim.under(&mut site, &stalls);
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
}
