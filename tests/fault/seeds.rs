//! The memory of the live process, read from outside, for the seeds of kube-apiserver: while a connection lives there is the last one at most.
//!
//! Guarantees: the scan is proven by finding what has to be there. Refuses to know where in memory a seed could be.

use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use crate::support::skipped;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use tokio::task::JoinSet;

const SEEDS: usize = 300;

/// How many of these stand in the memory of the process. A mapping that goes away meanwhile holds nothing.
fn found(running: &Running, needles: &[Vec<u8>]) -> std::io::Result<usize> {
    let by_start: HashMap<&[u8], usize> = needles.iter().enumerate().map(|(n, needle)| (&needle[..8], n)).collect();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", running.pid()))?;
    let memory = File::open(format!("/proc/{}/mem", running.pid()))?;
    let mut found = vec![false; needles.len()];
    for line in maps.lines().filter(|line| line.contains(" rw") && !line.contains("[v")) {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for (at, start) in bytes.windows(8).enumerate() {
            if let Some(&n) = by_start.get(start) {
                found[n] |= bytes[at..].starts_with(&needles[n]);
            }
        }
    }
    Ok(found.into_iter().filter(|found| *found).count())
}

#[tokio::test]
async fn while_a_connection_lives_the_last_seed_at_most_is_in_the_memory_of_the_process() {
    const NAME: &str = "fault::seeds::while_a_connection_lives_the_last_seed_at_most_is_in_the_memory_of_the_process";
    if !rustix::process::geteuid().is_root() {
        return skipped(NAME, "needs root to read the memory of another process");
    }
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let mut values = Vec::new();
    {
        let mut client = running.client().await;
        for _ in 0..SEEDS {
            values.push(sealed(&mut client).await);
        }
    }
    let seeds: Vec<_> = values.iter().map(|(seed, _)| seed.clone()).collect();
    let key_id = running.until_ok().await.into_bytes();
    match found(&running, &[key_id]) {
        Ok(found) => assert_eq!(found, 1, "what has to be there is found"),
        Err(error) => return skipped(NAME, &format!("the memory of another process cannot be read here: {error}")),
    }

    // As an API server that has started.
    let mut client = running.client().await;
    let mut calls = JoinSet::new();
    for (seed, value) in values {
        let mut client = client.clone();
        calls.spawn(async move { assert!(client.decrypt(value, uid()).await.unwrap().plaintext == seed) });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    let after_a_crowd = found(&running, &seeds).unwrap();

    let mut seeds = Vec::new();
    for _ in 0..SEEDS {
        let (seed, value) = sealed(&mut client).await;
        assert!(client.decrypt(value, uid()).await.unwrap().plaintext == seed);
        seeds.push(seed);
    }
    let after_one_by_one = found(&running, &seeds).unwrap();

    site.kms().disable(ALIAS);
    running.until_log("were wiped").await;
    let after_revocation = found(&running, &seeds).unwrap();
    let left = [after_a_crowd, after_one_by_one, after_revocation];
    println!(
        "of {SEEDS} seeds after as many Decrypts at once, Encrypts and Decrypts one by one, a revocation: {left:?}"
    );
    assert!(left.into_iter().all(|left| left <= 1), "{left:?}");
    client.status().await.unwrap_err();
}
