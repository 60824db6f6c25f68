//! The keyring file on disk: opened so that it cannot be somebody else's, and changed by one process at a time.
//!
//! Guarantees: no content is returned from a file that is not regular, not ours, or open to others; checks look at the
//! open descriptor, so the file cannot be exchanged between check and read. SPEC: open(2), fstat(2), flock(2).

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Bytes of a keyring file at most; 256 versions take about 50 KiB.
pub(super) const SIZE_MAX: u64 = 1024 * 1024;

/// Why a keyring file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// Nothing is there.
    #[error("there is no such file")]
    Missing,
    /// The system refused an operation on it.
    #[error("cannot {doing} it")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The path names a symbolic link.
    #[error("it is a symbolic link")]
    Symlink,
    /// A directory, a pipe, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It belongs to somebody who could change it under us.
    #[error("it belongs to user {owner}, and this process runs as user {euid}")]
    ForeignOwner {
        /// Uid of its owner.
        owner: u32,
        /// Our effective uid.
        euid: u32,
    },
    /// Its mode gives something to the group or to everybody.
    #[error("its mode is {mode:04o}, so that others than its owner can use it")]
    OpenToOthers {
        /// Permission bits.
        mode: u32,
    },
    /// No keyring is that large.
    #[error("it has {size} bytes, and no keyring has more than {SIZE_MAX}")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
}

impl FileProblem {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Io { doing, source: errno.into() }
    }

    pub(super) fn hint(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Missing => {
                format!(
                    "mount or restore the keyring at {path}; only where there has never been one: \
                     kube-kms keyring init --file {path}"
                )
            }
            Self::Io { .. } => {
                format!("look at the disk and at the permissions of {path} and of the directories above it")
            }
            Self::Symlink => format!("name the file itself: readlink -f {path}"),
            Self::NotAFile => "name the keyring file itself, which is a regular file".to_owned(),
            Self::ForeignOwner { owner, euid } => {
                format!("run as user {owner}, or give it to this one: chown {euid} {path}")
            }
            Self::OpenToOthers { .. } => {
                format!("chmod 600 {path}; if others could read it, rotate: `kube-kms keyring add`, then `promote`")
            }
            Self::TooLarge { .. } => format!("{path} is not a keyring; name the right file"),
        }
    }
}

/// Everything that is in the file, in memory that is wiped.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileProblem> {
    // SECURITY: NOFOLLOW, so that a link cannot lead to another file; NONBLOCK, so that a pipe cannot stop us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(CWD, path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => FileProblem::Missing,
        Errno::LOOP => FileProblem::Symlink,
        other => FileProblem::io("open")(other),
    })?;
    let stat = fstat(&fd).map_err(FileProblem::io("look at"))?;
    let size = check(&stat, rustix::process::geteuid().as_raw())?;
    let read_error = |source| FileProblem::Io { doing: "read", source };
    let size = usize::try_from(size).map_err(|_| FileProblem::TooLarge { size })?;
    // SECURITY: of its final size from the start: a buffer that grows leaves copies of the keys behind.
    let mut content = Zeroizing::new(vec![0_u8; size]);
    File::from(fd).read_exact(&mut content).map_err(read_error)?;
    Ok(content)
}

/// Refuses what others could have read or written. Gives the size in bytes.
fn check(stat: &Stat, euid: u32) -> Result<u64, FileProblem> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(FileProblem::NotAFile);
    }
    if stat.st_uid != euid && stat.st_uid != 0 {
        return Err(FileProblem::ForeignOwner { owner: stat.st_uid, euid });
    }
    // SECURITY: the keys are as safe as this file; a mode that lets the group in is a mistake, never a wish.
    if stat.st_mode & 0o077 != 0 {
        return Err(FileProblem::OpenToOthers { mode: stat.st_mode & 0o7777 });
    }
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > SIZE_MAX { Err(FileProblem::TooLarge { size }) } else { Ok(size) }
}

/// The right to change the keyring, until it is dropped.
#[derive(Debug)]
pub(super) struct Held(OwnedFd);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing alone would not do while a child that is just being started still has a copy of the descriptor.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock beside the keyring; `None` when somebody else has it. The lock file stays: removing it would let two
/// processes hold two different files of the same name.
pub(super) fn try_lock(path: &Path) -> Result<Option<Held>, FileProblem> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(CWD, Path::new(&name), flags, Mode::RUSR | Mode::WUSR).map_err(FileProblem::io("lock"))?;
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Held(fd))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(FileProblem::io("lock")(errno)),
    }
}

/// Makes the missing directories above the file, mode 0700, each one on disk before the next.
pub(super) fn create_directories(path: &Path) -> Result<(), FileProblem> {
    let failed = |source| FileProblem::Io { doing: "make the directory for", source };
    let missing: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .take_while(|directory| !directory.as_os_str().is_empty() && !directory.exists())
        .map(Path::to_owned)
        .collect();
    for directory in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        // INVARIANT: a keyring that was made survives a power cut, and so does the way to it.
        let above = directory.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(above).and_then(|f| f.sync_all()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{file_with, known_file, set_mode};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn any_mode_that_lets_others_in_is_refused_with_the_command_that_helps() {
        let (_dir, path) = file_with(&known_file());
        for mode in (0..0o1000_u32).filter(|mode| mode & 0o400 != 0) {
            set_mode(&path, mode);
            match read(&path) {
                Ok(_) => assert_eq!(mode & 0o077, 0, "{mode:o} was taken"),
                Err(FileProblem::OpenToOthers { mode: told }) => {
                    assert!(mode & 0o077 != 0 && told == mode, "{mode:o} {told:o}");
                }
                Err(other) => panic!("{mode:o}: {other}"),
            }
        }
        let hint = FileProblem::OpenToOthers { mode: 0o644 }.hint(&path);
        assert!(hint.starts_with(&format!("chmod 600 {}", path.display())), "{hint}");
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting_for_it() {
        let (dir, path) = file_with(&known_file());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(FileProblem::Symlink)));
        assert!(matches!(read(dir.path()), Err(FileProblem::NotAFile)));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read(&pipe), Err(FileProblem::NotAFile)));
        assert!(matches!(read(&dir.path().join("none")), Err(FileProblem::Missing)));
        assert!(matches!(read(&path.join("below")), Err(FileProblem::Missing)));
    }

    #[test]
    fn only_our_own_files_and_those_of_root_are_taken() {
        let (_dir, path) = file_with("x");
        let fd = std::fs::File::open(&path).unwrap();
        let mut stat = fstat(&fd).unwrap();
        for (owner, euid, taken) in [(7, 7, true), (0, 7, true), (0, 0, true), (8, 7, false), (7, 0, false)] {
            stat.st_uid = owner;
            let answer = check(&stat, euid);
            assert_eq!(answer.is_ok(), taken, "{owner} {euid}");
            if let Err(problem) = answer {
                assert!(matches!(problem, FileProblem::ForeignOwner { .. }));
                assert!(problem.hint(&path).contains(&format!("chown {euid} ")));
            }
        }
    }

    #[test]
    fn a_file_over_a_mebibyte_is_not_read() {
        let (_dir, path) = file_with(&" ".repeat(1024 * 1024));
        assert_eq!(read(&path).unwrap().len(), 1024 * 1024);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(SIZE_MAX + 1).unwrap();
        assert!(matches!(read(&path), Err(FileProblem::TooLarge { size }) if size == SIZE_MAX + 1));
    }

    #[test]
    fn the_lock_is_had_by_one_at_a_time_and_is_private() {
        let (dir, path) = file_with("x");
        let held = try_lock(&path).unwrap().unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
        let mode = std::fs::metadata(dir.path().join("keyring.json.lock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn missing_directories_are_made_private() {
        let dir = tempfile::tempdir().unwrap();
        create_directories(&dir.path().join("a/b/keyring.json")).unwrap();
        create_directories(&dir.path().join("a/b/keyring.json")).unwrap();
        create_directories(Path::new("keyring.json")).unwrap();
        for made in ["a", "a/b"] {
            let mode = std::fs::metadata(dir.path().join(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{made}");
        }
        let blocked = dir.path().join("file");
        kube_kms_os::durable::write(&blocked, b"x", kube_kms_os::durable::Existing::Refuse).unwrap();
        assert!(matches!(create_directories(&blocked.join("x/keyring.json")), Err(FileProblem::Io { .. })));
    }
}
