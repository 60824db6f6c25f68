//! The API server is half a minute ahead of its plugin: of its socket, or of the plugin's KMS.

use super::Whole;
use crate::judge::live::{AFTER_A_LATE_START, LATE};
use crate::judge::shadow::times;
use crate::support::site::{Running, Site};
use std::time::{Duration, Instant};

const TEST: &str = "a_whole_api_server_finds_a_plugin_that_comes_half_a_minute_late";

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_whole_api_server_finds_a_plugin_that_comes_half_a_minute_late() {
    let absent = tokio::spawn(async {
        let site = Site::local();
        let Some(whole) = Whole::start(TEST, &site).await else { return };
        late(whole, Some(&site), || None, AFTER_A_LATE_START).await;
    });
    let starting = tokio::spawn(async {
        let mut site = Site::aws();
        site.set("probe: {interval: 1s, timeout: 900ms}");
        site.kms().stop();
        let plugin = site.spawn();
        plugin.until_log("listening").await;
        let Some(whole) = Whole::start(TEST, &site).await else { return };
        let back = || {
            site.kms().start_again();
            Some(plugin)
        };
        // There is a connection, and no backoff: the plugin's probe, and a bad result that is kept for three seconds.
        late(whole, None, back, Duration::from_secs(20)).await;
    });
    absent.await.unwrap();
    starting.await.unwrap();
}

async fn late(whole: Whole, spawns: Option<&Site>, back: impl FnOnce() -> Option<Running>, patience: Duration) {
    let began = Instant::now();
    for refused in whole.try_write("too-early") {
        let refused = refused.unwrap_err();
        assert!(refused.contains("got unexpected nil transformer"), "{refused}");
    }
    while began.elapsed() < LATE {
        whole.readyz().await.unwrap_err();
        assert_eq!(whole.api.try_api("GET", "/livez", None).0, 200, "it is not ready, and it lives");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let _plugin = match spawns {
        Some(site) => Some(site.start().await),
        None => back(),
    };
    whole.until_ready(patience).await;
    let ids = whole.write("late");
    assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
    whole.read_all().await;
    let rpcs = whole.agree();
    assert_eq!((times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK")), (1, 0), "{rpcs:?}");
}
