//! Another user of this host, for tests that run as root: he runs the same binary, and has no privileges.

use crate::support::site::{BINARY, Site};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Traditionally `nobody`; it need not have a name here.
pub const UID: u32 = 65534;

/// The binary at a path that the stranger can reach; `None` when we are not root and so cannot become him.
pub fn binary(site: &Site) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    open_to_walk_through(site.dir());
    let mut there = Command::new(BINARY);
    there.arg("--version").uid(UID).gid(UID).stdout(Stdio::null()).stderr(Stdio::null());
    if there.status().is_ok_and(|status| status.success()) {
        return Some(BINARY.into());
    }
    let copy = site.dir().join("kube-kms");
    std::fs::copy(BINARY, &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    Some(copy)
}

/// As `binary`, to run as the stranger.
pub fn command(site: &Site, binary: &Path, arguments: &[&str]) -> Command {
    let mut command = site.process(binary.to_str().unwrap(), arguments);
    command.uid(UID).gid(UID);
    command
}

/// Gives him all of a site, so that he can run the plugin there.
pub fn give(path: &Path) {
    chown(path, Some(UID), Some(UID)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

fn open_to_walk_through(dir: &Path) {
    let mode = std::fs::metadata(dir).unwrap().mode();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o111)).unwrap();
}
