//! The directory of a rehearsal, mode 0700: configurations, keyring, state, sockets, logs. It goes with this value, however
//! the drill ends, unless the operator wants to keep it.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sandbox {
    dir: Option<TempDir>,
    path: PathBuf,
    keep: bool,
}

impl Sandbox {
    pub(crate) fn new(keep: bool) -> io::Result<Self> {
        // SECURITY: the crate's own default leaves it to the umask. The path stays short: a socket's has 107 bytes at most.
        let private = Permissions::from_mode(0o700);
        let mut dir = tempfile::Builder::new().prefix("kube-kms-drill-").permissions(private).tempdir()?;
        dir.disable_cleanup(keep);
        Ok(Self { path: dir.path().to_owned(), dir: Some(dir), keep })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it now, unless it is kept, to be able to say whether that went well.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        match self.dir.take() {
            Some(dir) if !self.keep => dir.close(),
            _ => Ok(()),
        }
    }
}
