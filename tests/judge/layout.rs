//! An EncryptionConfiguration, as the file that a real API server loads and as what the simulator is given.

use super::shadow::Patient;
use crate::support::site::Site;
use kms_v2_judge::apiserver::{Provider, Settings};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The provider's name, where there is one KMS.
pub const PROVIDER: &str = "judge";

/// One provider.
#[derive(Clone, Debug)]
pub enum Entry {
    Kms { name: &'static str, socket: PathBuf, timeout: u64 },
    Identity,
}

impl Entry {
    /// The plugin of that site under this name, with kube-apiserver's default timeout.
    pub fn kms(name: &'static str, site: &Site) -> Self {
        Self::Kms { name, socket: site.socket(), timeout: 3 }
    }

    fn yaml(&self) -> String {
        match self {
            Self::Identity => "  - identity: {}\n".to_owned(),
            Self::Kms { name, socket, timeout } => format!(
                "  - kms: {{apiVersion: v2, name: {name}, endpoint: 'unix://{}', timeout: {timeout}s}}\n",
                socket.display()
            ),
        }
    }

    fn provider(&self) -> Provider {
        match self {
            Self::Identity => Provider::Identity,
            Self::Kms { name, socket, timeout } => {
                let timeout = Duration::from_secs(*timeout);
                let settings = Settings { timeout, ..Settings::new(name) };
                Provider::Kms { settings, plugin: Arc::new(Patient::new(socket.clone(), timeout)) }
            }
        }
    }
}

/// The first writes.
pub type Layout = Vec<Entry>;

/// One KMS that writes, and plaintext is still read.
pub fn ordinary(site: &Site) -> Layout {
    vec![Entry::kms(PROVIDER, site), Entry::Identity]
}

/// The simulator's.
pub fn providers(layout: &[Entry]) -> Vec<Provider> {
    layout.iter().map(Entry::provider).collect()
}

/// The names of its KMS providers.
pub fn names(layout: &[Entry]) -> Vec<&'static str> {
    layout.iter().filter_map(|e| if let Entry::Kms { name, .. } = e { Some(*name) } else { None }).collect()
}

/// The file, replaced as an editor does it: never half of it.
pub fn write(layout: &[Entry], resource: &str, path: &Path) {
    let entries: String = layout.iter().map(Entry::yaml).collect();
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [{resource}]\n  \
         providers:\n{entries}"
    );
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}
