//! The directory of a socket file: made when missing, checked, and locked while the name in it changes.
//!
//! Guarantees: no single user but root and ours can replace the socket, by the directory or by one above it, also while nobody serves
//! (what a group may do is said: who is in it is not known); of all instances that want the same
//! name one at a time looks, binds or unlinks, across containers that share the directory too. The lock file stays:
//! removing it would let two instances hold locks on different files. Refuses to know: sockets. SPEC: flock(2).

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Write permission of everybody, and the bit that keeps everybody from renaming what is not theirs.
const WORLD_WRITABLE: u32 = 0o002;
const GROUP_WRITABLE: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// Why a directory cannot hold the socket.
#[derive(Debug)]
pub(super) enum Unfit {
    NotADirectory,
    /// This directory, or one above it.
    WorldWritable(PathBuf),
    /// Everybody may make files in it, though nobody may remove others'.
    Shared,
    /// This directory, or one above it, belongs to that uid.
    Foreign(PathBuf, u32),
    Io(io::Error),
}

/// Makes the directory when it is missing, open to whom the socket's mode is open to, and checks it.
pub(super) fn prepare(dir: &Path, socket_mode: u32) -> Result<(), Unfit> {
    let found = match std::fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(dir, mode_for(socket_mode)).map_err(Unfit::Io)?;
            std::fs::metadata(dir)
        }
        found => found,
    };
    judge(dir, found, None)
}

/// Whether the socket may be in this directory, as it is now; nothing is made. Root looks on behalf of the directory's owner.
pub(super) fn check(dir: &Path) -> Result<(), Unfit> {
    let found = std::fs::metadata(dir);
    let owner = found.as_ref().ok().map(MetadataExt::uid).filter(|_| rustix::process::geteuid().is_root());
    judge(dir, found, owner)
}

/// SECURITY: whoever can replace the socket, or will be able to when we are away, is sent the seeds of kube-apiserver.
fn judge(dir: &Path, found: io::Result<Metadata>, trusted: Option<u32>) -> Result<(), Unfit> {
    match found {
        Ok(found) if !found.is_dir() => return Err(Unfit::NotADirectory),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(Unfit::NotADirectory),
        Err(error) => return Err(Unfit::Io(error)),
    }
    let users = [Some(0), Some(rustix::process::geteuid().as_raw()), trusted];
    let (way, end) = way_to(dir).map_err(Unfit::Io)?;
    for (at, found) in way {
        if !users.contains(&Some(found.uid())) {
            return Err(Unfit::Foreign(at, found.uid()));
        }
        match (found.mode() & WORLD_WRITABLE, found.mode() & STICKY) {
            _ if found.is_symlink() => {}
            (0, _) => {}
            (_, 0) => return Err(Unfit::WorldWritable(at)),
            _ if at == end => return Err(Unfit::Shared),
            _ => {}
        }
    }
    Ok(())
}

/// The directory and all above it, as it is named and as it is behind links; and what it is behind them.
fn way_to(dir: &Path) -> io::Result<(Vec<(PathBuf, Metadata)>, PathBuf)> {
    let end = std::fs::canonicalize(dir)?;
    let named = dir.ancestors().filter(|at| !at.as_os_str().is_empty());
    let mut way = Vec::new();
    for at in named.chain(end.ancestors()) {
        way.push((at.to_owned(), std::fs::symlink_metadata(at)?));
    }
    Ok((way, end))
}

/// The directory on the way to the socket that a group other than root's and ours can write to, and that group.
pub(super) fn open_to_group(dir: &Path) -> Option<(PathBuf, u32)> {
    let ours = [0, rustix::process::getegid().as_raw()];
    let (way, end) = way_to(dir).ok()?;
    let is_open = |at: &Path, found: &Metadata| {
        let safe_above = found.mode() & STICKY != 0 && at != end;
        !found.is_symlink() && found.mode() & GROUP_WRITABLE != 0 && !ours.contains(&found.gid()) && !safe_above
    };
    way.into_iter().find(|(at, found)| is_open(at, found)).map(|(at, found)| (at, found.gid()))
}

const fn mode_for(socket_mode: u32) -> u32 {
    match (socket_mode & 0o070, socket_mode & 0o007) {
        (0, 0) => 0o700,
        (_, 0) => 0o750,
        _ => 0o755,
    }
}

fn create(dir: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = dir.parent()
        && !parent.as_os_str().is_empty()
        && !parent.exists()
    {
        create(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(dir) {
        // The umask may have taken bits away; it never adds any.
        Ok(()) => std::fs::set_permissions(dir, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The file beside the socket with this ending: `/run/kms.sock` → `/run/.kms.sock.lock`.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

/// The right to change what is at a socket's path. Released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub(super) struct PathLock {
    _file: File,
}

impl PathLock {
    /// Waits for whoever has it; nobody keeps it for longer than a bind.
    pub(super) fn take(socket: &Path) -> io::Result<Self> {
        let path = beside(socket, ".lock");
        loop {
            // SECURITY: a link is not followed, and a pipe that somebody put there is not waited for.
            let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = File::from(rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?);
            refuse_a_strangers(&file, &path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    tracing::warn!(target: "kube_kms::transport", lock = %path.display(), "waiting for another instance that is binding the same socket");
                    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
                }
                Err(error) => return Err(error.into()),
            }
            // Somebody may have removed the file by hand while we waited: then the lock is on a file that is no more.
            if std::fs::symlink_metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|ours| same(&now, &ours))) {
                return Ok(Self { _file: file });
            }
        }
    }
}

/// SECURITY: where others may make files (a sticky directory), one could keep a lock of his own for ever, and us from starting.
fn refuse_a_strangers(lock: &File, path: &Path) -> io::Result<()> {
    let found = lock.metadata()?;
    let of_the_directory = path.parent().and_then(|dir| std::fs::metadata(dir).ok()).map(|dir| dir.uid());
    let ours = [Some(0), Some(rustix::process::geteuid().as_raw()), of_the_directory];
    if found.is_file() && ours.contains(&Some(found.uid())) {
        return Ok(());
    }
    let what = format!("{} is not our lock file: it belongs to uid {}; remove it", path.display(), found.uid());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// Whether both are the same file.
pub(super) fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_missing_directory_is_made_for_those_who_may_use_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        for (socket_mode, expected) in [(0o600, 0o700), (0o660, 0o750), (0o666, 0o755)] {
            let path = dir.path().join(format!("{socket_mode:o}/deep"));
            prepare(&path, socket_mode).unwrap();
            assert_eq!(mode(&path), expected);
        }
    }

    #[test]
    fn a_directory_that_is_there_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        prepare(dir.path(), 0o600).unwrap();
        assert_eq!(mode(dir.path()), 0o711);
    }

    #[test]
    fn a_directory_that_strangers_can_write_to_is_refused_and_one_below_it_unless_it_is_sticky() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        let set = |mode| std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        set(0o777);
        for judged in [dir.path(), &below] {
            let refused = |found| matches!(found, Err(Unfit::WorldWritable(at)) if at == dir.path());
            assert!(refused(prepare(judged, 0o600)) && refused(check(judged)), "{judged:?}");
        }
        set(0o1777);
        assert!(matches!(prepare(dir.path(), 0o600), Err(Unfit::Shared)));
        assert!(matches!(check(dir.path()), Err(Unfit::Shared)));
        prepare(&below, 0o600).unwrap();
        // A link into the shared directory is no way around.
        let link = dir.path().join("a/link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(matches!(prepare(&link, 0o600), Err(Unfit::Shared)));
    }

    #[test]
    fn a_directory_of_another_user_is_refused_also_above_and_root_may_look_for_its_owner() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (above, below) = (dir.path().join("above"), dir.path().join("above/below"));
        std::fs::create_dir_all(&below).unwrap();
        let give = |at: &Path, uid| std::os::unix::fs::chown(at, Some(uid), None).unwrap();
        give(&below, 5555);
        assert!(matches!(prepare(&below, 0o600), Err(Unfit::Foreign(at, 5555)) if at == below));
        check(&below).unwrap();
        give(&below, 0);
        give(&above, 5555);
        for found in [prepare(&below, 0o600), check(&below)] {
            assert!(matches!(found, Err(Unfit::Foreign(at, 5555)) if at == above));
        }
        // A link of his own leads wherever he likes later.
        give(&above, 0);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&below, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(5555), None).unwrap();
        assert!(matches!(prepare(&link, 0o600), Err(Unfit::Foreign(at, 5555)) if at == link));
    }

    #[test]
    fn a_group_that_can_write_is_found_on_the_way_unless_it_is_roots_or_ours() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let set = |mode| std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        set(0o770);
        assert_eq!(open_to_group(&below), None);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), None, Some(5555)).unwrap();
            assert_eq!(open_to_group(&below), Some((dir.path().to_owned(), 5555)));
            set(0o1770);
            assert_eq!(open_to_group(&below), None, "it may not rename what is not its own");
            assert_eq!(open_to_group(dir.path()), Some((dir.path().to_owned(), 5555)));
        }
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(prepare(file.path(), 0o600), Err(Unfit::NotADirectory)));
        assert!(matches!(prepare(&file.path().join("sub"), 0o600), Err(Unfit::NotADirectory)));
    }

    #[test]
    fn the_lock_file_stays_and_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kms.sock");
        drop(PathLock::take(&socket).unwrap());
        let lock = PathLock::take(&socket).unwrap();
        let file = dir.path().join(".kms.sock.lock");
        assert_eq!(mode(&file) & 0o077, 0);
        let other = File::open(&file).unwrap();
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        drop(lock);
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[test]
    fn a_lock_that_is_a_pipe_a_link_or_a_strangers_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kms.sock");
        let lock = beside(&socket, ".lock");
        let refused = || {
            let error = PathLock::take(&socket).unwrap_err();
            std::fs::remove_file(&lock).unwrap();
            error
        };
        rustix::fs::mknodat(CWD, &lock, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(refused().kind(), io::ErrorKind::PermissionDenied);
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &lock).unwrap();
        refused();
        assert!(!elsewhere.exists(), "the link was not followed");
        if rustix::process::geteuid().is_root() {
            File::create_new(&lock).unwrap();
            std::os::unix::fs::chown(&lock, Some(65_534), None).unwrap();
            assert!(refused().to_string().contains("uid 65534"));
        }
        PathLock::take(&socket).unwrap();
    }
}
