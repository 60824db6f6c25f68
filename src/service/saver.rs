//! Brings what is remembered to the disk, and keeps nobody waiting for it.
//!
//! Guarantees: one write at a time, and the newest after it, so that the newest wins; a disk that stalls delays whoever saves
//! by [`PATIENCE`] once and not at all while it goes on, and is said; what could not be written is tried again with every
//! probe. Refuses to know what a file is ([`Disk`]).

use crate::state_file::{Remembered, StateFile};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a key_id waits for the disk before it is reported all the same.
pub const PATIENCE: Duration = kube_kms_core::rotation::REMEMBERED_WITHIN;

/// Where it is written to.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Writes it durably, in a task of its own.
    fn save(&self, remembered: Remembered) -> JoinHandle<io::Result<()>>;

    /// Where, for messages.
    fn path(&self) -> &Path;
}

impl Disk for StateFile {
    fn save(&self, remembered: Remembered) -> JoinHandle<io::Result<()>> {
        let file = self.clone();
        tokio::task::spawn_blocking(move || file.save(&remembered))
    }

    fn path(&self) -> &Path {
        self.path()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Saver {
    disk: Box<dyn Disk>,
    /// What is to be written next.
    wanted: Option<Remembered>,
    flight: Option<(Remembered, JoinHandle<io::Result<()>>)>,
    /// Nothing is written before what is there has been read.
    is_held: bool,
    trouble: Trouble,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Stalls,
    Fails,
}

impl Saver {
    pub(super) fn new(disk: Box<dyn Disk>) -> Self {
        Self { disk, wanted: None, flight: None, is_held: false, trouble: Trouble::None }
    }

    /// Writes nothing until it is released.
    pub(super) const fn hold(&mut self) {
        self.is_held = true;
    }

    /// What was there has been read; this is to be written, if anything is.
    pub(super) fn release(&mut self, remembered: Option<&Remembered>) {
        self.is_held = false;
        self.wanted = remembered.cloned().or_else(|| self.wanted.take());
        self.go_on();
    }

    /// Returns when it is on disk, when it cannot be, or after [`PATIENCE`].
    pub(super) async fn save(&mut self, remembered: &Remembered) {
        self.wanted = Some(remembered.clone());
        if self.is_held || self.trouble == Trouble::Stalls {
            return self.go_on();
        }
        let all = async {
            self.go_on();
            while self.flight.is_some() && self.landed().await {}
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            self.trouble = Trouble::Stalls;
            tracing::warn!(
                target: "kube_kms::state", path = %self.path().display(), waited_secs = PATIENCE.as_secs(),
                "the disk under the state file stalls; going on without it: until it is written, a restart would make this node \
                 forget the key_id that it reports"
            );
        }
    }

    /// Begins to write what is wanted, unless something is on its way.
    pub(super) fn go_on(&mut self) {
        if self.flight.is_none()
            && !self.is_held
            && let Some(wanted) = self.wanted.take()
        {
            self.flight = Some((wanted.clone(), self.disk.save(wanted)));
        }
    }

    /// Waits for the write that is on its way, for ever if there is none, begins the next, and says whether it went well.
    ///
    /// # Cancel safety
    /// Nothing is lost: the write goes on, and its end is awaited by the next call.
    pub(super) async fn landed(&mut self) -> bool {
        let Some((_, flight)) = &mut self.flight else { return std::future::pending().await };
        let outcome = flight.await;
        let sent = self.flight.take().map(|(sent, _)| sent);
        let error = match outcome {
            Ok(Ok(())) => {
                if self.wanted.is_none() && self.trouble != Trouble::None {
                    self.trouble = Trouble::None;
                    tracing::info!(target: "kube_kms::state", path = %self.path().display(), "the state file is written again");
                }
                self.go_on();
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        self.wanted = self.wanted.take().or(sent);
        if std::mem::replace(&mut self.trouble, Trouble::Fails) != Trouble::Fails {
            tracing::warn!(
                target: "kube_kms::state", path = %self.path().display(), error,
                "the state file cannot be written; after a restart this node will have forgotten the key_id that it reports. If \
                 `stateDir` was removed and made again, only a new process may write to it (serve --take-over)"
            );
        }
        false
    }

    fn path(&self) -> PathBuf {
        self.disk.path().to_owned()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kube_kms_core::key_id::KeyId;
    use std::sync::{Arc, Mutex};
    use tokio::time::Instant;

    /// A disk that takes so long for each write, or fails it.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct ScriptedDisk(Arc<Mutex<Script>>);

    #[derive(Debug, Default)]
    struct Script {
        takes: Duration,
        fails: bool,
        begun: usize,
        under_way: usize,
        content: Option<Remembered>,
    }

    impl ScriptedDisk {
        pub(crate) fn set(&self, takes: Duration, fails: bool) {
            let mut script = self.0.lock().unwrap();
            (script.takes, script.fails) = (takes, fails);
        }

        pub(crate) fn content(&self) -> Option<Remembered> {
            self.0.lock().unwrap().content.clone()
        }

        fn begun(&self) -> usize {
            self.0.lock().unwrap().begun
        }
    }

    impl Disk for ScriptedDisk {
        fn save(&self, remembered: Remembered) -> JoinHandle<io::Result<()>> {
            let script = Arc::clone(&self.0);
            let (takes, fails) = {
                let mut script = script.lock().unwrap();
                (script.begun, script.under_way) = (script.begun + 1, script.under_way + 1);
                assert_eq!(script.under_way, 1, "one at a time");
                (script.takes, script.fails)
            };
            tokio::spawn(async move {
                tokio::time::sleep(takes).await;
                let mut script = script.lock().unwrap();
                script.under_way -= 1;
                if fails {
                    return Err(io::Error::other("scripted"));
                }
                script.content = Some(remembered);
                Ok(())
            })
        }

        fn path(&self) -> &Path {
            Path::new("/scripted")
        }
    }

    fn numbered(n: u32) -> Remembered {
        Remembered::default().after(&KeyId::parse(format!("k{n}")).unwrap(), "00".to_owned())
    }

    fn saver() -> (Saver, ScriptedDisk) {
        let disk = ScriptedDisk::default();
        (Saver::new(Box::new(disk.clone())), disk)
    }

    async fn timed(saver: &mut Saver, n: u32) -> Duration {
        let began = Instant::now();
        saver.save(&numbered(n)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_in_time_is_waited_for_and_one_that_stalls_once_for_two_seconds_and_the_newest_wins() {
        let (mut saver, disk) = saver();
        disk.set(Duration::from_millis(1900), false);
        assert_eq!(timed(&mut saver, 0).await, Duration::from_millis(1900));
        assert_eq!(disk.content(), Some(numbered(0)));
        disk.set(Duration::from_secs(25), false);
        assert_eq!(timed(&mut saver, 1).await, PATIENCE);
        for n in 2..10 {
            assert_eq!(timed(&mut saver, n).await, Duration::ZERO, "it is known to stall");
        }
        assert_eq!((disk.content(), disk.begun()), (Some(numbered(0)), 2));
        disk.set(Duration::from_millis(5), false);
        assert!(saver.landed().await);
        assert_eq!(disk.content(), Some(numbered(1)));
        assert!(saver.landed().await);
        assert_eq!((disk.content(), disk.begun()), (Some(numbered(9)), 3), "those between are of no use");
        assert_eq!(timed(&mut saver, 10).await, Duration::from_millis(5), "it is waited for again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_written_when_it_is_asked_to_go_on() {
        let (mut saver, disk) = saver();
        disk.set(Duration::ZERO, true);
        assert_eq!(timed(&mut saver, 1).await, Duration::ZERO);
        assert_eq!(disk.begun(), 1, "not at once again");
        saver.go_on();
        assert!(!saver.landed().await);
        disk.set(Duration::ZERO, false);
        saver.go_on();
        assert!(saver.landed().await);
        assert_eq!(disk.content(), Some(numbered(1)));
        saver.go_on();
        assert_eq!(disk.begun(), 3, "what is written is not written again");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_while_it_is_held() {
        let (mut saver, disk) = saver();
        saver.hold();
        assert_eq!(timed(&mut saver, 1).await, Duration::ZERO);
        assert_eq!(disk.begun(), 0);
        saver.release(Some(&numbered(2)));
        assert!(saver.landed().await);
        assert_eq!(disk.content(), Some(numbered(2)));
    }
}
