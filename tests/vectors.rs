//! Stored format 1 against known answers that this code did not make (tests/vectors/README.md). FROZEN.
//!
//! Guarantees: every vector of both files is checked, and the number of them is pinned, so that none can get lost. The
//! rejections go through the use case Decrypt, cold and with a filled keyring, because the reason may not depend on that.

use base64::Engine as _;
use kube_kms_config as config;
use kube_kms_core::annotation::{AdditionalData, Annotations, WrappedDek};
use kube_kms_core::context::{OWN_PAIR, WrapContext};
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::envelope::Envelope;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Entropy, Kek, KekCall, KekFuture, Unwrapped, Wrapped};
use kube_kms_core::uid::Uid;
use kube_kms_kek_local::LocalKek;
use kube_kms_os::{MonotonicClock, OsEntropy};
use kube_kms_service::decrypt::DecryptInput;
use kube_kms_service::kek_set::{KekEntry, KekSet};
use kube_kms_service::observer::Unobserved;
use kube_kms_service::plugin::{Parts, Plugin};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

const FORMAT1: &str = include_str!("vectors/format1.json");
const LOCAL1: &str = include_str!("vectors/local1.json");
const REJECTIONS: &str = include_str!("vectors/rejections.json");

/// Gives exactly these bytes.
#[derive(Debug)]
struct Scripted(Vec<u8>);

impl Entropy for Scripted {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        bytes.copy_from_slice(&self.0);
        Ok(())
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// `hex`, or `hex*N` for one byte N times.
fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    match text.split_once('*') {
        Some((byte, times)) => hex::decode(byte).unwrap().repeat(times.parse().unwrap()),
        None => hex::decode(text).unwrap(),
    }
}

fn text(value: &Value) -> String {
    let text = value.as_str().unwrap();
    match text.split_once('*') {
        Some((character, times)) => character.repeat(times.parse().unwrap()),
        None => text.to_owned(),
    }
}

fn annotations(value: &Value) -> BTreeMap<String, Vec<u8>> {
    value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), bytes(value))).collect()
}

fn dek(raw: &[u8]) -> Dek {
    Dek::new(&DekBytes::copy_from(raw).unwrap()).unwrap()
}

#[test]
fn every_key_id_is_the_known_one() {
    let known = json(FORMAT1);
    let all = known["key_id"].as_array().unwrap();
    assert_eq!(all.len(), 5);
    for vector in all {
        let named = format!("{}:{}", vector["kind"].as_str().unwrap(), vector["identity"].as_str().unwrap());
        let version = KekVersion {
            kek: KekRef::parse(named.as_bytes()).unwrap(),
            version: vector["version"].as_str().unwrap().to_owned(),
        };
        let derived = KeyId::derive(&version, vector["epoch"].as_u64().unwrap());
        assert_eq!(derived.as_str(), vector["key_id"].as_str().unwrap());
        assert!(derived.is_ours());
    }
}

#[test]
fn every_context_digest_is_the_known_one() {
    let known = json(FORMAT1);
    let all = known["context"].as_array().unwrap();
    assert_eq!(all.len(), 3);
    for vector in all {
        let pairs: BTreeMap<String, String> = vector["pairs"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| *key != OWN_PAIR.0)
            .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(hex::encode(WrapContext::new(pairs).digest()), vector["digest"].as_str().unwrap());
    }
}

#[test]
fn every_seal_is_the_known_one_and_opens() {
    let known = json(FORMAT1);
    let all = known["seal"].as_array().unwrap();
    assert_eq!(all.len(), 4);
    for vector in all {
        let key_id = KeyId::parse(vector["key_id"].as_str().unwrap().to_owned()).unwrap();
        let annotations = Annotations::parse(annotations(&vector["annotations"])).unwrap();
        let aad = AdditionalData::bind(&key_id, annotations.all());
        assert_eq!(hex::encode(aad.as_bytes()), vector["aad"].as_str().unwrap());
        let (dek, plaintext) = (dek(&bytes(&vector["dek"])), bytes(&vector["plaintext"]));
        let sealed = dek.seal(&Scripted(bytes(&vector["nonce"])), &aad, &plaintext).unwrap();
        assert_eq!(hex::encode(&sealed), vector["ciphertext"].as_str().unwrap());
        assert_eq!(*dek.open(Envelope::parse(&sealed).unwrap(), &aad).unwrap(), plaintext);
    }
}

#[tokio::test]
async fn every_dek_wrapped_by_the_local_kek_is_the_known_one_and_unwraps() {
    let known = json(LOCAL1);
    let all = known["wrap"].as_array().unwrap();
    assert_eq!(all.len(), 3);
    let dir = tempfile::tempdir().unwrap();
    for (number, vector) in all.iter().enumerate() {
        let field = |name: &str| vector[name].as_str().unwrap();
        let material = base64::engine::general_purpose::STANDARD.encode(bytes(&vector["material"]));
        let (ring, version) = (field("keyring"), field("version"));
        let key = serde_json::json!({"id": version, "created": "2026-01-02T03:04:05Z", "state": "enabled", "material": material});
        let file = serde_json::json!(
            {"format": "kube-kms-keyring", "version": 1, "id": ring, "current": version, "keys": [key]}
        );
        let path = dir.path().join(format!("{number}.json"));
        std::fs::write(&path, file.to_string()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let kek = LocalKek::new(path, Arc::new(Scripted(bytes(&vector["nonce"]))));
        let pairs: BTreeMap<String, String> = serde_json::from_value(vector["context"].clone()).unwrap();
        let (context, call) = (WrapContext::new(pairs), KekCall { timeout: Duration::from_secs(10), uid: None });
        let dek = DekBytes::copy_from(&bytes(&vector["dek"])).unwrap();
        let wrapped = kek.wrap_dek(&dek, &context, &call).await.unwrap();
        assert_eq!(hex::encode(wrapped.dek.as_bytes()), field("blob"));
        assert_eq!(wrapped.kek.as_str(), format!("local:{ring}"));
        let back = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context, &call).await.unwrap();
        assert!(back.dek.same_as(&dek) && back.version.version == version);
    }
}

/// A KEK that unwraps what stands in a table, under one name.
#[derive(Debug)]
struct Table {
    name: KekRef,
    unwraps: HashMap<Vec<u8>, Vec<u8>>,
}

impl Kek for Table {
    fn kind(&self) -> KekKind {
        KekKind::AWS
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        *kek == self.name
    }

    fn wrap_dek<'a>(&'a self, _: &'a DekBytes, _: &'a WrapContext, _: &'a KekCall) -> KekFuture<'a, Wrapped> {
        Box::pin(async { Err(Reason::Invariant.into()) })
    }

    fn unwrap_dek<'a>(
        &'a self,
        kek: &'a KekRef,
        dek: &'a WrappedDek,
        _: &'a WrapContext,
        _: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped> {
        Box::pin(async move {
            let raw = self.unwraps.get(dek.as_bytes()).ok_or(Reason::WrappedDekRejected)?;
            let version = KekVersion { kek: kek.clone(), version: String::new() };
            Ok(Unwrapped { dek: DekBytes::copy_from(raw)?, version })
        })
    }
}

/// A plugin that has just been started and may only read.
fn plugin(file: &Value, unwraps_to: Option<&Value>) -> Arc<Plugin> {
    let config = config::parse("listen: {socket: /x/kms.sock}\nkek: {local: {keyring: /x/keyring.json}}\n").unwrap();
    let unwraps = file["unwraps"].as_object().unwrap().iter();
    let unwraps = unwraps.map(|(blob, raw)| (hex::decode(blob).unwrap(), bytes(unwraps_to.unwrap_or(raw)))).collect();
    let kek = Table { name: KekRef::parse(file["kek"].as_str().unwrap().as_bytes()).unwrap(), unwraps };
    let entry = KekEntry { kek: Arc::new(kek), context: WrapContext::new(BTreeMap::new()) };
    Arc::new(Plugin::new(
        Parts {
            keks: KekSet::new(entry, Vec::new()),
            settings: config.settings,
            clock: Arc::new(MonotonicClock::new()),
            entropy: Arc::new(OsEntropy),
            observer: Arc::new(Unobserved),
        },
        None,
    ))
}

struct Triple {
    ciphertext: Vec<u8>,
    key_id: String,
    annotations: BTreeMap<String, Vec<u8>>,
}

impl Triple {
    fn of(vector: &Value) -> Self {
        Self {
            ciphertext: bytes(&vector["ciphertext"]),
            key_id: text(&vector["key_id"]),
            annotations: annotations(&vector["annotations"]),
        }
    }

    async fn open(&self, plugin: &Arc<Plugin>) -> Result<Vec<u8>, &'static str> {
        let input = DecryptInput {
            ciphertext: &self.ciphertext,
            key_id: self.key_id.clone(),
            annotations: self.annotations.clone(),
            uid: &Uid::parse("vector"),
            patience: Duration::from_secs(10),
        };
        plugin.decrypt(input).await.map(|opened| opened.plaintext.to_vec()).map_err(|fault| fault.reason().label())
    }
}

#[tokio::test]
async fn every_rejection_is_refused_for_its_reason_cold_and_warm() {
    let file = json(REJECTIONS);
    let good = Triple::of(&file["good"]);
    let plaintext = bytes(&file["good"]["plaintext"]);
    let all = file["rejections"].as_array().unwrap();
    assert_eq!(all.len(), 60, "vectors are added, never removed");
    let warm = plugin(&file, None);
    assert_eq!(good.open(&warm).await.unwrap(), plaintext, "the known-good value does not open");
    let mut wrong = Vec::new();
    for vector in all {
        let (name, expected) = (vector["name"].as_str().unwrap(), vector["reason"].as_str().unwrap());
        let unwraps_to = vector.get("unwraps_to");
        let cold = Triple::of(vector).open(&plugin(&file, unwraps_to)).await;
        if cold != Err(expected) {
            wrong.push(format!("{name}: expected {expected}, cold: {cold:?}"));
        }
        if unwraps_to.is_none() {
            for time in ["first", "second"] {
                let again = Triple::of(vector).open(&warm).await;
                if again != Err(expected) {
                    wrong.push(format!("{name}: expected {expected}, warm, {time} time: {again:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(good.open(&warm).await.unwrap(), plaintext, "a rejected value has spoilt the keyring");
}

#[test]
fn every_reason_that_a_value_can_be_refused_for_has_a_vector() {
    let file = json(REJECTIONS);
    let seen: Vec<&str> =
        file["rejections"].as_array().unwrap().iter().map(|v| v["reason"].as_str().unwrap()).collect();
    for reason in [
        Reason::CiphertextEmpty,
        Reason::CiphertextTooShort,
        Reason::CiphertextTooLong,
        Reason::FormatUnknown,
        Reason::KeyIdEmpty,
        Reason::KeyIdTooLong,
        Reason::AnnotationMissing,
        Reason::AnnotationInvalid,
        Reason::AnnotationsTooLarge,
        Reason::KekNotConfigured,
        Reason::OpenFailed,
        Reason::WrappedDekRejected,
    ] {
        assert!(seen.contains(&reason.label()), "{reason}");
    }
}

#[tokio::test]
async fn every_flipped_bit_and_every_other_length_of_a_value_is_refused() {
    let file = json(REJECTIONS);
    let good = Triple::of(&file["good"]);
    let plugin = plugin(&file, None);
    good.open(&plugin).await.unwrap();
    let with =
        |ciphertext: Vec<u8>| Triple { ciphertext, key_id: good.key_id.clone(), annotations: good.annotations.clone() };
    for at in 0..good.ciphertext.len() {
        for bit in 0..8 {
            let mut flipped = good.ciphertext.clone();
            flipped[at] ^= 1 << bit;
            let expected = if at == 0 { "format-unknown" } else { "open-failed" };
            assert_eq!(with(flipped).open(&plugin).await, Err(expected), "byte {at}, bit {bit}");
        }
    }
    for len in 0..=good.ciphertext.len() + 1100 {
        let mut resized = good.ciphertext.clone();
        resized.resize(len, 0);
        let expected = match len {
            0 => "ciphertext-empty",
            1..=29 => "ciphertext-too-short",
            61 => continue,
            30..=1024 => "open-failed",
            _ => "ciphertext-too-long",
        };
        assert_eq!(with(resized).open(&plugin).await, Err(expected), "{len} bytes");
    }
}

#[tokio::test]
async fn every_changed_byte_of_key_id_and_annotations_is_refused() {
    let file = json(REJECTIONS);
    let good = Triple::of(&file["good"]);
    let plugin = plugin(&file, None);
    good.open(&plugin).await.unwrap();
    for at in 0..good.key_id.len() {
        let mut key_id = good.key_id.clone().into_bytes();
        key_id[at] ^= 1;
        let bad = Triple { key_id: String::from_utf8(key_id).unwrap(), ..Triple::of(&file["good"]) };
        assert_eq!(bad.open(&plugin).await, Err("open-failed"), "key_id, byte {at}");
    }
    for name in good.annotations.keys() {
        for at in 0..good.annotations[name].len() {
            let mut bad = Triple::of(&file["good"]);
            bad.annotations.get_mut(name).unwrap()[at] ^= 1;
            let reason = bad.open(&plugin).await.unwrap_err();
            let expected: &[&str] = match name.as_str() {
                "dek.kube-kms" => &["wrapped-dek-rejected"],
                "kek.kube-kms" => &["kek-not-configured", "annotation-invalid"],
                _ => &["open-failed"],
            };
            assert!(expected.contains(&reason), "{name}, byte {at}: {reason}");
        }
        for at in 0..name.len() {
            let mut bad = Triple::of(&file["good"]);
            let value = bad.annotations.remove(name).unwrap();
            let mut changed = name.clone().into_bytes();
            changed[at] ^= 1;
            bad.annotations.insert(String::from_utf8(changed).unwrap(), value);
            let reason = bad.open(&plugin).await.unwrap_err();
            assert!(["annotation-missing", "open-failed"].contains(&reason), "name {name}, byte {at}: {reason}");
        }
    }
}
