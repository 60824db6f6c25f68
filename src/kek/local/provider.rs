//! [`LocalKek`]: the keyring file behind the port of the core.
//!
//! Guarantees: the file is read anew for every call, off the runtime's threads, within the call's time; at most
//! `READS_AT_ONCE` threads ever wait for a disk that hangs. Refuses to know: how the file is made and changed.

use super::keyring::Keyring;
use super::{blob, operation};
use crate::core::annotation::WrappedDek;
use crate::core::context::WrapContext;
use crate::core::dek::DekBytes;
use crate::core::fault::{Fault, Reason};
use crate::core::kek_ref::{KekKind, KekRef};
use crate::core::port::{Entropy, Kek, KekCall, KekFuture, Unwrapped, Wrapped};
use arc_swap::ArcSwapOption;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Reads of the file at the same time. They take less than a millisecond, unless the disk hangs.
const READS_AT_ONCE: usize = 4;

/// A KEK in a keyring file.
pub struct LocalKek {
    path: PathBuf,
    entropy: Arc<dyn Entropy>,
    reads: Arc<Semaphore>,
    /// The KEK that the file had when it was last read.
    last_seen: ArcSwapOption<KekRef>,
}

impl LocalKek {
    /// The KEK in this file, which is read once, now (blocking), to learn which KEK it is. A file that cannot be read is
    /// no error here: each call says so until it can.
    #[must_use]
    pub fn new(path: PathBuf, entropy: Arc<dyn Entropy>) -> Self {
        let kek =
            Self { path, entropy, reads: Arc::new(Semaphore::new(READS_AT_ONCE)), last_seen: ArcSwapOption::empty() };
        if let Ok(keyring) = operation::read(&kek.path) {
            kek.remember(&keyring);
        }
        kek
    }

    fn remember(&self, keyring: &Keyring) {
        if let Ok(seen) = keyring.kek() {
            self.last_seen.store(Some(Arc::new(seen)));
        }
    }

    /// The keyring as it is in the file now.
    async fn read(&self, call: &KekCall) -> Result<Keyring, Fault> {
        let path = self.path.clone();
        let reads = Arc::clone(&self.reads);
        let reading = async move {
            // The permit goes with the thread, not with the caller: who gives up does not make room for one more thread
            // that hangs.
            let permit = reads.acquire_owned().await.map_err(|_| Fault::new(Reason::Invariant))?;
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                operation::read(&path).map_err(|error| error.to_fault())
            });
            task.await.unwrap_or_else(|error| {
                Err(if error.is_cancelled() { Reason::ShuttingDown } else { Reason::Invariant }.into())
            })
        };
        let keyring = tokio::time::timeout(call.timeout, reading).await.map_err(|_| {
            Fault::caused_by(Reason::Deadline, format!("keyring {}: the disk has not answered", self.path.display()))
        })??;
        self.remember(&keyring);
        Ok(keyring)
    }
}

impl Kek for LocalKek {
    fn kind(&self) -> KekKind {
        KekKind::LOCAL
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        kek.kind() == KekKind::LOCAL.as_str() && self.last_seen.load().as_ref().is_none_or(|seen| **seen == *kek)
    }

    fn wrap_dek<'a>(
        &'a self,
        dek: &'a DekBytes,
        context: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Wrapped> {
        Box::pin(async move { blob::wrap(&self.read(call).await?, dek, context, &*self.entropy) })
    }

    fn unwrap_dek<'a>(
        &'a self,
        kek: &'a KekRef,
        dek: &'a WrappedDek,
        context: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped> {
        Box::pin(async move { blob::unwrap(&self.read(call).await?, kek, dek, context) })
    }
}

impl fmt::Debug for LocalKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKek").field("path", &self.path).finish_non_exhaustive()
    }
}
