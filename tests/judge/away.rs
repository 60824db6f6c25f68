//! The plugin gone and back; the key disabled for longer than writes live; the KMS gone while the API server restarts.

use super::live::served;
use super::pair::Pair;
use super::scenarios;
use super::shadow::times;
use super::whole::dead_for_three_minutes;
use crate::support::apiserver_go::Release;
use crate::support::fake_kms::FakeKms;
use crate::support::site::{ALIAS, Site};
use std::time::{Duration, Instant};

scenarios! {
    a_plugin_that_is_killed_and_back_costs_the_real_api_server_nothing_but_readiness: killed;
    writes_of_the_real_api_server_stop_three_minutes_after_the_key_was_disabled_and_come_back: expired;
    the_real_api_server_restarts_while_the_kms_is_away_and_reads_everything: kms_away;
    the_real_api_server_goes_on_reading_by_the_recovery_kek_when_plugin_and_kms_are_lost: stranded;
}

/// The three minutes of both drivers and of the whole API server pass at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_plugin_dead_for_three_minutes_stops_writes_and_never_reads_and_comes_back_without_a_new_seed() {
    const TEST: &str = "a_plugin_dead_for_three_minutes_stops_writes_and_never_reads_and_comes_back_without_a_new_seed";
    let whole = tokio::spawn(dead_for_three_minutes(TEST));
    super::on_every_release(TEST, dead).await;
    whole.await.unwrap();
}

/// The backoff of grpc-go after three minutes is 69 s, with a fifth more or less. A bad result, and this machine.
pub const BACK_AFTER_MINUTES: Duration = Duration::from_secs(69 + 14 + 3 + 34);

/// How long a good result of the health check is kept, a failing Status, and a slow machine.
pub const UNREADY_WITHIN: Duration = Duration::from_secs(20 + 3 + 7);

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

async fn dead(release: Release) {
    let site = Site::local();
    let running = site.start().await;
    let began = Instant::now();
    let pair = Pair::start(release, &site).await;
    let loading = began.elapsed();
    let all = pair.write("before").await;
    pair.read(&all, false).await;
    running.kill();
    until_writes_stop(&pair, began, loading).await;
    pair.readyz().await.unwrap_err();
    pair.read(&all, false).await;
    let again = site.start().await;
    pair.sim.plugin_restarted();
    pair.until_ready(BACK_AFTER_MINUTES).await;
    let after = pair.write("after").await;
    pair.read(&[all, after].concat(), false).await;
    assert_eq!(served(&again, "Encrypt").await, 0, "the same seed is revived");
    let rpcs = pair.agree_on_successes().await;
    assert_eq!((times(&rpcs, "Encrypt", "OK"), times(&rpcs, "Decrypt", "OK")), (1, 1));
}

/// Writes until neither writes any more, which must be three minutes after the last good Status: the one at load, of each its
/// own. Nobody asks for the health: the loops alone.
async fn until_writes_stop(pair: &Pair, began: Instant, loading: Duration) {
    let mut stopped = [None, None];
    // A machine that is busy asks seldom, and so learns late.
    let (mut asked, mut seldom) = (began.elapsed(), Duration::ZERO);
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
        seldom = seldom.max(began.elapsed() - asked);
        asked = began.elapsed();
        assert!(asked < loading + Duration::from_secs(190) + seldom, "writes never stopped: {stopped:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let [real, sim] = stopped.map(Option::unwrap);
    let minutes = Duration::from_secs(180)..Duration::from_secs(181) + loading + seldom;
    assert!(minutes.contains(&real) && minutes.contains(&sim), "real {real:?}, simulator {sim:?}, not {minutes:?}");
}

/// The plugin is there, and says that its KEK is dead: the one other case in which writes must stop.
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
    until_writes_stop(&pair, began, loading).await;
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

/// The plugin restarts without its KMS, and only a recovery KEK still opens. An API server that runs goes on; one that starts
/// needs a seed wrapped before it reads anything, and waits for the KMS.
async fn stranded(release: Release) {
    let mut site = Site::aws();
    let spare = FakeKms::start_in("us-west-2");
    spare.create_key(ALIAS);
    let kek = format!("{{aws: {{key: {ALIAS}, region: us-west-2, endpoint: '{}'}}}}", spare.url());
    site.set(&format!("recovery: {{keks: [{kek}]}}\nprobe: {{interval: 1s, timeout: 900ms}}"));
    let running = site.start().await;
    let mut pair = Pair::start(release, &site).await;
    let mut all = pair.write("before").await.to_vec();
    site.kms().stop();
    running.kill();
    let again = site.spawn();
    again.until_log("listening").await;
    pair.sim.plugin_restarted();
    // Nobody has read the other's yet: this takes a Decrypt of each, and the plugin has only the recovery KEK for it.
    pair.read(&all, false).await;
    again.until_log("dek=recovered").await;
    all.extend(pair.write("coasting").await);
    pair.read(&all, false).await;
    pair.restart().await;
    pair.readyz().await.unwrap_err();
    for refused in pair.try_write("stranded").await {
        assert!(refused.unwrap_err().contains("got unexpected nil transformer"));
    }
    let (key, value) = (&all[0].key, &all[0].value);
    assert!(pair.real.read(&[(key, value)]).await[0].as_ref().unwrap_err().contains("got unexpected nil transformer"));
    pair.sim.read(key, value).await.unwrap_err();
    site.kms().start_again();
    again.until_ok().await;
    pair.until_ready(Duration::from_secs(20)).await;
    pair.read(&all, false).await;
    let after = pair.write("after").await;
    pair.read(&after, false).await;
    pair.agree_on_successes().await;
}
