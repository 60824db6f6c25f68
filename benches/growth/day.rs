//! A day of a quiet cluster, played: is what the plugin holds after 24 hours what it held after the first?
//!
//! The plugin and its supervisor are those of the daemon, in this process and on paused time, with the KMS, the node and the
//! API server simulator of the tests' world. A Status a minute and a kubelet's probe a second; each hour the API server is
//! restarted, so it sends an Encrypt, writes one object and reads all that it has ever written; at noon the KEK is rotated.
//! What grows in the simulators counts as well. Not in it: connections and the log, which [`super::keyring`] has.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/scenario/world.rs"]
mod world;

use super::start::first_status;
use super::support::site::Site;
use super::{Plan, memory, met};
use kms_v2_client::plugin::Rpc;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use world::World;

const HOUR: Duration = Duration::from_secs(3600);
const HOURS: usize = 24;
/// What may have come or gone after a day, as a share of what a whole serving process has resident.
const FLAT: f64 = 0.05;

pub fn measure(plan: &Plan) -> Value {
    println!("a day on paused time: a Status a minute, each hour a new API server that reads all, one rotation");
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let hours = runtime.block_on(day());
    let (first, last) = (hours[0], hours[HOURS - 1]);
    let process = idle(plan);
    let grown = last as f64 - first as f64;
    let share = grown / process as f64;
    println!(
        "  {first} KiB of its own after an hour, {last} after {HOURS}, played in {:.0} s",
        began.elapsed().as_secs_f64()
    );
    println!(
        "  {grown:+} KiB is {:+.1} % of the {process} KiB of a process that serves; flat (± 5 %): {}",
        share * 100.0,
        met(share.abs() <= FLAT)
    );
    json!({"anonKibByHour": hours, "idleRssKib": process, "grownShare": share})
}

/// What this process has resident besides files, in KiB, after each hour.
async fn day() -> Vec<u64> {
    let world = World::new(24);
    let node = world.node(world::defaults());
    node.until("ready").await;
    let server = world.server(&node).await;
    let mut objects = Vec::new();
    let mut hours = Vec::with_capacity(HOURS);
    for hour in 0..HOURS {
        if hour == HOURS / 2 {
            world.kms.rotate();
        }
        world.play(&[&server], HOUR, |_| {}).await;
        server.restart().await;
        let key = format!("/registry/secrets/default/{hour}");
        objects.push((key.clone(), server.write(&key, key.as_bytes()).unwrap()));
        for (key, value) in &objects {
            assert_eq!(server.read(key, value).await.unwrap().plaintext.as_slice(), key.as_bytes());
        }
        hours.push(memory(std::process::id(), "RssAnon"));
    }
    let report = server.report();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    // Otherwise the day was not the one that is described.
    assert!(report.counts.calls(Rpc::Status) >= 24 * 60 && report.counts.calls(Rpc::Encrypt) >= 24);
    assert!(report.counts.calls(Rpc::Decrypt) >= 24 && node.snapshot().state == "ready");
    hours
}

/// KiB that `serve` has resident, idle, on the embedded KEK.
fn idle(plan: &Plan) -> u64 {
    let site = Site::local();
    let running = plan.serve(&site);
    first_status(&site.socket(), Instant::now());
    memory(running.pid(), "VmRSS")
}
