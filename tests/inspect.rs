//! `kmsctl inspect`: every field of known values, and whether a value opens, without a byte of what is in it.

use crate::support::site::{KMSCTL, Site};
use kms_v2_api::stored;
use kms_v2_api::v2::{EncryptedDekSourceType, EncryptedObject};
use kms_v2_judge::apiserver::DekSource;
use kube_kms_core::printable::is_steering;
use kube_kms_etcd::value::Value as Scanned;
use kube_kms_os::OsEntropy;
use serde_json::Value;
use std::io::Write as _;
use std::process::{Output, Stdio};

/// A whole value of a demo provider: see src/judge/apiserver/dek_source.rs.
const VECTOR: &str = "6b38733a656e633a6b6d733a76323a64656d6f3a0a46202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d\
    3e3f404142434445464748494a4b6f6547cdc02b1b1dcdef04ede2852daefb4aad95d2634d3d1ef212056b65792d311a03aabbcc\
    22120a0d612e6578616d706c652e636f6d1201012801";
const KEY: &str = "/registry/secrets/default/s1";
const CANARY: &[u8] = b"canary-that-nobody-may-see-0123456789";

fn inspect(site: &Site, stdin: &[u8], arguments: &[&str]) -> Output {
    let mut command = site.process(KMSCTL, &[&["inspect"], arguments].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn assert_says(output: &Output, status: i32, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(status), "{}", text(output));
    for part in parts {
        assert!(text(output).contains(part), "{part:?} is not in:\n{}", text(output));
    }
}

#[test]
fn a_known_value_is_decoded_to_its_last_field() {
    let site = Site::local();
    let hex = VECTOR.as_bytes();
    let output = inspect(&site, hex, &["--output", "json"]);
    assert_says(&output, 0, &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["form"], &report["bytes"]), (&"kms-v2".into(), &(VECTOR.len() / 2).into()));
    let fields = &report["kmsV2"];
    assert_eq!((&fields["provider"], &fields["keyId"]), (&"demo".into(), &"key-1".into()));
    assert_eq!((&fields["dekSourceType"], &fields["wrappedDekSourceBytes"]), (&1.into(), &3.into()));
    assert_eq!((&fields["encryptedDataBytes"], &fields["objectBytes"]), (&70.into(), &10.into()));
    assert_eq!(fields["annotations"][0]["name"], "a.example.com");
    assert_eq!(fields["annotations"][0]["hex"], "01");
    assert!(fields["keyIdHash"].as_str().unwrap().starts_with("sha256:"));
    let raw = hex::decode(VECTOR).unwrap();
    assert_says(
        &inspect(&site, &raw, &[]),
        0,
        &["opaque here", "info (32), nonce (12), object (10), tag (16)", "type 1"],
    );
    assert_says(&inspect(&site, &raw, &["--encoding", "hex"]), 1, &["error: stdin is not what --encoding says"]);
}

#[test]
fn what_is_not_kms_v2_is_named_and_what_is_damaged_is_exit_status_6() {
    let site = Site::local();
    for (value, part) in [
        (b"k8s\0x".as_slice(), "not encrypted: protobuf"),
        (b"{\"a\":1}", "not encrypted: JSON"),
        (b"k8s:enc:aescbc:v1:key1:x", "encrypted by aescbc under the key key1"),
        (b"k8s:enc:kms:v1:a:b:\x00\x10x", "KMS v1 provider a:b"),
        (b"what", "in no form"),
    ] {
        assert_says(&inspect(&site, value, &[]), 0, &[part]);
    }
    let raw = hex::decode(VECTOR).unwrap();
    assert_says(&inspect(&site, &raw[..60], &[]), 6, &["PROBLEM", "cut short"]);
    assert_says(&inspect(&site, b"", &[]), 1, &["error: stdin is empty", "hint: "]);
    assert_says(&inspect(&site, b"{}", &["--decrypt-check"]), 2, &["--config"]);
}

/// As kube-apiserver does: and the fields are explained all the same.
#[test]
fn a_name_of_an_annotation_that_kube_apiserver_refuses_is_damage_for_inspect_as_for_scan() {
    let site = Site::local();
    let object = |name: &str| EncryptedObject {
        encrypted_data: vec![7; 70],
        key_id: "key-1".to_owned(),
        encrypted_dek_source: vec![1, 2, 3],
        annotations: [(name.to_owned(), b"seen".to_vec())].into(),
        encrypted_dek_source_type: 1,
    };
    for (name, good) in
        [("kek.example.io", true), ("kms.example.io/local-kek", false), ("kek", false), ("KEK.io", false)]
    {
        let value = stored::encode("demo", &object(name));
        assert_eq!(matches!(Scanned::parse(&value), Scanned::KmsV2(_)), good, "{name}");
        let output = inspect(&site, &value, &["--output", "json"]);
        assert_says(&output, if good { 0 } else { 6 }, &[]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["form"], if good { "kms-v2" } else { "damaged" });
        assert_eq!(
            (&report["kmsV2"]["keyId"], &report["kmsV2"]["annotations"][0]["text"]),
            (&"key-1".into(), &"seen".into())
        );
        assert_eq!(
            report["problems"].to_string().contains(&format!("annotation name \\\"{name}\\\"")),
            !good,
            "{report}"
        );
    }
}

/// What a terminal obeys, and what changes how a line reads: in no output, and in JSON still there for whoever parses it.
#[test]
fn nothing_in_a_value_reaches_a_terminal_that_it_would_obey() {
    const HOSTILE: &str = "x\u{9b}2J\u{202e}\u{2066}\u{200b}\u{feff}\n\u{1b}]0;y\u{7f}\u{e0041}";
    let site = Site::local();
    let object = EncryptedObject {
        encrypted_data: vec![7; 70],
        key_id: HOSTILE.to_owned(),
        encrypted_dek_source: vec![1],
        annotations: [(HOSTILE.to_owned(), HOSTILE.as_bytes().to_vec())].into(),
        encrypted_dek_source_type: 1,
    };
    let value = stored::encode(HOSTILE, &object);
    for format in ["json", "text"] {
        for key in [None, Some(HOSTILE)] {
            let arguments = [key.as_slice(), &["--file", "-", "--output", format]].concat();
            let output = inspect(&site, &value, &arguments);
            assert_says(&output, 6, &[]);
            let said = text(&output);
            let steering: Vec<char> = said.chars().filter(|c| *c != '\n' && is_steering(*c)).collect();
            assert!(steering.is_empty(), "{steering:?} in {said:?}");
            assert!(
                !said.contains("\n]0;") && said.contains(if format == "json" { "\\u009b2J" } else { "\\u{9b}2J" }),
                "{said}"
            );
        }
    }
    let report: Value = serde_json::from_slice(&inspect(&site, &value, &["--output", "json"]).stdout).unwrap();
    assert_eq!((&report["kmsV2"]["keyId"], &report["kmsV2"]["provider"]), (&HOSTILE.into(), &HOSTILE.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_this_plugin_opens_by_its_keks_and_by_its_socket_and_nothing_shows() {
    let site = Site::local();
    let running = site.start().await;
    running.until_ok().await;
    let seed: Vec<u8> = (0..32).map(|n| 0xa0 ^ n).collect();
    let sealed = running.client().await.encrypt(seed.clone(), "uid".to_owned()).await.unwrap();
    let source = DekSource::parse(EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed, &seed).unwrap();
    let object = EncryptedObject {
        encrypted_data: source.seal(&OsEntropy, KEY, CANARY).unwrap(),
        key_id: sealed.key_id.clone(),
        encrypted_dek_source: sealed.ciphertext.clone(),
        annotations: sealed.annotations.clone(),
        encrypted_dek_source_type: 1,
    };
    let value = stored::encode("kube-kms", &object);
    let config = site.write_config();
    let socket = site.socket();
    let with_config = ["--decrypt-check", "--config", config.to_str().unwrap()];
    let with_socket = ["--decrypt-check", "--socket", socket.to_str().unwrap()];
    let damaged = |change: fn(&mut EncryptedObject)| {
        let mut object = object.clone();
        change(&mut object);
        stored::encode("kube-kms", &object)
    };
    let dek_damaged = damaged(|o| o.encrypted_dek_source[20] ^= 1);
    let data_damaged = damaged(|o| o.encrypted_data[50] ^= 1);
    let renamed = damaged(|o| o.key_id.push('x'));
    for with in [with_config, with_socket] {
        let run = |value: &[u8], key: Option<&str>| {
            let file: &[&str] = if key.is_some() { &["--file", "-"] } else { &[] };
            let output = inspect(&site, value, &[key.as_slice(), file, &with].concat());
            for secret in [CANARY, &seed] {
                let said = [output.stdout.as_slice(), &output.stderr].concat();
                let shows = |needle: &[u8]| said.windows(needle.len()).any(|window| window == needle);
                assert!(!shows(secret) && !shows(hex::encode(secret).as_bytes()), "{}", text(&output));
            }
            output
        };
        assert_says(
            &run(&value, Some(KEY)),
            0,
            &["DEK source  opens", "object      opens", "format 1", "the KEK that can unwrap"],
        );
        assert_says(&run(&value, None), 0, &["DEK source  opens", "not tried: its etcd key is not given"]);
        assert_says(
            &run(&value, Some("/registry/secrets/default/s2")),
            6,
            &["DEK source  opens", "object      DOES NOT OPEN"],
        );
        assert_says(&run(&data_damaged, Some(KEY)), 6, &["DEK source  opens", "object      DOES NOT OPEN"]);
        assert_says(&run(&dek_damaged, Some(KEY)), 6, &["DEK source  DOES NOT OPEN", "object      not tried"]);
        assert_says(&run(&renamed, Some(KEY)), 6, &["DEK source  DOES NOT OPEN"]);
        assert_says(&run(b"k8s\0plain", Some(KEY)), 6, &["nothing for a KMS v2 plugin to open"]);
    }
    let other = Site::local().write_config();
    let foreign = ["--decrypt-check", "--config", other.to_str().unwrap()];
    assert_says(&inspect(&site, &value, &foreign), 3, &["error: "]);
    assert_says(&inspect(&site, &value, &["--decrypt-check", "--socket", "/nowhere.sock"]), 4, &["nobody answers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_read_from_etcd_by_its_key() {
    let site = Site::local();
    let store = match crate::support::etcd_store::EtcdStore::start(site.dir(), &[]).await {
        Ok(store) => store,
        Err(reason) => return crate::support::skipped("inspect::from_etcd", &reason),
    };
    store.put([(KEY.as_bytes().to_vec(), hex::decode(VECTOR).unwrap())]).await;
    let output = inspect(&site, b"", &[KEY, "--endpoints", store.url()]);
    assert_says(&output, 0, &["key-1", "revision    2", KEY]);
    assert_says(
        &inspect(&site, b"", &["/registry/x", "--endpoints", store.url()]),
        1,
        &["etcd has no key /registry/x"],
    );
}
