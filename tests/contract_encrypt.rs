//! Conformance (docs/conformance.md): what Encrypt promises, on the real binary and on both KEKs. Item numbers are in the names.

use crate::support::fake_kms::Failure;
use crate::support::hand::{assert_labelled_right, on_both_keks, rotate, take_away};
use crate::support::site::{ALIAS, KekKind, Running, Site, sealed, seed, uid};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use kms_v2_api::v2::EncryptResponse;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::Code;

on_both_keks! {
    item_31_encrypt_answers_the_key_id_of_the_status_before_it: key_id_of_status;
    item_32_33_34_ciphertext_and_annotations_are_within_the_limits_of_the_client: within_limits;
    item_35_the_same_plaintext_twice_gives_two_values_and_both_open: same_plaintext;
    item_36_a_hundred_thousand_plaintexts_give_as_many_triples: all_distinct;
    item_37_the_plaintext_is_in_no_output: plaintext_is_nowhere;
    item_38_an_empty_uid_is_served: empty_uid;
    item_39_plaintexts_from_1_to_995_bytes_are_sealed_and_others_refused: sizes;
    item_40_with_the_kms_away_from_the_start_encrypt_fails_promptly_and_makes_nothing_up: away_from_the_start;
    item_41_a_rotation_between_status_and_encrypt_changes_neither: rotation_between;
    item_41_no_key_id_is_ever_on_a_data_key_of_another_version: rotation_at_any_time;
    item_44_what_nine_clients_seal_on_three_replicas_opens_on_every_replica: three_replicas;
}

type Triple = (Vec<u8>, String, Vec<(String, Vec<u8>)>);

fn triple(answer: &EncryptResponse) -> Triple {
    let sorted: BTreeMap<_, _> = answer.annotations.clone().into_iter().collect();
    (answer.ciphertext.clone(), answer.key_id.clone(), sorted.into_iter().collect())
}

async fn key_id_of_status(site: Site) {
    let running = site.start().await;
    let mut client = running.client().await;
    for _ in 0..10 {
        let key_id = client.status().await.unwrap().key_id;
        let (seed, answer) = sealed(&mut client).await;
        assert_eq!(answer.key_id, key_id);
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    }
}

/// apimachinery `validation.go:60-80`, written anew.
fn is_fqdn(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let (first, last) = (label.bytes().next(), label.bytes().next_back());
        label.len() <= 63
            && first.is_some_and(plain)
            && last.is_some_and(plain)
            && label.bytes().all(|b| plain(b) || b == b'-')
    };
    name.len() <= 253 && name.split('.').count() >= 2 && name.split('.').all(is_label)
}

#[test]
fn the_fqdn_rule_here_is_that_of_the_client() {
    for good in ["a.com", "k8s.io", "dev.k8s.io.", "10.0.0.1", &format!("{}.a", "a".repeat(63))] {
        assert!(is_fqdn(good), "{good}");
    }
    for bad in ["com", ".com", ".", "Dev.k8s.io", "*.bar.com", "under_score.io", "a.io/b", "-a.io", "a-.io"] {
        assert!(!is_fqdn(bad), "{bad}");
    }
    assert!(!is_fqdn(&format!("{}.a", "a".repeat(64))));
}

async fn within_limits(site: Site) {
    let running = site.start().await;
    let mut client = running.client().await;
    for length in [32, 1, 995] {
        let answer = client.encrypt(vec![7; length], uid()).await.unwrap();
        assert_eq!(answer.ciphertext.len(), length + 29, "version, nonce and tag");
        assert!((1..=1024).contains(&answer.ciphertext.len()));
        assert!(answer.annotations.keys().all(|name| is_fqdn(name)), "{:?}", answer.annotations.keys());
        let names: HashSet<&str> = answer.annotations.keys().map(String::as_str).collect();
        assert_eq!(names, HashSet::from(["dek.kube-kms", "kek.kube-kms"]), "nothing is added without need");
        let total: usize = answer.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(total < 1000, "{total} bytes of annotations in every object");
    }
}

async fn same_plaintext(site: Site) {
    let running = site.start().await;
    let mut client = running.client().await;
    let seed = seed();
    let one = client.encrypt(seed.clone(), uid()).await.unwrap();
    let two = client.encrypt(seed.clone(), uid()).await.unwrap();
    assert_ne!(one.ciphertext, two.ciphertext);
    for answer in [one, two] {
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    }
}

/// Many in flight on one connection, over several data keys.
async fn all_distinct(mut site: Site) {
    const TASKS: u32 = 100;
    const EACH: u32 = 1000;
    site.set("log: {level: warn}\ndek: {maxUses: 20000}\nprobe: {interval: 10m}");
    let running = site.start().await;
    let client = running.client_with(Duration::from_secs(30)).await;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let mut client = client.clone();
        tasks.spawn(async move {
            let mut made = Vec::with_capacity(EACH as usize);
            for n in 0..EACH {
                let mut plaintext = vec![0x5a; 32];
                plaintext[..4].copy_from_slice(&task.to_be_bytes());
                plaintext[4..8].copy_from_slice(&n.to_be_bytes());
                let answer = client.encrypt(plaintext.clone(), String::new()).await.unwrap();
                made.push((plaintext, answer));
            }
            made
        });
    }
    let made: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    println!("item 36: {} values in {:?}", made.len(), began.elapsed());
    let triples: HashSet<Triple> = made.iter().map(|(_, answer)| triple(answer)).collect();
    assert_eq!(triples.len(), (TASKS * EACH) as usize);
    let nonces: HashSet<&[u8]> = made.iter().map(|(_, answer)| &answer.ciphertext[1..13]).collect();
    assert_eq!(nonces.len(), triples.len(), "a nonce came twice");
    let deks: HashSet<&[u8]> = made.iter().map(|(_, answer)| answer.annotations["dek.kube-kms"].as_slice()).collect();
    assert!(deks.len() > 1, "the data key was replaced on the way");
    let mut client = client;
    for (plaintext, answer) in made.into_iter().step_by(997) {
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, plaintext);
    }
}

/// How bytes look in an output: as they are, in hex, in base64 at every offset, and as Rust and Go print a list of them.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![secret.to_vec(), hex::encode(secret).into_bytes(), hex::encode_upper(secret).into_bytes()];
    for offset in 0..3 {
        // What base64 makes of the middle does not depend on what is before and after it.
        let middle = &secret[offset..offset + (secret.len() - offset) / 3 * 3];
        all.push(STANDARD_NO_PAD.encode(middle).into_bytes());
        all.push(URL_SAFE_NO_PAD.encode(middle).into_bytes());
    }
    let numbers: Vec<String> = secret.iter().map(ToString::to_string).collect();
    all.push(numbers.join(", ").into_bytes());
    all.push(numbers.join(" ").into_bytes());
    all
}

/// The spelling in which the secret is in this output, if it is.
fn spelling_in(output: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
    spellings(secret).into_iter().find(|spelling| output.windows(spelling.len()).any(|window| window == spelling))
}

/// What the site's processes wrote, as bytes: it need not be UTF-8.
fn written(site: &Site) -> Vec<(&'static str, Vec<u8>)> {
    let files = std::fs::read_dir(site.dir()).unwrap().map(|entry| entry.unwrap());
    let outputs =
        files.filter(|file| file.file_name().to_str().is_some_and(|n| n.starts_with("log.") || n.starts_with("out.")));
    outputs.map(|file| ("stdout or stderr", std::fs::read(file.path()).unwrap())).collect()
}

async fn plaintext_is_nowhere(mut site: Site) {
    site.set("log: {level: trace}\nprobe: {interval: 1s, timeout: 900ms}\ndek: {maxUses: 3}");
    let running = site.start().await;
    let mut client = running.client().await;
    let canary = b"CanaryCanary\xffPlaintext0123456789ab".to_vec();
    let mut outputs: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut last_uid = String::new();
    for _ in 0..5 {
        let answer = client.encrypt(canary.clone(), uid()).await.unwrap();
        last_uid = uid();
        assert_eq!(client.decrypt(answer.clone(), last_uid.clone()).await.unwrap().plaintext, canary);
        let mut broken = answer.clone();
        broken.ciphertext[20] ^= 1;
        let refused = client.decrypt(broken, uid()).await.unwrap_err();
        outputs.push(("an error", format!("{refused:?}").into_bytes()));
        outputs.push(("a key_id", answer.key_id.into_bytes()));
        outputs.push(("a ciphertext", answer.ciphertext));
        outputs.extend(answer.annotations.into_values().map(|value| ("an annotation", value)));
    }
    // Sealed as a refused request, and as one in the place of a ciphertext: errors must not quote it either.
    let refused = client.encrypt(canary.repeat(40), uid()).await.unwrap_err();
    outputs.push(("an error", format!("{refused:?}").into_bytes()));
    let strange = EncryptResponse {
        ciphertext: canary.clone(),
        key_id: String::new(),
        annotations: [("dek.kube-kms".to_owned(), canary.clone())].into(),
    };
    outputs.push(("an error", format!("{:?}", client.decrypt(strange, uid()).await.unwrap_err()).into_bytes()));
    for page in ["/metrics", "/livez", "/readyz", "/readyz?output=json", "/x"] {
        outputs.push(("a page", running.http(page).await.1.into_bytes()));
    }
    running.until_log(&last_uid).await;
    assert!(running.log().contains("TRACE") || running.log().contains("DEBUG"), "the log is as loud as it gets");
    let state = std::fs::read(site.state_file()).unwrap();
    outputs.push(("the state file", state));
    assert!(running.stop().await.success());
    let written = written(&site);
    assert_eq!(written.len(), 2, "stdout and stderr");
    outputs.extend(written);
    for (what, output) in &outputs {
        let found = spelling_in(output, &canary).map(|spelling| String::from_utf8_lossy(&spelling).into_owned());
        assert_eq!(found, None, "{what} has the plaintext");
    }
}

#[test]
fn the_search_for_the_plaintext_finds_it_in_every_spelling() {
    let canary = b"CanaryCanary\xffPlaintext0123456789ab";
    for spelling in spellings(canary) {
        let output = [b"before ".as_slice(), &spelling, b" after"].concat();
        assert_eq!(spelling_in(&output, canary), Some(spelling));
    }
    for before in ["", "x", "xy"] {
        let encoded = STANDARD_NO_PAD.encode([before.as_bytes(), canary, b"after"].concat());
        assert!(spelling_in(encoded.as_bytes(), canary).is_some(), "{before}");
    }
    assert_eq!(spelling_in(b"nothing of it", canary), None);
}

async fn empty_uid(site: Site) {
    let running = site.start().await;
    let mut client = running.client().await;
    let answer = client.encrypt(seed(), String::new()).await.unwrap();
    assert_eq!(client.decrypt(answer, String::new()).await.unwrap().plaintext.len(), 32);
    let hostile = client.encrypt(seed(), "\u{1b}[31m\n".repeat(1000)).await;
    assert!(hostile.is_ok(), "{hostile:?}");
    let log = running.settled_log().await;
    assert!(log.contains("[31m") && !log.contains('\u{1b}'), "a uid is not an escape sequence in the log");
    running.until_ok().await;
}

async fn sizes(site: Site) {
    let running = site.start().await;
    let mut client = running.client().await;
    for length in [1, 16, 32, 64, 995] {
        let plaintext: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let answer = client.encrypt(plaintext.clone(), uid()).await.unwrap();
        assert!(answer.ciphertext.len() <= 1024, "{length}");
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, plaintext);
    }
    for length in [0, 996, 4096, 1_000_000] {
        let refused = client.encrypt(vec![1; length], uid()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{length}: {refused:?}");
    }
    running.until_ok().await;
}

async fn away_from_the_start(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 500ms}");
    take_away(&site);
    let running = site.spawn();
    let mut client = running.client().await;
    for _ in 0..20 {
        let began = Instant::now();
        let refused = client.encrypt(seed(), uid()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?} is not prompt", began.elapsed());
    }
    drop(running);

    // The same with a key_id that is known from last time: known is not enough to seal.
    crate::support::hand::bring_back(&site);
    site.start().await.kill();
    take_away(&site);
    let running = site.spawn();
    let status = running.until_status(|a| a.is_ok()).await.unwrap();
    assert!(!status.key_id.is_empty() && status.healthz != "ok", "{status:?}");
    let refused = running.client().await.encrypt(seed(), uid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

async fn rotation_between(mut site: Site) {
    site.set("probe: {interval: 10m}");
    let running = site.start().await;
    let mut client = running.client().await;
    for _ in 0..5 {
        let key_id = client.status().await.unwrap().key_id;
        rotate(&site);
        let (seed, answer) = sealed(&mut client).await;
        assert_eq!(answer.key_id, key_id);
        assert_labelled_right(&site, &answer, 0).await;
        assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    }
}

/// Status and Encrypt in pairs, as kube-apiserver calls them, until the key_id is another than `from`. A pair may have the
/// swap between its two calls; then Encrypt agrees with the Status after it.
async fn pairs_until_another(running: &Running, from: &str) -> Vec<EncryptResponse> {
    let mut client = running.client().await;
    let (mut made, mut straddling): (Vec<EncryptResponse>, u32) = (Vec::new(), 0);
    let began = Instant::now();
    loop {
        let before = client.status().await.unwrap().key_id;
        let (seed, answer) = sealed(&mut client).await;
        if answer.key_id != before {
            let after = client.status().await.unwrap().key_id;
            assert_eq!(answer.key_id, after);
            straddling += 1;
        }
        assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
        let moved = answer.key_id != from;
        if made.last().is_none_or(|last| last.annotations != answer.annotations) {
            made.push(answer);
        }
        if moved {
            assert!(straddling <= 1);
            return made;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the rotation is never seen\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// With `maxUses: 1` every data key asks for the next one after one seal, so probes come as fast as Encrypts do, and a
/// rotation falls anywhere into them; at the fake it is put before, between and after the two calls of a probe.
async fn rotation_at_any_time(mut site: Site) {
    site.set("probe: {interval: 1s, timeout: 900ms}\ndek: {maxUses: 1}");
    let running = site.start().await;
    let mut made = Vec::new();
    let mut rotations = 0;
    let points: &[Option<&str>] = match site.kek() {
        KekKind::Aws(_) => &[Some("Encrypt"), Some("Decrypt"), None],
        KekKind::Local(_) => &[None, None, None],
    };
    for point in points {
        let from = running.until_ok().await;
        if let Some(op) = point {
            // Held before it is performed: an Encrypt is then under the new material, a Decrypt of the old.
            site.kms().fail_next(op, 1, Failure::Hang);
            sealed(&mut running.client().await).await;
            site.kms().until(|kms| kms.hung_calls() > 0).await;
            rotate(&site);
            site.kms().release_hung();
        } else {
            rotate(&site);
        }
        rotations += 1;
        made.extend(pairs_until_another(&running, &from).await);
    }
    let key_ids: HashSet<&str> = made.iter().map(|answer| answer.key_id.as_str()).collect();
    assert_eq!(key_ids.len(), rotations + 1, "every rotation was seen once: {key_ids:?}");
    let mut client = running.client().await;
    for answer in &made {
        assert_labelled_right(&site, answer, 0).await;
        assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext.len(), 32);
    }
    if let KekKind::Aws(kms) = site.kek() {
        assert_eq!(kms.material_ids(ALIAS).len(), rotations + 1);
    }
}

async fn three_replicas(mut site: Site) {
    site.set("dek: {maxUses: 20}");
    let sites = [site.replica(), site.replica(), site];
    let mut running = Vec::new();
    for site in &sites {
        running.push(site.start().await);
    }
    let mut tasks = JoinSet::new();
    for replica in &running {
        for _ in 0..3 {
            let mut client = replica.client().await;
            tasks.spawn(async move {
                let mut made = Vec::new();
                for _ in 0..30 {
                    made.push(sealed(&mut client).await);
                }
                made
            });
        }
    }
    let made: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(made.len(), 270);
    let key_ids: HashSet<&str> = made.iter().map(|(_, answer)| answer.key_id.as_str()).collect();
    assert_eq!(key_ids.len(), 1, "replicas agree");
    let deks: HashSet<&[u8]> = made.iter().map(|(_, a)| a.annotations["dek.kube-kms"].as_slice()).collect();
    assert!(deks.len() >= 3, "every replica has a data key of its own");
    for replica in &running {
        let mut client = replica.client().await;
        for (seed, answer) in &made {
            assert_eq!(&client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
        }
    }
}
