//! The sandbox's own keyring file.

use crate::admin::{AdminError, AdminFuture, KekAdmin};
use kube_kms_kek_local::{KeyringError, operation};
use kube_kms_os::{OsEntropy, wall_clock};
use std::path::PathBuf;

/// See the module.
#[derive(Debug)]
pub(crate) struct LocalAdmin {
    keyring: PathBuf,
    old: Option<String>,
}

impl LocalAdmin {
    pub(crate) const fn new(keyring: PathBuf) -> Self {
        Self { keyring, old: None }
    }

    fn add_and_promote(&mut self) -> Result<String, AdminError> {
        let new = operation::add(&self.keyring, wall_clock(), &OsEntropy).map_err(failed)?.to_string();
        let promoted = operation::promote(&self.keyring, &new).map_err(failed)?;
        self.old = Some(promoted.from.to_string());
        Ok(format!("keyring add and promote: version {} wraps, {} still unwraps", promoted.to, promoted.from))
    }

    fn old(&self) -> Result<&str, AdminError> {
        self.old.as_deref().ok_or_else(|| AdminError::NotPossible("nothing was rotated".to_owned()))
    }

    fn retire_old(&self) -> Result<String, AdminError> {
        let version = operation::retire(&self.keyring, self.old()?).map_err(failed)?;
        Ok(format!("keyring retire {version}"))
    }

    fn reinstate_old(&self) -> Result<String, AdminError> {
        let version = operation::reinstate(&self.keyring, self.old()?).map_err(failed)?;
        Ok(format!("keyring reinstate {version}"))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
fn failed(error: KeyringError) -> AdminError {
    AdminError::Failed(format!("{error}: {}", error.problem()))
}

impl KekAdmin for LocalAdmin {
    fn rotate(&mut self) -> AdminFuture<'_> {
        let done = self.add_and_promote();
        Box::pin(async { done })
    }

    fn instruction(&self) -> String {
        "kube-kms keyring add, then kube-kms keyring promote".to_owned()
    }

    fn retire(&mut self) -> AdminFuture<'_> {
        let done = self.retire_old();
        Box::pin(async { done })
    }

    fn reinstate(&mut self) -> AdminFuture<'_> {
        let done = self.reinstate_old();
        Box::pin(async { done })
    }

    fn put_back(&mut self) -> AdminFuture<'_> {
        // The keyring is the sandbox's and goes with it.
        Box::pin(async { Ok(String::new()) })
    }
}
