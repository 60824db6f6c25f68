//! A restart: every stored value at once, under many wrapped DEKs, from a KMS that is far away or rations its calls.
//!
//! Two hundred Decrypts are under way at a time, on one connection, each with kube-apiserver's three seconds; one that fails is
//! tried again after 50 ms. kube-kms opens values that its replicas sealed under so many DEKs; the pass-through plugin opens
//! blobs of the KMS, for which the number of DEKs says nothing.

use super::Plan;
use super::frames::{Wire, framed};
use super::start::first_status;
use super::support::fake_kms::ANY;
use super::support::replica::{Replica, ReplicaDek};
use super::support::site::{ALIAS, Running, Site, seed, uid};
use kms_v2_api::v2::DecryptRequest;
use prost::Message;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";
const AT_ONCE: usize = 200;
/// After this a burst is stopped.
const BOUND: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(50);
/// Distinct values that a burst goes round; the plugins keep no plaintext, so more would change nothing.
const BLOBS: usize = 200;

/// One line of the table.
struct Case {
    decrypts: usize,
    deks: usize,
    latency: Duration,
    /// Calls a second that the KMS allows.
    limit: Option<f64>,
}

struct Shown {
    done: usize,
    took: Duration,
    failed: usize,
    calls: usize,
    throttled: usize,
}

fn cases(quick: bool) -> Vec<Case> {
    let shapes: &[(usize, usize)] =
        if quick { &[(100, 10), (1000, 100)] } else { &[(10, 1), (100, 10), (1000, 100), (10_000, 1), (10_000, 1000)] };
    let latencies: &[u64] = if quick { &[1, 160] } else { &[1, 20, 160] };
    let mut cases = Vec::new();
    for (decrypts, deks) in shapes.iter().copied() {
        for latency in latencies.iter().copied() {
            cases.push(Case { decrypts, deks, latency: Duration::from_millis(latency), limit: None });
        }
    }
    let limited: &[(usize, usize)] = if quick { &[(200, 5)] } else { &[(1000, 100), (10_000, 5), (10_000, 1000)] };
    for (decrypts, deks) in limited.iter().copied() {
        cases.push(Case { decrypts, deks, latency: Duration::from_millis(20), limit: Some(50.0) });
    }
    cases
}

pub fn measure(plan: &Plan, runtime: &Handle) -> Value {
    println!("\nrestart burst, {AT_ONCE} Decrypts at a time, stopped after {} s", BOUND.as_secs());
    let mut site = Site::aws();
    site.set("probe: {interval: 1h}");
    let cases = cases(plan.quick);
    let most = cases.iter().map(|case| case.deks).max().unwrap();
    let deks = runtime.block_on(Replica::of(&site).deks(most));
    let blobs = blobs(plan, &site);
    println!(
        "{:>8} {:>6} {:>8} {:>9}  {:<34} the KMS asked each time",
        "Decrypts", "DEKs", "KMS ms", "KMS calls/s", "kube-kms"
    );
    let mut all = Vec::new();
    for case in cases {
        let ours = kube_kms(plan, &site, &case, &deks);
        let theirs = pass_through(plan, &site, &case, &blobs);
        println!(
            "{:>8} {:>6} {:>8} {:>11}  {:<34} {}",
            case.decrypts,
            case.deks,
            case.latency.as_millis(),
            case.limit.map_or("any".to_owned(), |limit| limit.to_string()),
            ours.words(&case),
            theirs.words(&case)
        );
        all.push(json!({"decrypts": case.decrypts, "deks": case.deks, "kmsMillis": case.latency.as_millis() as u64,
            "kmsPerSecond": case.limit, "kubeKms": ours.json(), "passThrough": theirs.json()}));
    }
    json!(all)
}

impl Shown {
    fn words(&self, case: &Case) -> String {
        let seconds = self.took.as_secs_f64();
        let throttled = if self.throttled > 0 { format!(", {} throttled", self.throttled) } else { String::new() };
        if self.done == case.decrypts {
            format!("{seconds:.2} s, {} KMS calls{throttled}", self.calls)
        } else {
            format!("stopped after {seconds:.0} s with {} done, {} KMS calls{throttled}", self.done, self.calls)
        }
    }

    fn json(&self) -> Value {
        json!({"seconds": self.took.as_secs_f64(), "done": self.done, "failedTries": self.failed,
            "kmsCalls": self.calls, "throttled": self.throttled})
    }
}

/// The KMS as this case wants it, from a count of nothing.
fn set(site: &Site, case: &Case) {
    let kms = site.kms();
    kms.set_latency(ANY, case.latency);
    match case.limit {
        Some(limit) => kms.limit_rate(limit, limit / 5.0),
        None => kms.unlimit_rate(),
    }
    kms.forget_calls();
}

/// A KMS that is near and free, so that nothing but the burst is slow.
fn calm(site: &Site) {
    site.kms().set_latency(ANY, Duration::ZERO);
    site.kms().unlimit_rate();
}

fn kube_kms(plan: &Plan, site: &Site, case: &Case, deks: &[ReplicaDek]) -> Shown {
    calm(site);
    let values: Vec<Vec<u8>> = (0..case.decrypts.min(case.deks.max(BLOBS)))
        .map(|n| {
            let sealed = deks[n % case.deks].seal(&seed());
            let (ciphertext, key_id, annotations) = (sealed.ciphertext, sealed.key_id, sealed.annotations);
            framed(&DecryptRequest { ciphertext, uid: uid(), key_id, annotations }.encode_to_vec())
        })
        .collect();
    let running = plan.serve(site);
    first_status(&site.socket(), Instant::now());
    set(site, case);
    let shown = burst(site, &site.socket(), case, &values);
    running.kill();
    shown
}

fn pass_through(plan: &Plan, site: &Site, case: &Case, blobs: &[Vec<u8>]) -> Shown {
    calm(site);
    let socket = site.dir().join("pass.sock");
    let running = start_pass_through(plan, site, &socket);
    set(site, case);
    let shown = burst(site, &socket, case, blobs);
    running.kill();
    shown
}

fn start_pass_through(plan: &Plan, site: &Site, socket: &Path) -> Running {
    let _ = std::fs::remove_file(socket);
    let (program, url) = (plan.pass_through.to_str().unwrap(), site.kms().url());
    let mut command: Command = site.process(program, &[socket.to_str().unwrap(), ALIAS, site.kms().region(), &url]);
    let running = site.run(&mut command);
    first_status(socket, Instant::now());
    running
}

/// Blobs of the KMS, sealed by way of the plugin itself.
fn blobs(plan: &Plan, site: &Site) -> Vec<Vec<u8>> {
    let socket = site.dir().join("pass.sock");
    let running = start_pass_through(plan, site, &socket);
    let mut wire = Wire::connect(&socket, super::message::ENCRYPT, &super::message::encrypt_request().encode_to_vec());
    let wire = wire.as_mut().unwrap();
    let blob = || {
        wire.call(Instant::now()).unwrap();
        wire.flush().unwrap();
        wire.finish().unwrap();
        let sealed = super::message::EncryptResponse::decode(wire.last.as_slice()).unwrap();
        let request = DecryptRequest {
            ciphertext: sealed.ciphertext,
            uid: uid(),
            key_id: sealed.key_id,
            annotations: sealed.annotations,
        };
        framed(&request.encode_to_vec())
    };
    let blobs = std::iter::repeat_with(blob).take(BLOBS).collect();
    running.kill();
    blobs
}

fn burst(site: &Site, socket: &Path, case: &Case, values: &[Vec<u8>]) -> Shown {
    let mut wire = Wire::connect(socket, DECRYPT, &[]).unwrap();
    let mut waiting: VecDeque<usize> = (0..case.decrypts).collect();
    let mut again: VecDeque<(Instant, usize)> = VecDeque::new();
    let (mut done, mut failed, began) = (0, 0, Instant::now());
    while done < case.decrypts && began.elapsed() < BOUND {
        let now = Instant::now();
        while again.front().is_some_and(|(due, _)| *due <= now) {
            waiting.push_back(again.pop_front().unwrap().1);
        }
        while wire.in_flight() < AT_ONCE {
            let Some(n) = waiting.front().copied().filter(|n| wire.has_room(&values[n % values.len()])) else { break };
            waiting.pop_front();
            wire.call_with(now, n, &values[n % values.len()]).unwrap();
        }
        wire.flush().unwrap();
        if wire.in_flight() == 0 {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        wire.read(&mut |call| {
            if call.served {
                done += 1;
            } else {
                failed += 1;
                again.push_back((Instant::now() + AGAIN, call.tag));
            }
        })
        .unwrap();
    }
    let took = began.elapsed();
    let kms = site.kms();
    let (calls, good) = (kms.calls("Decrypt"), kms.successful_calls("Decrypt"));
    let throttled = if case.limit.is_some() { calls - good } else { 0 };
    Shown { done, took, failed, calls, throttled }
}
