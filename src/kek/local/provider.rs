//! [`LocalKek`]: the keyring file behind the port of the core.
//!
//! Guarantees: the file is read anew for every call, off the runtime's threads, within the call's time; at most
//! `READS_AT_ONCE` threads ever wait for a disk that hangs. It is one keyring for good, the one that it was told of or read
//! first: another one in its file is refused. Refuses to know: how the file is made and changed.

use super::error::{KeyringError, Problem};
use super::keyring::Keyring;
use super::{blob, operation};
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekKind, KekRef};
use kube_kms_core::port::{Entropy, Kek, KekCall, KekFuture, Unwrapped, Wrapped};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// Reads of the file at the same time. They take less than a millisecond, unless the disk hangs.
const READS_AT_ONCE: usize = 4;

/// A KEK in a keyring file.
pub struct LocalKek {
    path: PathBuf,
    entropy: Arc<dyn Entropy>,
    reads: Arc<Semaphore>,
    /// The keyring that this is.
    known: OnceLock<KekRef>,
}

impl LocalKek {
    /// The KEK in this file, which is read once, now (blocking), to learn which KEK it is. A file that cannot be read is
    /// no error here: each call says so until it can.
    #[must_use]
    pub fn new(path: PathBuf, entropy: Arc<dyn Entropy>) -> Self {
        let known = OnceLock::new();
        if let Some(seen) = operation::read(&path).ok().and_then(|keyring| keyring.kek().ok()) {
            known.get_or_init(|| seen);
        }
        Self { path, entropy, reads: Arc::new(Semaphore::new(READS_AT_ONCE)), known }
    }

    /// That keyring and no other, whatever the file holds now.
    #[must_use]
    pub fn expecting(self, kek: KekRef) -> Self {
        Self { known: OnceLock::from(kek), ..self }
    }

    /// Which keyring it is, once that is known.
    #[must_use]
    pub fn known(&self) -> Option<&KekRef> {
        self.known.get()
    }

    /// SECURITY: a keyring of another uuid is not a rotation. Taken for one, values would be sealed under a key that no other
    /// node and no backup has, and the data keys of the old one would be gone with this process.
    fn same(&self, keyring: Keyring) -> Result<Keyring, Fault> {
        let found = keyring.kek()?;
        let known = self.known.get_or_init(|| found.clone());
        if *known == found {
            return Ok(keyring);
        }
        Err(KeyringError::new(&self.path, Problem::Replaced { known: known.clone(), found }).to_fault())
    }

    /// The keyring as it is in the file now.
    async fn read(&self, call: &KekCall) -> Result<Keyring, Fault> {
        let (path, known) = (self.path.clone(), self.known().cloned());
        let reads = Arc::clone(&self.reads);
        let reading = async move {
            // The permit goes with the thread, not with the caller: who gives up does not make room for one more thread
            // that hangs.
            let permit = reads.acquire_owned().await.map_err(|_| Fault::new(Reason::Invariant))?;
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                operation::read(&path).map_err(|error| error.knowing(known.as_ref()).to_fault())
            });
            task.await.unwrap_or_else(|error| {
                Err(if error.is_cancelled() { Reason::ShuttingDown } else { Reason::Invariant }.into())
            })
        };
        let keyring = tokio::time::timeout(call.timeout, reading).await.map_err(|_| {
            Fault::caused_by(Reason::Deadline, format!("keyring {}: the disk has not answered", self.path.display()))
        })??;
        self.same(keyring)
    }
}

impl Kek for LocalKek {
    fn kind(&self) -> KekKind {
        KekKind::LOCAL
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        kek.kind() == KekKind::LOCAL.as_str() && self.known().is_none_or(|known| known == kek)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{
        KEYRING, OTHER, VERSION, assert_no_canary, call, context, dek, file_with, known_file, put, set_mode,
    };
    use kube_kms_core::fault::Class;
    use kube_kms_os::OsEntropy;
    use std::path::Path;
    use std::time::Duration;

    fn kek_at(path: &Path) -> LocalKek {
        LocalKek::new(path.to_owned(), Arc::new(OsEntropy))
    }

    fn named(text: &str) -> KekRef {
        KekRef::parse(text.as_bytes()).unwrap()
    }

    /// The fault of a wrap and of an unwrap, which is the same; nothing of the file is in it.
    async fn fault_of(kek: &LocalKek, wrapped: &Wrapped) -> Fault {
        let fault = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap_err();
        let other = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context("prod"), &call()).await.unwrap_err();
        assert_eq!(fault, other);
        for shown in [format!("{fault} {fault:?} {}", fault.causes()), format!("{other} {other:?} {}", other.causes())]
        {
            assert_no_canary(&shown);
            assert!(!shown.contains("canary"), "{shown}");
        }
        fault
    }

    #[tokio::test]
    async fn a_dek_comes_back_with_the_version_that_wrapped_it() {
        let (_dir, path) = file_with(&known_file());
        let kek = kek_at(&path);
        let wrapped = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        assert_eq!(wrapped.kek, named(&format!("local:{KEYRING}")));
        let back = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context("prod"), &call()).await.unwrap();
        assert!(back.dek.same_as(&dek()));
        assert_eq!(back.version.version, VERSION);
        let again = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        assert_ne!(again.dek, wrapped.dek, "a nonce was used twice");
        assert_eq!((kek.kind(), kek.deletion_date()), (KekKind::LOCAL, None));
    }

    #[tokio::test]
    async fn promoting_and_retiring_are_noticed_without_a_restart() {
        let (_dir, path) = file_with(&known_file());
        let kek = kek_at(&path);
        let old = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        operation::promote(&path, OTHER).unwrap();
        let new = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        for (wrapped, version) in [(&old, VERSION), (&new, OTHER)] {
            let back = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context("prod"), &call()).await.unwrap();
            assert_eq!(back.version.version, version);
        }
        operation::retire(&path, VERSION).unwrap();
        let fault = kek.unwrap_dek(&old.kek, &old.dek, &context("prod"), &call()).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::KekDisabled);
        assert!(fault.causes().contains(VERSION), "{}", fault.causes());
        kek.unwrap_dek(&new.kek, &new.dek, &context("prod"), &call()).await.unwrap();
        operation::reinstate(&path, VERSION).unwrap();
        kek.unwrap_dek(&old.kek, &old.dek, &context("prod"), &call()).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_gone_is_transient_and_one_that_is_refused_is_not() {
        let (dir, path) = file_with(&known_file());
        let kek = kek_at(&path);
        let wrapped = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        let aside = dir.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        let fault = fault_of(&kek, &wrapped).await;
        assert_eq!(fault.reason(), Reason::KmsUnreachable);
        assert!(fault.class().is_transient() && fault.causes().contains("keyring.json"), "{}", fault.causes());
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        assert_eq!(fault_of(&kek, &wrapped).await.reason(), Reason::KekFileRefused);
        std::fs::rename(&aside, &path).unwrap();
        for mode in [0o604, 0o640] {
            set_mode(&path, mode);
            let fault = fault_of(&kek, &wrapped).await;
            assert_eq!((fault.reason(), fault.class()), (Reason::KekFileRefused, Class::KekDenied));
            assert!(fault.causes().contains("chmod 600"), "{}", fault.causes());
        }
        set_mode(&path, 0o600);
        for content in [
            String::new(),
            "canary".to_owned(),
            known_file()[..300].to_owned(),
            known_file().replace(r#""version":1"#, r#""version":2"#),
            known_file().replace("created", "canary"),
            known_file().replacen("enabled", "retired", 1),
        ] {
            put(&path, &content);
            assert_eq!(fault_of(&kek, &wrapped).await.reason(), Reason::KekFileRefused, "{content}");
        }
        put(&path, &known_file());
        kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context("prod"), &call()).await.unwrap();
    }

    #[tokio::test]
    async fn it_may_unwrap_what_its_file_wrapped_and_anything_local_before_it_has_read_it() {
        let (dir, path) = file_with(&known_file());
        let (own, other) = (named(&format!("local:{KEYRING}")), named(&format!("local:{OTHER}")));
        let kek = kek_at(&path);
        assert!(kek.may_unwrap(&own) && !kek.may_unwrap(&other) && !kek.may_unwrap(&named(&format!("aws:{KEYRING}"))));
        let later = dir.path().join("later.json");
        let kek = kek_at(&later);
        assert!(kek.may_unwrap(&own) && kek.may_unwrap(&other) && !kek.may_unwrap(&named(&format!("aws:{KEYRING}"))));
        std::fs::rename(&path, &later).unwrap();
        let wrapped = kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        assert!(kek.may_unwrap(&own) && !kek.may_unwrap(&other));
        let fault = kek.unwrap_dek(&other, &wrapped.dek, &context("prod"), &call()).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected);
    }

    #[tokio::test]
    async fn another_keyring_in_its_file_is_refused_and_its_own_is_taken_again() {
        let (dir, path) = file_with(&known_file());
        let own = named(&format!("local:{KEYRING}"));
        let learned = kek_at(&path);
        let wrapped = learned.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        let told = kek_at(&dir.path().join("later.json")).expecting(own.clone());
        let told = LocalKek { path: path.clone(), ..told };
        std::fs::rename(&path, dir.path().join("backup.json")).unwrap();
        for kek in [&learned, &told] {
            let fault = fault_of(kek, &wrapped).await;
            assert_eq!(fault.reason(), Reason::KmsUnreachable);
            assert!(fault.causes().contains(&format!("restore the backup of keyring {own} at ")), "{}", fault.causes());
        }
        let other = operation::init(&path, std::time::SystemTime::UNIX_EPOCH, &OsEntropy).unwrap();
        for kek in [&learned, &told] {
            let fault = fault_of(kek, &wrapped).await;
            assert_eq!((fault.reason(), fault.class()), (Reason::KeyringReplaced, Class::KekUnknown));
            for part in [KEYRING, &other.keyring.to_string(), "restore the backup"] {
                assert!(fault.causes().contains(part), "{}", fault.causes());
            }
            assert!(kek.known() == Some(&own) && kek.may_unwrap(&own), "it stays what it was");
        }
        std::fs::rename(dir.path().join("backup.json"), &path).unwrap();
        for kek in [&learned, &told] {
            kek.unwrap_dek(&own, &wrapped.dek, &context("prod"), &call()).await.unwrap();
        }
    }

    #[test]
    fn a_disk_that_hangs_costs_its_callers_their_time_and_no_more_than_a_few_threads() {
        let (_dir, path) = file_with(&known_file());
        let kek = kek_at(&path);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            // The only thread for files waits for us: that is what a disk that hangs looks like from here.
            let (answer, hang) = std::sync::mpsc::channel::<()>();
            let disk = tokio::task::spawn_blocking(move || hang.recv().is_ok());
            let short = KekCall { timeout: Duration::from_millis(5), uid: None };
            for _ in 0..READS_AT_ONCE {
                let fault = kek.wrap_dek(&dek(), &context("prod"), &short).await.unwrap_err();
                assert_eq!(fault.reason(), Reason::Deadline);
            }
            // All have given up, and their reads are still waiting: nobody may start another.
            assert_eq!(kek.reads.available_permits(), 0);
            let fault = kek.wrap_dek(&dek(), &context("prod"), &short).await.unwrap_err();
            assert_eq!(fault.reason(), Reason::Deadline);
            answer.send(()).unwrap();
            assert!(disk.await.unwrap());
            kek.wrap_dek(&dek(), &context("prod"), &call()).await.unwrap();
        });
    }

    #[tokio::test]
    async fn many_calls_at_once_and_dropped_ones_do_no_harm() {
        let (_dir, path) = file_with(&known_file());
        let kek = Arc::new(kek_at(&path));
        let start = || {
            let kek = Arc::clone(&kek);
            tokio::spawn(async move { kek.wrap_dek(&dek(), &context("prod"), &call()).await.is_ok() })
        };
        let (dropped, kept): (Vec<_>, Vec<_>) = (0..50).map(|_| (start(), start())).unzip();
        tokio::task::yield_now().await;
        for task in dropped {
            task.abort();
        }
        for task in kept {
            assert!(task.await.unwrap());
        }
        // Every thread that was left alone ends and gives its permit back.
        let _all = kek.reads.acquire_many(4).await.unwrap();
        assert_eq!(kek.reads.available_permits(), 0);
    }

    #[test]
    fn debug_shows_the_path_and_no_content() {
        let (_dir, path) = file_with(&known_file());
        let shown = format!("{:?}", kek_at(&path));
        assert_eq!(shown, format!("LocalKek {{ path: {path:?}, .. }}"));
    }
}
