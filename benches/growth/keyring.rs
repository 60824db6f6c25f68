//! What grows: memory with requests and with DEKs, and what a Decrypt costs with many of them.

use super::frames::{Wire, framed};
use super::start::first_status;
use super::support::replica::Replica;
use super::support::site::{Site, seed, uid};
use super::{Plan, cpu, median, memory, met};
use kms_v2_api::v2::DecryptRequest;
use prost::Message;
use serde_json::{Value, json};
use std::time::Instant;
use tokio::runtime::Handle;

const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";
const DEPTH: usize = 64;
/// Distinct DEKs, each with one value.
const STEPS: [usize; 5] = [1, 16, 256, 1024, 4096];

/// Sends so many of these, in turn.
fn send(wire: &mut Wire, values: &[Vec<u8>], count: usize) {
    let (mut sent, mut ended) = (0, 0);
    while ended < count {
        while wire.in_flight() < DEPTH && sent < count && wire.has_room(&values[sent % values.len()]) {
            wire.call_with(Instant::now(), 0, &values[sent % values.len()]).unwrap();
            sent += 1;
        }
        wire.flush().unwrap();
        wire.read(&mut |done| {
            assert!(done.served, "a call failed");
            ended += 1;
        })
        .unwrap();
    }
}

pub fn requests(plan: &Plan) -> Value {
    let (steps, each) = if plan.quick { (4, 25_000) } else { (10, 100_000) };
    println!("\nmemory over {} Encrypts, {DEPTH} in flight, local KEK", steps * each);
    let site = Site::local();
    // Its log, at info, goes to /dev/null: a million lines are not what is measured.
    let running = plan.serve_silently(&site);
    first_status(&site.socket(), Instant::now());
    let request = framed(&super::message::encrypt_request().encode_to_vec());
    let mut wire = Wire::connect(&site.socket(), super::message::ENCRYPT, &[]).unwrap();
    let idle = memory(running.0.id(), "VmRSS");
    send(&mut wire, std::slice::from_ref(&request), 5_000);
    let warm = memory(running.0.id(), "VmRSS");
    let mut seen = Vec::new();
    for _ in 0..steps {
        send(&mut wire, std::slice::from_ref(&request), each);
        seen.push(memory(running.0.id(), "VmRSS"));
    }
    let worst = seen
        .iter()
        .map(|kib| (*kib as f64 / warm as f64 - 1.0) * 100.0)
        .fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
    println!("  idle {idle} KiB, after 5,000 {warm} KiB, then {seen:?}");
    println!("  furthest from the second: {worst:+.1} %, within ± 5 %: {}", met(worst.abs() <= 5.0));
    json!({"idleKib": idle, "warmKib": warm, "each": each, "kib": seen, "worstPercent": worst})
}

pub fn deks(plan: &Plan, runtime: &Handle) -> Value {
    let most = if plan.quick { 1024 } else { 4096 };
    println!("\nDecrypts over known DEKs, {DEPTH} in flight, local KEK");
    let mut site = Site::local();
    site.set("cache: {capacity: 4200}\nlog: {level: warn}\nprobe: {interval: 1h}");
    let replica = Replica::of(&site);
    let values: Vec<Vec<u8>> = runtime
        .block_on(replica.deks(most))
        .iter()
        .map(|dek| {
            let sealed = dek.seal(&seed());
            let (ciphertext, key_id, annotations) = (sealed.ciphertext, sealed.key_id, sealed.annotations);
            framed(&DecryptRequest { ciphertext, uid: uid(), key_id, annotations }.encode_to_vec())
        })
        .collect();
    let running = plan.serve(&site);
    first_status(&site.socket(), Instant::now());
    let mut wire = Wire::connect(&site.socket(), DECRYPT, &[]).unwrap();
    // What connections, buffers and the first unwraps take is not the keyring's.
    send(&mut wire, &values[..1], 20_000);
    let before = memory(running.pid(), "VmRSS");
    let mut table = Vec::new();
    for count in STEPS.into_iter().filter(|n| *n <= most) {
        send(&mut wire, &values[..count], count);
        let calls = if plan.quick { 10_000 } else { 40_000 };
        let mut costs = Vec::new();
        for _ in 0..5 {
            let used = cpu(running.pid());
            send(&mut wire, &values[..count], calls);
            costs.push((cpu(running.pid()) - used).as_secs_f64() * 1e6 / calls as f64);
        }
        let (cost, rss) = (median(costs), memory(running.pid(), "VmRSS"));
        println!("  {count:>5} DEKs: {cost:.2} µs of CPU for each Decrypt, {rss} KiB resident");
        table.push(json!({"deks": count, "cpuMicros": cost, "rssKib": rss}));
    }
    let grown = (memory(running.pid(), "VmRSS") as f64 - before as f64) * 1024.0 / (most - 1) as f64;
    println!("  {grown:.0} bytes of resident memory for each DEK");
    let cost = |n: usize| table[n]["cpuMicros"].as_f64().unwrap();
    let ratio = cost(table.len() - 1) / cost(0);
    println!("  cost with {most} DEKs is {ratio:.2} × that with one; flat (≤ 1.15): {}", met(ratio <= 1.15));
    json!({"steps": table, "bytesPerDek": grown, "ratio": ratio})
}
