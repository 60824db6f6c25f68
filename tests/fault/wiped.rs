//! The memory of the live process, read from outside: a DEK is there while its KEK is well, and gone when it is revoked.
//!
//! Guarantees: the scan is proven by finding keys before. So many DEKs go through the buffers of the SDK, HTTP and TLS that chance
//! cannot write over all of what these free: without the wiping allocator dozens of them are found. `make memory-scan` does
//! the same to the release binary. Refuses to know where in memory anything should be.

use crate::kek_conformance::aws::instance;
use crate::support::replica::Replica;
use crate::support::site::{ALIAS, Running, Site, sealed, seed, uid};
use crate::support::skipped;
use base64::Engine as _;
use futures_util::future::join_all;
use kms_v2_api::v2::EncryptResponse;
use kube_kms_core::annotation::{Annotations, WrappedDek};
use kube_kms_core::context::WrapContext;
use kube_kms_core::port::KekCall;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// Unwrapped by the process before its KEK is revoked.
const DEKS: usize = 300;

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

/// What is looked for: what it is, and its bytes.
struct Needles {
    all: Vec<(&'static str, Vec<u8>)>,
    /// By their first bytes, and whether any begins with these two.
    by_start: HashMap<[u8; START], Vec<usize>>,
    begins: Vec<bool>,
}

const START: usize = 8;

impl Needles {
    fn of(all: Vec<(&'static str, Vec<u8>)>) -> Self {
        let (mut by_start, mut begins) = (HashMap::<_, Vec<_>>::new(), vec![false; 1 << 16]);
        for (number, (_, needle)) in all.iter().enumerate() {
            by_start.entry(needle[..START].try_into().unwrap()).or_default().push(number);
            begins[usize::from(u16::from_le_bytes([needle[0], needle[1]]))] = true;
        }
        Self { all, by_start, begins }
    }

    /// Which of them stand in these bytes, once for each place.
    fn found_in(&self, bytes: &[u8], mut found: impl FnMut(&'static str)) {
        for (at, pair) in bytes.windows(2).enumerate() {
            if !self.begins[usize::from(u16::from_le_bytes([pair[0], pair[1]]))] {
                continue;
            }
            let rest = &bytes[at..];
            let Some(start) = rest.first_chunk::<START>() else { return };
            for number in self.by_start.get(start).into_iter().flatten() {
                let (what, needle) = &self.all[*number];
                if rest.starts_with(needle) {
                    found(what);
                }
            }
        }
    }
}

/// How often each kind of needle stands in the process's memory, and in which mappings.
fn scan(running: &Running, needles: &Needles) -> std::io::Result<BTreeMap<&'static str, BTreeMap<String, usize>>> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", running.pid()))?;
    let memory = File::open(format!("/proc/{}/mem", running.pid()))?;
    let mut found = BTreeMap::<_, BTreeMap<String, usize>>::new();
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
        needles.found_in(&bytes, |what| *found.entry(what).or_default().entry(name.to_owned()).or_default() += 1);
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
    let deks = Replica::of(&site).deks(DEKS).await;
    let running = site.start().await;
    let mut client = running.client_with(Duration::from_secs(20)).await;
    let (written, value) = sealed(&mut client).await;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes();
    let own = dek_of(&site, &value).await;
    let mut needles = vec![
        ("the DEK of the write state in base64", base64(&own)),
        ("the DEK of the write state", own),
        ("the seed of an Encrypt", written),
    ];
    let values: Vec<_> = deks.iter().map(|dek| (seed(), dek)).map(|(seed, dek)| (dek.seal(&seed), seed)).collect();
    // At once, as after an API server's restart: as many buffers as there can be.
    join_all(values.iter().map(|(value, seed)| {
        let mut client = client.clone();
        async move { assert_eq!(client.decrypt(value.clone(), uid()).await.unwrap().plaintext, *seed) }
    }))
    .await;
    for (value, seed) in values {
        let opened = dek_of(&site, &value).await;
        needles.extend([
            ("a DEK of the keyring in base64", base64(&opened)),
            ("a DEK of the keyring", opened),
            ("the seed of a Decrypt", seed),
        ]);
    }
    let is_dek = |what: &&str| what.contains("DEK");
    let needles = Needles::of(needles);
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
        if !after.keys().any(is_dek) {
            break after;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "a DEK is still there: {after:#?}");
    };
    println!("{:?} after it was revoked: {after:#?}", began.elapsed());
    // The buffers of the connection had the seeds; they go with it, wiped by the allocator.
    drop(client);
    let began = Instant::now();
    while let Some(left) = Some(scan(&running, &needles).unwrap()).filter(|left| !left.is_empty()) {
        assert!(began.elapsed() < Duration::from_secs(20), "after its connection was closed: {left:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{:?} after its connection was closed there is none of it", began.elapsed());
    let times = |what| before.get(what).map_or(0, |places| places.values().sum::<usize>());
    let (own, opened) = (times("the DEK of the write state"), times("a DEK of the keyring"));
    assert!(own > 0 && opened >= DEKS, "the scan did not find what was there: {before:#?}");
}
