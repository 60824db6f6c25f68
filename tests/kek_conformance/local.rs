//! The `local` provider on a keyring file of its own.

use super::bench::Bench;
use base64::Engine as _;
use kube_kms_core::port::Kek;
use kube_kms_kek_local::{LocalKek, operation};
use kube_kms_os::OsEntropy;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::SystemTime;
use tempfile::TempDir;

pub struct LocalBench {
    dir: TempDir,
    retired: Mutex<Option<String>>,
    hang: Mutex<Option<mpsc::Sender<()>>>,
}

impl LocalBench {
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap(), retired: Mutex::new(None), hang: Mutex::new(None) };
        for name in ["keyring.json", "other.json"] {
            operation::init(&bench.path(name), SystemTime::now(), &OsEntropy).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn keyring(&self) -> PathBuf {
        self.path("keyring.json")
    }

    fn current(&self) -> String {
        let listing = operation::list(&self.keyring(), 0).unwrap();
        listing.versions.iter().find(|v| v.current).unwrap().version.to_string()
    }
}

fn instance(path: &Path) -> Arc<dyn Kek> {
    Arc::new(LocalKek::new(path.to_owned(), Arc::new(OsEntropy)))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Bench for LocalBench {
    fn kek(&self) -> Arc<dyn Kek> {
        instance(&self.keyring())
    }

    fn other(&self) -> Arc<dyn Kek> {
        instance(&self.path("other.json"))
    }

    fn calls(&self) -> usize {
        0
    }

    fn rotate(&self) {
        let added = operation::add(&self.keyring(), SystemTime::now(), &OsEntropy).unwrap();
        operation::promote(&self.keyring(), &added.to_string()).unwrap();
    }

    /// The only thread for blocking work waits for us: that is what a disk that hangs looks like from the provider.
    fn slow(&self) {
        let (end, wait) = mpsc::channel();
        tokio::task::spawn_blocking(move || wait.recv().is_ok());
        *self.hang.lock().unwrap() = Some(end);
    }

    fn unreachable(&self) {
        fs::rename(self.keyring(), self.path("away")).unwrap();
    }

    fn denied(&self) {
        set_mode(&self.keyring(), 0o644);
    }

    fn disabled(&self) {
        let old = self.current();
        self.rotate();
        operation::retire(&self.keyring(), &old).unwrap();
        *self.retired.lock().unwrap() = Some(old);
    }

    fn disabled_ends_wraps(&self) -> bool {
        false
    }

    fn restart(&self) {
        fs::rename(self.keyring(), self.path("away")).unwrap();
        fs::rename(self.path("away"), self.keyring()).unwrap();
    }

    fn heal(&self) {
        *self.hang.lock().unwrap() = None;
        if self.path("away").exists() {
            fs::rename(self.path("away"), self.keyring()).unwrap();
        }
        set_mode(&self.keyring(), 0o600);
        if let Some(version) = self.retired.lock().unwrap().take() {
            operation::reinstate(&self.keyring(), &version).unwrap();
        }
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        let file: serde_json::Value = serde_json::from_slice(&fs::read(self.keyring()).unwrap()).unwrap();
        let material = |key: &serde_json::Value| {
            base64::engine::general_purpose::STANDARD.decode(key["material"].as_str().unwrap()).unwrap()
        };
        file["keys"].as_array().unwrap().iter().map(material).collect()
    }
}
