//! The one writer of files: all of it or nothing, and on disk when it returns.
//!
//! A leaf. Guarantees: a reader sees the old content or the new, never a mixture; after `Ok` the new one survives a
//! power cut; the file is 0600 from the moment it exists. SPEC: rename(2), fsync(2) of the file and of its directory.

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replace it.
    Replace,
    /// Fail with `AlreadyExists`.
    Refuse,
}

/// Writes `content` to `path`, mode 0600, by way of a temporary file beside it.
///
/// # Errors
/// Those of the file system; the old content is then still there, and the temporary file is gone.
pub fn write(path: &Path, content: &[u8], existing: Existing) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    // The pid keeps two processes apart, the random part two threads.
    temporary_name.push(format!(".{}.{}", std::process::id(), uuid::Uuid::new_v4().simple()));
    let temporary = Remove(directory.join(temporary_name));
    let fd = rustix::fs::openat(
        CWD,
        &temporary.0,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    match existing {
        Existing::Replace => rustix::fs::renameat(CWD, &temporary.0, CWD, path)?,
        // link(2) fails when the name exists, where rename(2) would replace it.
        Existing::Refuse => rustix::fs::linkat(CWD, &temporary.0, CWD, path, AtFlags::empty())?,
    }
    File::open(directory)?.sync_all()
}

/// Removes the temporary file however the function ends; after a rename there is nothing left to remove.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_private_and_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write(&path, b"one", Existing::Refuse).unwrap();
        assert_eq!(write(&path, b"two", Existing::Refuse).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write(&path, b"three", Existing::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(&dir.path().join("no/state.json"), b"x", Existing::Replace).is_err());
    }
}
