//! The memory of the live process, read from outside: a DEK is there while its KEK is well, and gone when it is revoked.
//!
//! Guarantees: the scan is proven by finding the key before. What other buffers of the process still hold (the SDK's, HTTP's)
//! is printed, for SECURITY.md "Host and memory". Refuses to know where in memory anything should be.

use crate::kek_conformance::aws::instance;
use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use crate::support::skipped;
use base64::Engine as _;
use kube_kms::api::v2::EncryptResponse;
use kube_kms::core::annotation::{Annotations, WrappedDek};
use kube_kms::core::context::WrapContext;
use kube_kms::core::port::KekCall;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// The DEK that sealed this value, as the KEK unwraps it.
async fn dek_of(site: &Site, value: &EncryptResponse) -> Vec<u8> {
    let kms = site.kms();
    let kek = instance(&kms.url(), kms.region(), &kms.key_arn(ALIAS));
    let annotations = Annotations::parse(value.annotations.clone()).unwrap();
    let blob = WrappedDek::parse(annotations.wrapped_dek().to_vec()).unwrap();
    let call = KekCall { timeout: Duration::from_secs(10), uid: None };
    let context = WrapContext::new(BTreeMap::new());
    kek.unwrap_dek(annotations.kek(), &blob, &context, &call).await.unwrap().dek.expose_bytes().to_vec()
}

/// How often each needle stands in the process's memory, and in which mappings.
fn scan(running: &Running, needles: &[(&str, Vec<u8>)]) -> std::io::Result<BTreeMap<String, Vec<String>>> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", running.pid()))?;
    let memory = File::open(format!("/proc/{}/mem", running.pid()))?;
    let mut found = BTreeMap::new();
    let mut bytes_read = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, flags, name) =
            (fields.next().unwrap(), fields.next().unwrap(), fields.nth(3).unwrap_or("anonymous"));
        let (from, to) = range.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let len = (u64::from_str_radix(to, 16).unwrap() - from) as usize;
        if !flags.starts_with("rw") || name.starts_with("[v") {
            continue;
        }
        let mut bytes = vec![0; len];
        // A mapping that goes away meanwhile holds nothing.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        bytes_read += len;
        for (what, needle) in needles {
            let first = needle[0];
            let times = (0..len.saturating_sub(needle.len()))
                .filter(|&at| bytes[at] == first && bytes[at..at + needle.len()] == needle[..])
                .count();
            if times > 0 {
                found
                    .entry((*what).to_owned())
                    .or_insert_with(Vec::new)
                    .push(format!("{times} in {name} ({len} bytes)"));
            }
        }
    }
    assert!(bytes_read > 1_000_000, "{bytes_read} bytes of memory only");
    Ok(found)
}

#[tokio::test]
async fn a_revoked_kek_leaves_no_dek_in_the_memory_of_the_live_process() {
    const NAME: &str = "fault::wiped::a_revoked_kek_leaves_no_dek_in_the_memory_of_the_live_process";
    if !rustix::process::geteuid().is_root() {
        return skipped(NAME, "needs root to read the memory of another process");
    }
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let foreign = {
        let other = site.replica().start().await;
        sealed(&mut other.client().await).await
    };
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, value) = sealed(&mut client).await;
    assert_eq!(client.decrypt(foreign.1.clone(), uid()).await.unwrap().plaintext, foreign.0);
    let (own, opened) = (dek_of(&site, &value).await, dek_of(&site, &foreign.1).await);
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes();
    let needles = [
        ("the DEK of the write state", own.clone()),
        ("the DEK of the write state in base64", base64(&own)),
        ("a DEK of the keyring", opened.clone()),
        ("a DEK of the keyring in base64", base64(&opened)),
        ("the seed of an Encrypt", seed),
        ("the seed of a Decrypt", foreign.0),
    ];
    let before = match scan(&running, &needles) {
        Ok(found) => found,
        Err(error) => return skipped(NAME, &format!("the memory of another process cannot be read here: {error}")),
    };
    println!("while the KEK is well: {before:#?}");

    site.kms().disable(ALIAS);
    running.until_log("state=revoked").await;
    running.until_log("were wiped").await;
    // Key schedules spill onto the stack while they are used; the next calls write over that.
    let began = Instant::now();
    let after = loop {
        client.status().await.unwrap_err();
        let after = scan(&running, &needles).unwrap();
        if !needles[..4].iter().any(|(what, _)| after.contains_key(*what)) {
            break after;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "a DEK is still there: {after:#?}");
    };
    println!("{:?} after it was revoked: {after:#?}", began.elapsed());
    // The buffers of the connection had the seeds; they go with it, wiped by the allocator.
    drop(client);
    let began = Instant::now();
    while let Some(left) = Some(scan(&running, &needles).unwrap()).filter(|left| !left.is_empty()) {
        // A scan alone takes seconds.
        assert!(began.elapsed() < Duration::from_secs(20), "after its connection was closed: {left:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{:?} after its connection was closed there is none of it", began.elapsed());
    for what in ["the DEK of the write state", "a DEK of the keyring", "the seed of an Encrypt"] {
        assert!(before.contains_key(what), "the scan did not find {what} when it was there: {before:#?}");
    }
}
