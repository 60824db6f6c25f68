//! What a cluster of several years has in etcd, made up, with its counts: several providers and key_ids, everything that is
//! not under KMS v2, damaged values, odd keys, keys that were overwritten, deleted and made again.
//!
//! Guarantees: the same `objects` make the same keys, values and counts; every value of a KMS v2 provider is written by
//! `api::stored`. Refuses to know how a reader names these kinds.

use super::EtcdStore;
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptedObject;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where all of it is.
pub const PREFIX: &str = "/registry/";
/// The key that is not UTF-8.
pub const ODD_KEY: &[u8] = b"/registry/secrets/default/\xff\xfe-odd";
/// The key with the value of [`HUGE`] bytes of ciphertext.
pub const HUGE_KEY: &[u8] = b"/registry/secrets/default/huge";
/// 1.4 MB.
pub const HUGE: usize = 1_400_000;
/// key_id that most is under, as stored format 1 has them.
pub const NEW: &str = "k1-2c868ea8cf135f8a897d47d91f1f79ba";
/// key_id before the last rotation.
pub const OLD: &str = "k1-ed432fcd84d7108bd05b0e066969f87c";
/// key_id of another plugin.
pub const FOREIGN: &str = "arn:aws:kms:eu-central-1:111122223333:key/0d1f6a52-5c3e-4f0a-9d2e-1b2c3d4e5f60";

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A KMS v2 provider's, with this DEK-source type; 7 is one that nobody knows.
    KmsV2 { provider: &'static str, key_id: &'static str, dek_type: i32 },
    /// Another provider's: `k8s:enc:<this>`, with the name of its key.
    Other(&'static str),
    /// `k8s\0`.
    PlainProtobuf,
    /// `{`.
    PlainJson,
    /// The prefix of KMS v2, and then no message.
    Corrupt,
    /// A KMS v2 value without its last bytes.
    CutShort,
}

/// How many of one kind there are in one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub objects: u64,
    /// Bytes of the values.
    pub bytes: u64,
    /// Distinct wrapped DEKs: (type, source, key_id, annotations).
    pub dek_sources: u64,
}

/// What must be found in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Keys under [`PREFIX`].
    pub live: u64,
    /// Keys that were deleted and not made again.
    pub deleted: u64,
    /// By resource, as the key says it (`secrets`, `example.com/widgets`).
    pub groups: BTreeMap<(&'static str, Kind), Group>,
}

impl Expected {
    /// Objects for which this holds.
    pub fn objects(&self, holds: impl Fn(&str, &Kind) -> bool) -> u64 {
        self.groups.iter().filter(|((resource, kind), _)| holds(resource, kind)).map(|(_, group)| group.objects).sum()
    }
}

/// Fills the store with `objects` keys, 100 at least, of which a tenth is written several times, and with deleted ones on top.
pub async fn fill(store: &EtcdStore, objects: usize) -> Expected {
    let (pairs, mut expected) = generate(objects);
    let earlier = |key: &[u8]| kms("primary", OLD, 1, &seed(key, "earlier"), 300, 0);
    // A tenth was there before, under the old key. A third of that was deleted in between.
    let before: Vec<Vec<u8>> = pairs.iter().step_by(10).map(|(key, _)| key.clone()).collect();
    store.put(before.iter().map(|key| (key.clone(), earlier(key)))).await;
    store.delete(before.iter().step_by(3).cloned()).await;
    let doomed: Vec<Vec<u8>> = (0..objects / 20).map(|i| format!("/registry/secrets/gone/s{i}").into()).collect();
    store.put(doomed.iter().map(|key| (key.clone(), earlier(key)))).await;
    let namespace: Vec<Vec<u8>> = (0..objects / 50).map(|i| format!("/registry/configmaps/gone/c{i}").into()).collect();
    store.put(namespace.iter().map(|key| (key.clone(), earlier(key)))).await;
    store.put(pairs).await;
    store.delete(doomed.iter().cloned()).await;
    store.delete_prefix(b"/registry/configmaps/gone/").await;
    expected.deleted = (doomed.len() + namespace.len()) as u64;
    expected
}

/// The keys with their final values, and the counts.
pub fn generate(objects: usize) -> (Vec<Pair>, Expected) {
    assert!(objects >= 100);
    let mut made = Made::default();
    let v2 = |provider, key_id, dek_type| Kind::KmsV2 { provider, key_id, dek_type };
    made.add("secrets", ODD_KEY.to_vec(), v2("primary", NEW, 1), 300, 0);
    made.add("secrets", HUGE_KEY.to_vec(), v2("primary", NEW, 1), HUGE, 0);
    made.add("secrets", b"/registry/secrets/default/unknown-type".to_vec(), v2("primary", NEW, 7), 300, 0);
    made.add("secrets", b"/registry/secrets/default/corrupt".to_vec(), Kind::Corrupt, 300, 0);
    made.add("secrets", b"/registry/secrets/default/cut-short".to_vec(), Kind::CutShort, 300, 0);
    for i in made.pairs.len()..objects {
        let (resource, kind, deks) = match i % 100 {
            0..45 => ("secrets", v2("primary", NEW, 1), 3),
            45..60 => ("configmaps", v2("primary", NEW, 1), 2),
            60..72 => ("secrets", v2("primary", OLD, 1), 5),
            // Every object has its own DEK.
            72..75 => ("secrets", v2("primary", OLD, 0), usize::MAX),
            75..80 => ("secrets", v2("elsewhere", FOREIGN, 1), 2),
            80 => ("secrets", Kind::Other("kms:v1:old:name"), 1),
            81 => ("secrets", Kind::Other("aescbc:v1:key1"), 1),
            82 => ("secrets", Kind::Other("aesgcm:v1:key1"), 1),
            83 => ("secrets", Kind::Other("secretbox:v1:key1"), 1),
            84..86 => ("secrets", Kind::PlainProtobuf, 1),
            86..90 => ("example.com/widgets", Kind::PlainJson, 1),
            _ => ("events", Kind::PlainProtobuf, 1),
        };
        let key = format!("/registry/{resource}/ns{}/o{i}", i % 37).into_bytes();
        made.add(resource, key, kind, 200 + i % 200, i % deks);
    }
    for (group, sources) in made.sources {
        made.expected.groups.get_mut(&group).unwrap().dek_sources = sources.len() as u64;
    }
    made.expected.live = made.pairs.len() as u64;
    (made.pairs, made.expected)
}

#[derive(Default)]
struct Made {
    pairs: Vec<Pair>,
    expected: Expected,
    sources: HashMap<(&'static str, Kind), BTreeSet<usize>>,
}

impl Made {
    fn add(&mut self, resource: &'static str, key: Vec<u8>, kind: Kind, size: usize, dek: usize) {
        let data = seed(&key, "value");
        let value = match &kind {
            Kind::KmsV2 { provider, key_id, dek_type } => kms(provider, key_id, *dek_type, &data, size, dek),
            Kind::Other(name) => [format!("k8s:enc:{name}:").as_bytes(), &stretch(&data, size)].concat(),
            Kind::PlainProtobuf => [b"k8s\0", &stretch(&data, size)[..]].concat(),
            Kind::PlainJson => {
                format!("{{\"apiVersion\":\"example.com/v1\",\"x\":\"{}\"}}", hex::encode(data)).into_bytes()
            }
            Kind::Corrupt => [&b"k8s:enc:kms:v2:primary:"[..], &[0xff; 40]].concat(),
            Kind::CutShort => {
                let whole = kms("primary", NEW, 1, &data, size, dek);
                whole[..whole.len() - 60].to_vec()
            }
        };
        let group = self.expected.groups.entry((resource, kind.clone())).or_default();
        group.objects += 1;
        group.bytes += value.len() as u64;
        if matches!(kind, Kind::KmsV2 { .. }) {
            self.sources.entry((resource, kind)).or_default().insert(dek);
        }
        self.pairs.push((key, value));
    }
}

/// The value of a KMS v2 provider; `dek` numbers the wrapped DEKs of one key_id and type.
fn kms(provider: &str, key_id: &str, dek_type: i32, data: &[u8], size: usize, dek: usize) -> Vec<u8> {
    let source = |part: &str| seed(format!("{key_id} {dek_type} {dek}").as_bytes(), part);
    let ours = key_id.starts_with("k1-");
    // 0x01, nonce, 32 bytes, tag: stored format 1. Another plugin's is opaque.
    let wrapped = if ours { [&[1][..], &stretch(&source("seed"), 60)].concat() } else { stretch(&source("blob"), 150) };
    let annotations = if ours {
        let kek = b"local:6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11".to_vec();
        BTreeMap::from([("dek.kube-kms".to_owned(), stretch(&source("dek"), 77)), ("kek.kube-kms".to_owned(), kek)])
    } else {
        BTreeMap::new()
    };
    let object = EncryptedObject {
        encrypted_data: stretch(data, size),
        key_id: key_id.to_owned(),
        encrypted_dek_source: wrapped,
        annotations,
        encrypted_dek_source_type: dek_type,
    };
    stored::encode(provider, &object)
}

fn seed(of: &[u8], part: &str) -> [u8; 32] {
    Sha256::new().chain_update(of).chain_update(part).finalize().into()
}

/// `size` bytes that do not look like anything.
fn stretch(seed: &[u8], size: usize) -> Vec<u8> {
    let mut state = seed
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 32).to_le_bytes()[..4]);
    }
    bytes.truncate(size);
    bytes
}
