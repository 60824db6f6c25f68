//! The plugin gone and back; the key disabled for longer than writes live; the KMS gone while the API server restarts.

use super::live::served;
use super::pair::Pair;
use super::scenarios;
use super::shadow::times;
use crate::support::apiserver_go::Release;
use crate::support::site::{ALIAS, Site};
use std::time::{Duration, Instant};

scenarios! {
    a_plugin_that_is_killed_and_back_costs_the_real_api_server_nothing_but_readiness: killed;
    writes_of_the_real_api_server_stop_three_minutes_after_the_key_was_disabled_and_come_back: expired;
    the_real_api_server_restarts_while_the_kms_is_away_and_reads_everything: kms_away;
}

/// How long a good result of the health check is kept, a failing Status, and a slow machine.
const UNREADY_WITHIN: Duration = Duration::from_secs(20 + 3 + 7);

async fn killed(release: Release) {
    let site = Site::local();
    let running = site.start().await;
    let pair = Pair::start(release, &site).await;
    let mut all = pair.write("before").await.to_vec();
    pair.read(&all, false).await;
    running.kill();
    all.extend(pair.write("without").await);
    pair.until_unready(UNREADY_WITHIN).await;
    all.extend(pair.write("unready").await);
    pair.read(&all, false).await;
    let again = site.start().await;
    pair.sim.plugin_restarted();
    pair.until_ready(Duration::from_secs(60)).await;
    pair.read(&all, false).await;
    assert_eq!(served(&again, "Encrypt").await, 0, "the key_id is the same, and so is the seed");
    let rpcs = pair.agree_on_successes().await;
    assert_eq!((times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK")), (1, 1));
}

/// The plugin is there, and says that its KEK is dead: the one case in which writes must stop.
async fn expired(release: Release) {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let began = Instant::now();
    let pair = Pair::start(release, &site).await;
    let loading = began.elapsed();
    let all = pair.write("before").await;
    pair.read(&all, false).await;
    site.kms().disable(ALIAS);
    running.until_status(|answer| answer.is_err()).await.unwrap_err();
    // Nobody asks for the health: the loops alone.
    let mut stopped = [None, None];
    while stopped.iter().any(Option::is_none) {
        for (who, written) in pair.try_write("coasting").await.into_iter().enumerate() {
            match written {
                Err(error) => {
                    assert!(error.contains("expired at"), "{error}");
                    stopped[who].get_or_insert_with(|| began.elapsed());
                }
                Ok(_) => assert!(stopped[who].is_none(), "it writes again by itself"),
            }
        }
        assert!(began.elapsed() < loading + Duration::from_secs(190), "writes never stopped: {stopped:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let [real, sim] = stopped.map(Option::unwrap);
    // The last good Status was the one at load, of each its own.
    let minutes = Duration::from_secs(180)..Duration::from_secs(181) + loading;
    assert!(minutes.contains(&real) && minutes.contains(&sim), "real {real:?}, simulator {sim:?}, not {minutes:?}");
    pair.readyz().await.unwrap_err();
    // Reads go on, from memory.
    pair.read(&all, false).await;
    let rpcs = pair.agree().await;
    assert!(times(&rpcs, "Status", "FailedPrecondition") >= 12, "{rpcs:?}");
    site.kms().enable(ALIAS);
    running.until_ok().await;
    pair.until_ready(Duration::from_secs(20)).await;
    let after = pair.write("after").await;
    pair.read(&after, false).await;
    pair.read(&all, false).await;
    let rpcs = pair.agree().await;
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 1, "the same seed is revived");
}

async fn kms_away(release: Release) {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let mut pair = Pair::start(release, &site).await;
    let mut all = pair.write("before").await.to_vec();
    site.kms().stop();
    running.until_log("the probe of the KEK failed").await;
    let calls = site.kms().total_calls();
    pair.restart().await;
    pair.readyz().await.unwrap();
    // INVARIANT: the plugin has kept its DEK, so nothing of this needs the KMS.
    pair.read(&all, false).await;
    all.extend(pair.write("during").await);
    pair.read(&all, false).await;
    let rpcs = pair.agree().await;
    assert_eq!((times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK")), (2, 3), "{rpcs:?}");
    assert_eq!(site.kms().total_calls(), calls, "the KMS was not asked");
    site.kms().start_again();
    running.until_ok().await;
    pair.read(&all, false).await;
}
