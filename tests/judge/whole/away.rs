//! The plugin gone and back, and gone for longer than writes live; the KMS gone while everything restarts.

use super::{WIDGETS, Whole};
use crate::judge::away::{BACK_AFTER_MINUTES, UNREADY_WITHIN};
use crate::judge::live::served;
use crate::judge::shadow::times;
use crate::support::fake_kms::FakeKms;
use crate::support::site::{ALIAS, BINARY, Site};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_plugin_that_is_killed_and_back_costs_a_whole_api_server_nothing_but_readiness() {
    let test = "a_plugin_that_is_killed_and_back_costs_a_whole_api_server_nothing_but_readiness";
    let site = Site::local();
    let running = site.start().await;
    let Some(whole) = Whole::start(test, &site).await else { return };
    whole.write("before");
    whole.read_all().await;
    running.kill();
    whole.write("without");
    let began = Instant::now();
    while whole.readyz().await.is_ok() {
        assert!(began.elapsed() < UNREADY_WITHIN, "still ready");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(whole.api.try_api("GET", "/livez", None).0, 200, "it is not ready, and it lives");
    whole.write("unready");
    whole.read_all().await;
    let again = site.start().await;
    whole.sim.plugin_restarted();
    whole.until_ready(Duration::from_secs(60)).await;
    whole.write("after");
    whole.read_all().await;
    assert_eq!(served(&again, "Encrypt").await, 0, "the key_id is the same, and so is the seed");
    assert_eq!(times(&whole.agree(), "Encrypt", "OK"), 1);
}

/// Called beside the drivers, which wait for the same three minutes.
pub async fn dead_for_three_minutes(test: &'static str) {
    let site = Site::local();
    let running = site.start().await;
    let began = Instant::now();
    let Some(whole) = Whole::start(test, &site).await else { return };
    let loading = began.elapsed();
    whole.write("before");
    running.kill();
    let mut stopped = [None, None];
    for n in 0.. {
        for (who, written) in whole.try_write(&format!("coasting-{n}")).into_iter().enumerate() {
            match written {
                Err(error) => {
                    assert!(error.contains("expired at"), "{error}");
                    stopped[who].get_or_insert_with(|| began.elapsed());
                }
                Ok(_) => assert!(stopped[who].is_none(), "it writes again by itself"),
            }
        }
        if stopped.iter().all(Option::is_some) {
            break;
        }
        assert!(began.elapsed() < loading + Duration::from_secs(190), "writes never stopped: {stopped:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let [real, sim] = stopped.map(Option::unwrap);
    let minutes = Duration::from_secs(180)..Duration::from_secs(183) + loading;
    assert!(minutes.contains(&real) && minutes.contains(&sim), "real {real:?}, simulator {sim:?}, not {minutes:?}");
    whole.readyz().await.unwrap_err();
    // Reads go on, from memory, and so does an update that changes nothing.
    let before = format!("{WIDGETS}/before");
    let object = whole.api.api("GET", &before, None);
    whole.api.api("PUT", &before, Some(&object));
    let again = site.start().await;
    whole.sim.plugin_restarted();
    whole.until_ready(BACK_AFTER_MINUTES).await;
    whole.write("after");
    whole.read_all().await;
    assert_eq!(served(&again, "Encrypt").await, 0, "the same seed is revived");
    let (real, _) = whole.so_far();
    assert_eq!(times(&real, "Encrypt", "OK"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_whole_api_server_restarts_while_the_kms_is_away_and_reads_everything() {
    let test = "a_whole_api_server_restarts_while_the_kms_is_away_and_reads_everything";
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let Some(mut whole) = Whole::start(test, &site).await else { return };
    whole.write("before");
    site.kms().stop();
    running.until_log("the probe of the KEK failed").await;
    whole.restart().await;
    whole.until_served();
    whole.readyz().await.unwrap();
    // INVARIANT: the plugin has kept its DEK, so nothing of this needs the KMS.
    whole.read_all().await;
    whole.write("during");
    whole.read_all().await;
    let rpcs = whole.agree();
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 2, "{rpcs:?}");
    site.kms().start_again();
    running.until_ok().await;
    whole.read_all().await;
}

/// The whole node restarts and the KMS is away: the API server needs a seed wrapped before it reads anything, so reading
/// waits for a KMS that may wrap. The recovery KEK is one, as soon as the operator says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_node_that_restarts_while_the_kms_is_gone_reads_everything_once_the_recovery_kek_writes() {
    let test = "a_node_that_restarts_while_the_kms_is_gone_reads_everything_once_the_recovery_kek_writes";
    let mut site = Site::aws();
    let spare = FakeKms::start_in("us-west-2");
    spare.create_key(ALIAS);
    let kek = format!("{{aws: {{key: {ALIAS}, region: us-west-2, endpoint: '{}'}}}}", spare.url());
    site.set(&format!("recovery: {{keks: [{kek}]}}\nprobe: {{interval: 1s, timeout: 900ms}}"));
    let running = site.start().await;
    let old = running.until_ok().await;
    let Some(mut whole) = Whole::start(test, &site).await else { return };
    for n in 0..5 {
        whole.write(&format!("before-{n}"));
    }
    site.kms().stop();
    running.kill();
    let stranded = site.spawn();
    stranded.until_log("listening").await;
    whole.restart().await;
    whole.readyz().await.unwrap_err();
    let (status, body) = whole.api.try_api("GET", &format!("{WIDGETS}/before-0"), None);
    assert_ne!(status, 200, "no seed, no reads: {body}");
    for refused in whole.try_write("stranded") {
        refused.unwrap_err();
    }
    assert!(stranded.stop().await.success());
    // The way out: the recovery KEK becomes the one that writes.
    let config = site.write_raw_config(&format!(
        "listen: {{socket: {}}}\nstateDir: {}\nkek: {kek}\nrecovery: {{breakGlass: true}}\nhttp: {{listen: none}}\n\
         probe: {{interval: 1s, timeout: 900ms}}\n",
        site.socket().display(),
        site.dir().join("state").display()
    ));
    let moved = site.run(&mut site.process(BINARY, &["serve", "--config", config.to_str().unwrap()]));
    let new = moved.until_ok().await;
    assert_ne!(new, old);
    whole.until_ready(Duration::from_secs(60)).await;
    whole.until_served();
    whole.read_all().await;
    whole.rewrite_all().await;
    let in_use: Vec<_> = whole.in_use()[0].iter().map(|under| under.clone().unwrap().1).collect();
    assert_eq!(in_use, [new]);
    whole.read_all().await;
}
