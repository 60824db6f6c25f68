//! From exec to the first Status that says `ok`, and what the process takes then.

use super::frames::Wire;
use super::message::{STATUS, StatusResponse};
use super::support::fake_kms::ANY;
use super::support::site::Site;
use super::{Plan, median, memory, met};
use prost::Message;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two looks.
const LOOK: Duration = Duration::from_micros(200);

pub fn measure(plan: &Plan) -> Value {
    let tries = if plan.quick { 7 } else { 30 };
    println!("exec to the first good Status, {tries} tries");
    let local = tried(plan, "local KEK", tries, Site::local);
    let again = again(plan, tries);
    let aws = tried(plan, "AWS, a KMS of 1 ms", tries, || {
        let site = Site::aws();
        site.kms().set_latency(ANY, Duration::from_millis(1));
        site
    });
    let (median, rss) = (local["medianMs"].as_f64().unwrap(), aws["idleRssKib"].as_f64().unwrap() / 1024.0);
    println!("  first good Status, local: {median:.1} ms ≤ 20: {}", met(median <= 20.0));
    println!("  RSS idle, AWS and local provider on: {rss:.1} MiB ≤ 16: {}", met(rss <= 16.0));
    json!({"local": local, "localAgainMs": again, "aws": aws})
}

fn tried(plan: &Plan, name: &str, tries: usize, site: impl Fn() -> Site) -> Value {
    let (mut bound, mut good, mut rss, mut anonymous) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..tries {
        let site = site();
        let began = Instant::now();
        let running = plan.serve(&site);
        let (socket, status) = first_status(&site.socket(), began);
        bound.push(socket);
        good.push(status);
        std::thread::sleep(Duration::from_millis(50));
        rss.push(memory(running.pid(), "VmRSS") as f64);
        anonymous.push(memory(running.pid(), "RssAnon") as f64);
    }
    let (first, last) = (good.iter().copied().fold(f64::MAX, f64::min), good.iter().copied().fold(0.0, f64::max));
    let (bound, good, rss, anonymous) = (median(bound), median(good), median(rss), median(anonymous));
    println!(
        "  {name:<20} median {good:.1} ms ({first:.1} to {last:.1}), socket after {bound:.1} ms; \
         then {:.1} MiB resident, {:.1} of them its own",
        rss / 1024.0,
        anonymous / 1024.0
    );
    json!({"medianMs": good, "minMs": first, "maxMs": last, "socketMs": bound, "idleRssKib": rss, "idleAnonKib": anonymous})
}

/// With the state file of the run before, as after a reboot: the median in milliseconds.
fn again(plan: &Plan, tries: usize) -> f64 {
    let site = Site::local();
    let mut times = Vec::new();
    for turn in 0..=tries {
        let _ = std::fs::remove_file(site.socket());
        let began = Instant::now();
        let running = plan.serve(&site);
        let (_, good) = first_status(&site.socket(), began);
        if turn > 0 {
            times.push(good);
        }
        running.kill();
    }
    let good = median(times);
    println!("  local KEK, with the state file of the run before: median {good:.1} ms");
    good
}

/// Milliseconds until there is a socket, and until it says `ok`.
pub fn first_status(socket: &Path, began: Instant) -> (f64, f64) {
    let millis = || began.elapsed().as_secs_f64() * 1000.0;
    let mut bound = None;
    loop {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not become ready");
        if let Ok(mut wire) = Wire::connect(socket, STATUS, &[]) {
            bound.get_or_insert_with(millis);
            // Starting, it says so in words or refuses; the same connection goes on.
            while wire.call(Instant::now()).and_then(|()| wire.flush()).is_ok() {
                let mut served = false;
                while wire.in_flight() > 0 && wire.read(&mut |done| served = done.served).is_ok() {}
                if served && StatusResponse::decode(wire.last.as_slice()).is_ok_and(|s| s.healthz == "ok") {
                    return (bound.unwrap_or_default(), millis());
                }
                std::thread::sleep(LOOK);
            }
        }
        std::thread::sleep(LOOK);
    }
}
