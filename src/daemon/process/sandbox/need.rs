//! What serving needs of the host: directories to read, directories to write, ports to reach and to bind.
//!
//! Guarantees: a file that is replaced by rename(2), as configuration managers, kubelet and certificate renewers do it, stays
//! readable, because its directory is named and not the file. Refuses to know how it is enforced.

use kms_v2_api::address::{Place, SocketAddress};
use kube_kms_config::surroundings::{self, Surroundings};
use kube_kms_config::{AwsKekConfig, Config, KekConfig};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const HTTPS: u16 = 443;
/// Instance metadata and container credentials.
const HTTP: u16 = 80;
/// Answers too large for UDP.
const DNS: u16 = 53;

/// Names, and the modules of the C library that look them up; certificates. What is not there is left out.
const LOOKUP: &[&str] = &[
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/lib/ssl",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
    "/run/resolvconf",
];
/// Files of which only these are needed in their directory, and which may be replaced.
const LOOKUP_FILES: &[&str] =
    &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"];
/// For the libraries: randomness where getrandom(2) is not, and what the runtime asks about this process.
const SYSTEM: &[&str] = &["/dev/null", "/dev/urandom", "/proc/self", "/sys/fs/cgroup"];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub(super) read: BTreeSet<PathBuf>,
    pub(super) write: BTreeSet<PathBuf>,
    /// Where a directory that is written to may be made anew: what is above it, when nothing else is there.
    pub(super) remake: BTreeSet<PathBuf>,
    pub(super) connect: BTreeSet<u16>,
    pub(super) bind: Option<u16>,
}

impl Need {
    /// What serving this configuration needs.
    #[must_use]
    pub fn of(config: &Config, config_file: &Path, surroundings: &Surroundings) -> Self {
        let mut need = Self::of_keks(config);
        need.read_file(config_file);
        need.read.extend(SYSTEM.iter().map(PathBuf::from));
        need.write.insert(config.state_dir.clone());
        if let Some(dir) = socket_directory(config) {
            need.write.insert(dir);
        }
        need.remake.extend(config.state_dir.parent().filter(|dir| need.is_ours_alone(dir)).map(Path::to_owned));
        need.bind = config.http.map(|address| address.port());
        need.connect.extend(&surroundings.ports);
        need.connect.extend(config.otlp.as_deref().and_then(surroundings::port_of));
        if !need.connect.is_empty() {
            need.connect.insert(DNS);
            need.read.extend(LOOKUP.iter().map(PathBuf::from));
            for file in LOOKUP_FILES.iter().map(Path::new).chain(surroundings.files.iter().map(PathBuf::as_path)) {
                need.read_file(file);
            }
        }
        need
    }

    /// The part of it that a reload can change.
    #[must_use]
    pub fn of_keks(config: &Config) -> Self {
        let mut need = Self::default();
        for kek in [&config.kek].into_iter().chain(&config.read).chain(&config.recovery.keks) {
            match kek {
                KekConfig::Local(local) => need.read_file(&local.keyring),
                KekConfig::Aws(AwsKekConfig { endpoint, .. }) => {
                    need.connect.extend([HTTPS, HTTP]);
                    need.connect.extend(endpoint.as_deref().and_then(surroundings::port_of));
                }
            }
        }
        need
    }

    /// What the other needs and this does not have, in words.
    pub(super) fn lacks(&self, other: &Self) -> Vec<String> {
        let has = |path: &Path| self.read.iter().chain(&self.write).any(|given| path.starts_with(given));
        let files = other.read.iter().filter(|path| !has(path)).map(|path| path.display().to_string());
        let ports = other.connect.difference(&self.connect).map(|port| format!("TCP port {port}"));
        files.chain(ports).collect()
    }

    /// Whether there is nothing in this directory but what is written to anyway, and nobody else may put anything there.
    ///
    /// SECURITY: a right is bound to an inode, so a directory that was removed and made again is out of reach, unless the right
    /// is on what is above it. That must not be a right on anything of others: never on all of /var/lib.
    fn is_ours_alone(&self, dir: &Path) -> bool {
        let Ok(meta) = std::fs::metadata(dir) else { return false };
        let is_private = meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
        let Ok(mut entries) = std::fs::read_dir(dir) else { return false };
        is_private && dir.parent().is_some() && entries.all(|e| e.is_ok_and(|e| self.write.contains(&e.path())))
    }

    /// The directory of a file, and of what it points to; the file alone where it is a mount of its own, which cannot be
    /// replaced, and directly under the root.
    fn read_file(&mut self, file: &Path) {
        let target = std::fs::canonicalize(file).ok().filter(|target| target != file);
        for path in [Some(file.to_owned()), target].into_iter().flatten() {
            let parent = path.parent().filter(|parent| parent.parent().is_some());
            match parent {
                Some(parent) if path.is_dir() || is_mounted(&path, parent) => self.read.insert(path),
                // One that is not there yet, or not yet mounted, may be there later.
                Some(parent) => self.read.insert(existing(parent).to_owned()),
                None => self.read.insert(path),
            };
        }
    }
}

/// The nearest directory that is there, but never the root.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.parent().is_some() && dir.is_dir()).unwrap_or(dir)
}

fn is_mounted(path: &Path, parent: &Path) -> bool {
    let mount = |path: &Path| {
        let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
        (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
    };
    mount(path).zip(mount(parent)).is_some_and(|(file, dir)| file != dir)
}

/// The directory of a file socket; none for an abstract one.
pub(super) fn socket_directory(config: &Config) -> Option<PathBuf> {
    let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    match SocketAddress::parse(&config.listen.socket, &base).ok()?.place() {
        Place::File(path) => path.parent().map(Path::to_owned),
        Place::Abstract(_) => None,
    }
}
