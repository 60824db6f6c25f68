//! The host: files and directories that the configuration names, limits of the process, the HTTP address, the clock.
//!
//! Guarantees: looks, and changes nothing but that it binds the HTTP address for a moment. Judges as the user who asks:
//! what root may do says little about the user who serves, and the findings say whose eyes they are from.

use crate::doctor::finding::{Finding, Findings};
use kube_kms_config::{Config, KekConfig};
use rustix::fs::{Access, StatVfsMountFlags};
use rustix::process::Resource;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const GROUP_WRITABLE: u32 = 0o020;
const WORLD_WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;
/// Locked memory for each data key: a third of a page for its key schedule, and its part of those that are partly used.
const LOCKED_PER_DEK: u64 = 1536;
/// Data keys that must find room: etcd mostly has fewer than ten.
const DEKS_AT_LEAST: u64 = 32;
/// File descriptors that must be had: the sockets of a handful of API servers and of the KMS.
const FILES_AT_LEAST: u64 = 256;
/// What a file may lie in the future before the clock is doubted.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// A file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem {
    pub(super) name: &'static str,
    pub(super) is_memory: bool,
    pub(super) is_remote: bool,
}

/// SPEC: statfs(2), the magic numbers.
const FILE_SYSTEMS: &[(u64, &str, bool, bool)] = &[
    (0x0102_1994, "tmpfs", true, false),
    (0x8584_58f6, "ramfs", true, false),
    (0x6969, "nfs", false, true),
    (0xff53_4d42, "cifs", false, true),
    (0xfe53_4d42, "smb2", false, true),
    (0x0102_1997, "9p", false, true),
    (0x00c3_6400, "ceph", false, true),
    (0xef53, "ext4", false, false),
    (0x5846_5342, "xfs", false, false),
    (0x9123_683e, "btrfs", false, false),
    (0x794c_7630, "overlayfs", false, false),
];

pub(super) fn filesystem(path: &Path) -> Option<FileSystem> {
    let magic = u64::try_from(rustix::fs::statfs(path).ok()?.f_type).ok()?;
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    let (_, name, is_memory, is_remote) = known.copied().unwrap_or((magic, "another file system", false, false));
    Some(FileSystem { name, is_memory, is_remote })
}

/// Whose eyes the findings are from.
pub(super) fn whoami() -> String {
    format!("this is user {}", rustix::process::geteuid().as_raw())
}

/// Why this user cannot make files in a directory that is there.
pub(super) fn cannot_write(dir: &Path) -> Option<String> {
    if rustix::fs::statvfs(dir).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return Some("it is mounted read-only".to_owned());
    }
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).err().map(|e| std::io::Error::from(e).to_string())
}

/// Why this user cannot make a directory that is not there.
pub(super) fn cannot_make(dir: &Path) -> Option<String> {
    let nearest = dir.ancestors().skip(1).find(|above| above.exists())?;
    if !nearest.is_dir() {
        return Some(format!("{} is not a directory", nearest.display()));
    }
    cannot_write(nearest).map(|why| format!("{}: {why}", nearest.display()))
}

/// Looks at all of it. `is_served`: an instance is running, and has the HTTP address.
#[must_use]
pub fn look(config: &Config, config_path: &Path, is_served: bool, now: SystemTime) -> Vec<Finding> {
    let mut all = configuration_file(config_path);
    all.extend(keyrings(config));
    all.extend(state_directory(&config.state_dir));
    all.extend(limits());
    all.extend(http(config, is_served));
    all.extend(clock(&[config_path.to_owned(), config.state_dir.join("state.json")], now));
    all
}

fn configuration_file(path: &Path) -> Vec<Finding> {
    let mut found = Findings::about("configuration-file");
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.mode() & (GROUP_WRITABLE | WORLD_WRITABLE) != 0
    {
        let (shown, mode) = (path.display(), metadata.mode() & 0o7777);
        let what =
            format!("others than its owner may write {shown} (mode {mode:04o}): they choose the KEK and who may call");
        let remedy = format!("chmod go-w {shown}");
        if metadata.mode() & WORLD_WRITABLE == 0 { found.warning(what, remedy) } else { found.error(what, remedy) }
    }
    found.into_list()
}

/// The file itself is judged by the provider, whenever it reads it.
fn keyrings(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("keyring-directory");
    let mut directories: Vec<&Path> = Vec::new();
    for kek in [&config.kek].into_iter().chain(&config.read).chain(&config.recovery.keks) {
        let KekConfig::Local(local) = kek else { continue };
        let Some(dir) = local.keyring.parent() else { continue };
        if directories.contains(&dir) {
            continue;
        }
        directories.push(dir);
        let Ok(metadata) = std::fs::metadata(dir) else { continue };
        if metadata.mode() & WORLD_WRITABLE != 0 && metadata.mode() & STICKY == 0 {
            found.error(
                format!("everybody may write to {}, and so take the keyring away", dir.display()),
                format!("chmod o-w {}; then compare the keyring with its backup", dir.display()),
            );
        }
    }
    found.into_list()
}

fn state_directory(dir: &Path) -> Vec<Finding> {
    let mut found = Findings::about("state-directory");
    let shown = dir.display();
    const MEANING: &str = "kube-kms serves all the same, and forgets over a restart which key_ids it has left";
    let Ok(metadata) = std::fs::metadata(dir) else {
        if let Some(why) = cannot_make(dir) {
            found.warning(
                format!("{shown} is not there and this user cannot make it ({why}): {MEANING}"),
                format!("make it for the user who serves (StateDirectory= in a unit); {}", whoami()),
            );
        }
        return found.into_list();
    };
    if let Some(why) = cannot_write(dir) {
        found.warning(
            format!("this user cannot write to {shown} ({why}): {MEANING}"),
            format!("give it to the user who serves, or check as that user; {}", whoami()),
        );
    }
    if metadata.mode() & WORLD_WRITABLE != 0 {
        found.warning(
            format!("everybody may write to {shown}, and so make this node forget or refuse key_ids"),
            format!("chmod o-w {shown}"),
        );
    }
    if filesystem(dir).is_some_and(|kind| kind.is_memory) {
        found.note(
            format!("{shown} is in memory: after a reboot this node does not know which key_ids it has left"),
            "put `stateDir` on a disk, such as /var/lib/kube-kms",
        );
    }
    found.into_list()
}

fn limits() -> Vec<Finding> {
    let mut found = Findings::about("locked-memory");
    let needed = LOCKED_PER_DEK.saturating_mul(DEKS_AT_LEAST);
    // serve raises the soft limit to the hard one; root needs neither.
    let is_root = rustix::process::geteuid().is_root();
    if let Some(hard) = rustix::process::getrlimit(Resource::Memlock).maximum
        && hard < needed
        && !is_root
    {
        found.warning(
            format!("{hard} bytes of memory may be locked, and {DEKS_AT_LEAST} data keys take {needed}: the rest may be swapped out"),
            "LimitMEMLOCK=64M in the unit, or --ulimit memlock in the container",
        );
    }
    let mut files = Findings::about("open-files");
    if let Some(hard) = rustix::process::getrlimit(Resource::Nofile).maximum
        && hard < FILES_AT_LEAST
    {
        files.warning(
            format!("{hard} files may be open at once; each connection is one"),
            "LimitNOFILE=65536 in the unit",
        );
    }
    [found.into_list(), files.into_list()].concat()
}

fn http(config: &Config, is_served: bool) -> Vec<Finding> {
    let mut found = Findings::about("http");
    let Some(address) = config.http else { return Vec::new() };
    if !address.ip().is_loopback() {
        found.warning(
            format!("http.listen {address} is reachable from other hosts, without authentication: it tells key_id hashes and state, no secret"),
            "127.0.0.1:9464, or a firewall",
        );
    }
    if !is_served && let Err(error) = std::net::TcpListener::bind(address) {
        found.warning(
            format!("http.listen {address} cannot be bound: {error}; kube-kms serves without its health pages and tries again"),
            "see who has it (ss -ltnp), or give another `http.listen`",
        );
    }
    found.into_list()
}

/// A clock that is behind is seen by what was written in its future.
fn clock(files: &[PathBuf], now: SystemTime) -> Vec<Finding> {
    let mut found = Findings::about("clock");
    for file in files {
        let written = std::fs::metadata(file).and_then(|m| m.modified());
        let Ok(ahead) = written.map_err(|_| ()).and_then(|time| time.duration_since(now).map_err(|_| ())) else {
            continue;
        };
        if ahead > AHEAD_MAX {
            let ahead = humantime::format_duration(Duration::from_secs(ahead.as_secs()));
            found.warning(
                format!("{} was written {ahead} from now: the clock of this host is or was wrong", file.display()),
                "set the clock by NTP (timedatectl, chronyc tracking): AWS refuses signatures that are 5 minutes off",
            );
        }
    }
    found.into_list()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_clock_that_is_behind_is_seen_by_a_file_from_its_future() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = file.as_file().metadata().unwrap().modified().unwrap();
        let path = [file.path().to_owned()];
        assert!(clock(&path, written).is_empty());
        assert!(clock(&path, written - Duration::from_secs(30)).is_empty());
        let found = clock(&path, written - Duration::from_secs(3600));
        assert!(found[0].what.contains("was written 1h from now"), "{found:?}");
    }

    #[test]
    fn who_else_may_write_the_configuration_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, severities) in [(0o600, ""), (0o644, ""), (0o664, "WARNING"), (0o666, "ERROR")] {
            std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            let found = configuration_file(file.path());
            assert_eq!(found.iter().map(|f| f.severity.as_str()).collect::<String>(), severities, "{mode:o}");
        }
    }

    #[test]
    fn a_state_directory_says_what_is_lost_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let severities = |path: &Path| -> Vec<&str> {
            // In memory or not depends on where the test runs.
            state_directory(path).iter().map(|f| f.severity.as_str()).filter(|s| *s != "note").collect()
        };
        assert!(severities(dir.path()).is_empty());
        assert!(severities(&dir.path().join("to/be/made")).is_empty());
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(severities(dir.path()), ["WARNING"]);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(severities(&file.path().join("state")), ["WARNING"]);
    }

    #[test]
    fn a_port_that_is_taken_is_told_unless_we_have_it_ourselves() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let text = format!("kek: {{local: {{keyring: /k}}}}\nhttp: {{listen: '{}'}}\n", taken.local_addr().unwrap());
        let config = kube_kms_config::parse(&text).unwrap();
        assert_eq!(http(&config, false).len(), 1);
        assert!(http(&config, true).is_empty());
    }
}
