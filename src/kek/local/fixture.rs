//! What the tests of this folder share: known keys, a known keyring file, and entropy that can be foretold.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::port::{Entropy, KekCall};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// The uuids of tests/vectors/format1.json.
pub(super) const KEYRING: &str = "6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11";
pub(super) const VERSION: &str = "2f2b5a1e-3f7f-4c57-8a38-4f0f7a8d1c22";
pub(super) const OTHER: &str = "2f2b0000-0000-4000-8000-000000000001";
/// 0x80 to 0x9f: the canary of the leak tests.
pub(super) const MATERIAL: &str = "gIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp8=";
pub(super) const OTHER_MATERIAL: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";

/// As [`super::json::render`] writes it: two versions, the first current.
pub(super) fn known_file() -> String {
    format!(
        concat!(
            r#"{{"format":"kube-kms-keyring","version":1,"id":"{}","current":"{}","keys":["#,
            "\n",
            r#"{{"id":"{}","created":"2026-01-02T03:04:05Z","state":"enabled","material":"{}"}},"#,
            "\n",
            r#"{{"id":"{}","created":"2026-02-02T03:04:05Z","state":"enabled","material":"{}"}}"#,
            "\n]}}\n"
        ),
        KEYRING, VERSION, VERSION, MATERIAL, OTHER, OTHER_MATERIAL
    )
}

/// The known file with so many versions; all that are not in the known file are retired.
pub(super) fn file_of(versions: usize) -> String {
    let mut lines = String::from("[");
    for index in 2..versions {
        let mut material = [7_u8; 32];
        material[..8].copy_from_slice(&index.to_be_bytes());
        let (id, material) = (uuid::Uuid::from_u128(index as u128), STANDARD.encode(material));
        let line = r#"{"id":"ID","created":"2026-01-02T03:04:05Z","state":"retired","material":"M"},"#;
        lines.push_str(&line.replace("ID", &id.to_string()).replace('M', &material));
    }
    known_file().replacen("[\n", &lines, 1)
}

/// A directory with a keyring file of that content, mode 0600.
pub(super) fn file_with(content: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyring.json");
    put(&path, content);
    (dir, path)
}

pub(super) fn put(path: &Path, content: &str) {
    kube_kms_os::durable::write(path, content.as_bytes(), kube_kms_os::durable::Existing::Replace).unwrap();
}

pub(super) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub(super) fn moment(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap()
}

/// Every byte one more than the one before.
#[derive(Debug)]
pub(super) struct Counting(AtomicU8);

impl Counting {
    pub(super) fn from(first: u8) -> Self {
        Self(AtomicU8::new(first))
    }
}

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        for byte in bytes {
            *byte = self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The same byte for ever.
#[derive(Debug)]
pub(super) struct Stuck;

impl Entropy for Stuck {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        bytes.fill(0x22);
        Ok(())
    }
}

/// None.
#[derive(Debug)]
pub(super) struct Dry;

impl Entropy for Dry {
    fn fill(&self, _bytes: &mut [u8]) -> Result<(), Fault> {
        Err(Reason::Entropy.into())
    }
}

/// 0x00 to 0x1f.
pub(super) fn dek() -> DekBytes {
    DekBytes::generate(&Counting::from(0)).unwrap()
}

pub(super) fn context(cluster: &str) -> WrapContext {
    WrapContext::new(BTreeMap::from([("cluster".to_owned(), cluster.to_owned())]))
}

pub(super) fn call() -> KekCall {
    KekCall { timeout: Duration::from_secs(30), uid: None }
}

/// Fails when a text shows the known material, in any of the spellings that a slip would give it.
pub(super) fn assert_no_canary(text: &str) {
    let raw: Vec<u8> = (0x80..0xa0).collect();
    let list = format!("{raw:?}");
    for spelling in [&MATERIAL[..12], &MATERIAL[20..32], &hex::encode(&raw)[..16], &list[1..20], "808182"] {
        assert!(!text.to_lowercase().contains(&spelling.to_lowercase()), "the material is in: {text}");
    }
    assert!(!text.as_bytes().windows(4).any(|window| window == &raw[..4]), "raw material is in: {text}");
}
