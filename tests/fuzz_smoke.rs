//! The fuzz targets on a stable compiler: the committed corpus, and some thousands of mutations of it, the same in every run.
//!
//! Guarantees: every target of tests/fuzz has a corpus, a fuzzing entry, and is run. Refuses to know coverage: that is `make fuzz`.

#[path = "fuzz/targets.rs"]
mod targets;

use crate::support::bolt_file::{BoltFile, bucket, inline, put};
use crate::support::wire::{DECRYPT, ENCRYPT, STATUS, frame, grpc_frame, header_block};
use kms_v2_api::stored;
use kms_v2_api::v2::{DecryptRequest, EncryptRequest, EncryptedObject};
use prost::Message;
use std::collections::HashMap;
use std::path::PathBuf;

const MUTATIONS: u64 = 3000;
/// Where each costs a connection or an fsync.
const SLOW_MUTATIONS: u64 = 600;

fn corpus_dir(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fuzz/corpus").join(target)
}

fn decrypt_request() -> DecryptRequest {
    let annotations = HashMap::from([
        ("dek.kube-kms".to_owned(), vec![7; 60]),
        (
            "kek.kube-kms".to_owned(),
            b"aws:arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_vec(),
        ),
    ]);
    let ciphertext = [&[1][..], &[5; 12], &[6; 32], &[7; 16]].concat();
    DecryptRequest {
        ciphertext,
        uid: "u".to_owned(),
        key_id: "k1".to_owned(),
        annotations: annotations.into_iter().collect(),
    }
}

/// A request as a client sends it: headers and a message.
fn request(stream: u32, path: &str, message: &impl Message) -> Vec<u8> {
    let headers = header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    [frame(1, 4, stream, &headers), frame(0, 1, stream, &grpc_frame(message))].concat()
}

/// What the corpus begins with: one good input of each kind.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let encrypt = EncryptRequest { plaintext: vec![3; 32], uid: "u-1".to_owned() };
    let decrypt = decrypt_request();
    match target {
        "annotation" => vec![decrypt.encode_to_vec()],
        "message" => vec![decrypt.encode_to_vec(), encrypt.encode_to_vec()],
        "envelope" => vec![decrypt.ciphertext.clone()],
        "key_id" => vec![b"k1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_vec(), vec![b'k'; 1024]],
        "config" => ["aws", "local"]
            .map(|name| {
                std::fs::read(format!("{}/deploy/config/{name}.yaml", concat!(env!("CARGO_MANIFEST_DIR"), "/../..")))
                    .unwrap()
            })
            .to_vec(),
        "state_file" => {
            vec![br#"{"version": 1, "key_id": "k1.abc", "left": ["k0.abc"], "context_digest": null}"#.to_vec()]
        }
        "keyring" => {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("k.json");
            kube_kms_kek_local::operation::init(&path, std::time::SystemTime::UNIX_EPOCH, &kube_kms_os::OsEntropy)
                .unwrap();
            vec![std::fs::read(path).unwrap()]
        }
        "stored" => {
            let object = EncryptedObject { key_id: "k1".to_owned(), encrypted_data: vec![9; 40], ..Default::default() };
            vec![
                stored::encode("kube-kms", &object),
                b"k8s:enc:aescbc:v1:key1:xyz".to_vec(),
                b"{\"kind\":\"Secret\"}".to_vec(),
            ]
        }
        "snapshot" => {
            let mut file = BoltFile::new();
            let revisions: Vec<_> =
                (0..9).map(|n| put(n + 2, 0, format!("/registry/s{n}").as_bytes(), b"value")).collect();
            let tree = file.tree(&revisions, 3);
            let root = file.leaf(&[inline(b"auth", &[]), bucket(b"key", tree), inline(b"meta", &[])]);
            vec![file.finish(root)]
        }
        "front_door" => {
            let good = [
                request(1, STATUS, &kms_v2_api::v2::StatusRequest {}),
                request(3, ENCRYPT, &encrypt),
                request(5, DECRYPT, &decrypt),
            ];
            let ping = frame(6, 0, 0, &[0; 8]);
            let reset = frame(3, 0, 1, &[0, 0, 0, 8]);
            vec![
                [&[0][..], &good.concat()].concat(),
                [&[0][..], &good[0], &reset, &ping].concat(),
                b"\x01GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            ]
        }
        _ => panic!("{target} has no seed"),
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = corpus_dir(target);
    if std::env::var_os("KUBE_KMS_BLESS").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (n, seed) in seeds(target).iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{n}")), seed).unwrap();
        }
    }
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// A small generator: the same numbers in every run, so that a failure comes again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// One to four changes: a bit, a byte that matters, a cut, a piece twice, a piece of another.
fn mutated(inputs: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut data = inputs[numbers.below(inputs.len())].clone();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(data.len() + 1);
        match numbers.below(6) {
            0 | 1 if at < data.len() => data[at] ^= 1 << numbers.below(8),
            2 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            3 => data.truncate(at),
            4 => {
                let piece = data[at..(at + numbers.below(16)).min(data.len())].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                let other = &inputs[numbers.below(inputs.len())];
                let from = numbers.below(other.len());
                data.splice(at..at, other[from..(from + 16).min(other.len())].to_vec());
            }
        }
    }
    data
}

fn smoke(target: &str) {
    let (_, run) = targets::TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let inputs = corpus(target);
    run(&[]);
    inputs.iter().for_each(|input| run(input));
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let times = if matches!(target, "front_door" | "state_file") { SLOW_MUTATIONS } else { MUTATIONS };
    for n in 0..times {
        let input = mutated(&inputs, &mut numbers);
        let outcome = std::panic::catch_unwind(|| run(&input));
        assert!(outcome.is_ok(), "mutation {n} of {target}: {}", hex::encode(&input));
    }
}

macro_rules! smoked {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn every_target_is_smoked_has_a_corpus_and_a_fuzzer() {
            let smoked = [$(stringify!($name)),*];
            let all: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(smoked.as_slice(), all.as_slice());
            let manifest = include_str!("fuzz/Cargo.toml");
            for name in all {
                assert!(manifest.contains(&format!("fuzz_targets/{name}.rs")), "{name}");
                let entry = format!("{}/tests/fuzz/fuzz_targets/{name}.rs", concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
                assert!(std::fs::read_to_string(entry).unwrap().contains(&format!("targets::{name}")), "{name}");
            }
        }
    };
}

smoked!(annotation, config, envelope, front_door, key_id, keyring, message, snapshot, state_file, stored);
