//! The socket's directory and what is at the socket's path: would kube-kms bind it, and could kube-apiserver use it?
//!
//! Guarantees: judges by the functions that bind the socket. Refuses to know: what a listener there would answer.
//! SPEC: unix(7); the ways to mount a socket are docs/install.md's.

use crate::doctor::finding::{Finding, Findings};
use crate::doctor::host;
use kms_v2_api::address::{Place, SocketAddress};
use kube_kms_config::Config;
use kube_kms_transport::socket::{self, Occupant};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// What a look at the socket found.
#[derive(Debug)]
pub struct Look {
    /// Findings.
    pub findings: Vec<Finding>,
    /// Whether somebody listens there.
    pub is_served: bool,
}

/// Looks at the socket and, when it is a file, at its directory.
///
/// A listener sees one connection that is closed without a byte.
#[must_use]
pub fn look(config: &Config, address: &SocketAddress) -> Look {
    let mut findings = Vec::new();
    match address.place() {
        Place::File(path) => findings.extend(directory(config, path)),
        Place::Abstract(_) => {
            let mut abstract_name = Findings::about("socket");
            abstract_name.note(
                "an abstract socket has no permissions: every process in the network namespace can connect, and only its uid is checked; \
                 while nobody serves, every one of them can take the name, and kube-apiserver would send it seeds",
                "use a socket file where kube-apiserver is 1.32 or newer",
            );
            findings.extend(abstract_name.into_list());
        }
    }
    let mut found = Findings::about("socket");
    let mut is_served = false;
    match socket::look(address) {
        Ok(Occupant::Nobody) => {}
        Ok(Occupant::Left) => {
            found.note(format!("{address} was left by a process that is gone"), "nothing: serve replaces it")
        }
        Ok(Occupant::Listener(pid)) => {
            is_served = true;
            let who =
                pid.map_or_else(|| "a process outside this pid namespace".to_owned(), |pid| format!("process {pid}"));
            found.note(format!("{who} listens on {address}"), "stop it before serving, or serve with --take-over");
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
            found.error(format!("serve could not bind it: {error}{cause}"), error.hint());
        }
    }
    callers(config, address, &mut found);
    findings.extend(found.into_list());
    Look { findings, is_served }
}

fn directory(config: &Config, file: &Path) -> Vec<Finding> {
    let mut found = Findings::about("socket-directory");
    let dir = file.parent().unwrap_or(Path::new("/"));
    let shown = dir.display();
    if std::fs::symlink_metadata(dir).is_ok_and(|m| m.is_symlink()) {
        found.warning(
            format!("{shown} is a symbolic link; a pod that mounts it gets the directory behind it as it is now"),
            format!("give `listen.socket` and the mount the real path: readlink -f {shown}"),
        );
    }
    let Ok(metadata) = std::fs::metadata(dir) else {
        match host::cannot_make(dir) {
            Some(why) => found.error(
                format!("{shown} is not there and this user cannot make it: {why}"),
                format!("make it (`kube-kms manifests --kind tmpfiles`, or RuntimeDirectory= in a unit), or run as a user who may; {}",
                    host::whoami()),
            ),
            None => found.note(format!("{shown} is not there"), "nothing: serve makes it"),
        }
        return found.into_list();
    };
    if let Some(why) = host::cannot_write(dir) {
        found.error(
            format!("this user cannot make a socket in {shown}: {why}"),
            format!("give it to the user who serves, or check as that user; {}", host::whoami()),
        );
    }
    // Whoever the socket is open to must get to it: search permission, which the reader of a mode easily forgets.
    let (mode, socket_mode) = (metadata.permissions().mode(), config.listen.mode);
    for (who, use_bits, search) in [("the group", 0o060, 0o010), ("everybody", 0o006, 0o001)] {
        if socket_mode & use_bits == use_bits && mode & search == 0 {
            found.warning(
                format!("`listen.mode` lets {who} use the socket, and the mode {:04o} of {shown} does not let them reach it", mode & 0o7777),
                format!("chmod {:04o} {shown}", (mode | search) & 0o7777),
            );
        }
    }
    let (owner, euid) = (metadata.uid(), rustix::process::geteuid());
    if owner != 0 && euid.is_root() {
        found.note(
            format!("{shown} belongs to user {owner}, and this is root: serve as root would refuse it"),
            format!("check as the user who serves; if that is not {owner}, give the directory to him"),
        );
    }
    if let Some((open, gid)) = socket::open_to_group(dir) {
        found.warning(
            format!(
                "whoever is in group {gid} may write to {}, and put a socket of his own in the place of ours",
                open.display()
            ),
            format!("chmod g-w {}", open.display()),
        );
    }
    match host::filesystem(dir) {
        Some(kind) if kind.is_remote => found.error(
            format!("{shown} is on {}, a file system of the network", kind.name),
            "put the socket on this host, such as below /run: a unix socket does not reach over a network file system",
        ),
        Some(kind) if !kind.is_memory => found.note(
            format!("{shown} is on a disk ({}): its socket file outlives a reboot", kind.name),
            "nothing: serve replaces it; below /run it would be gone",
        ),
        _ => {}
    }
    found.into_list()
}

fn callers(config: &Config, address: &SocketAddress, found: &mut Findings) {
    let Some(uids) = &config.listen.allow_uids else { return };
    if !uids.contains(&0) {
        found.note(
            "`listen.allowUids` does not have root, as which kube-apiserver mostly runs",
            "see which user runs it (ps -o uid= -C kube-apiserver), and list that one",
        );
    }
    let owner = rustix::process::geteuid().as_raw();
    let strangers: Vec<String> = uids.iter().filter(|uid| **uid != 0 && **uid != owner).map(u32::to_string).collect();
    if matches!(address.place(), Place::File(_)) && config.listen.mode & 0o066 == 0 && !strangers.is_empty() {
        found.warning(
            format!(
                "`listen.allowUids` lets {} call, and `listen.mode` keeps everybody but the owner and root away",
                strangers.join(", ")
            ),
            "listen.mode: \"0660\", with the socket's directory in a group of theirs",
        );
    }
}
