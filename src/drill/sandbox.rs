//! The directory of a rehearsal, mode 0700: configurations, keyring, state, sockets, logs. It goes with this value, however
//! the drill ends, unless the operator wants to keep it.

use std::io;
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
        // The crate makes it 0700. The path stays short: a socket's is limited to 107 bytes.
        let mut dir = tempfile::Builder::new().prefix("kube-kms-drill-").tempdir()?;
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
