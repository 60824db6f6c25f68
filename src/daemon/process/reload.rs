//! Reload, on SIGHUP or when the configuration file changed: validate all of it, prepare and verify the new KEK, swap.
//!
//! Guarantees: on any failure the old configuration serves on, and the log says why; a reload never interrupts a request.

use super::sandbox::Sandbox;
use super::{keks, pages};
use kube_kms_config::{self as config, Config};
use kube_kms_core::port::Entropy;
use kube_kms_service::plugin::Plugin;
use kube_kms_service::state_file::Under;
use kube_kms_service::supervisor::Reload;
use kube_kms_telemetry::log::LevelHandle;
use kube_kms_transport::systemd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What tells one version of a file from another without reading it.
type Fingerprint = (u64, u64, i64, i64, u64);

/// Which KEK this node writes under, or has written under last.
#[derive(Debug)]
pub struct Written {
    plugin: Arc<Plugin>,
    remembered: Option<Under>,
}

impl Written {
    /// `remembered`: from the state file, for as long as this process has written nothing.
    #[must_use]
    pub const fn new(plugin: Arc<Plugin>, remembered: Option<Under>) -> Self {
        Self { plugin, remembered }
    }

    fn under(&self) -> Option<Under> {
        let published = self.plugin.published();
        let now = published.write.as_ref().map(|write| write.version().kek.clone());
        let kek = now.or_else(|| published.revoked.clone());
        kek.map(|kek| Under { kek, epoch: self.plugin.settings().epoch }).or_else(|| self.remembered.clone())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    /// What the process was started with: keys that take a restart stay as they are in it.
    started: Config,
    sandbox: Sandbox,
    written: Written,
    seen: Option<Fingerprint>,
    entropy: Arc<dyn Entropy>,
    queue: mpsc::Sender<Reload>,
    log_level: LevelHandle,
}

impl Reloader {
    /// Starts from the configuration that the process was started with.
    #[must_use]
    pub fn new(
        path: &Path,
        (started, sandbox): (Config, Sandbox),
        written: Written,
        entropy: Arc<dyn Entropy>,
        queue: mpsc::Sender<Reload>,
        log_level: LevelHandle,
    ) -> Self {
        Self { path: path.to_owned(), started, sandbox, written, seen: fingerprint(path), entropy, queue, log_level }
    }

    /// Returns when the file is another than at the last look. A file that is gone is no change: it may be in the middle
    /// of being replaced.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was seen is remembered only when this returns.
    pub async fn file_changed(&mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = fingerprint(&self.path);
            if now.is_some() && now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    /// Reads the file and puts it into force, or says why not.
    pub async fn reload(&mut self, why: &str) {
        tracing::info!(target: "kube_kms::reload", config = %self.path.display(), why, "reading the configuration again");
        systemd::reloading();
        self.seen = fingerprint(&self.path);
        match self.try_reload().await {
            Ok(()) => {}
            Err(problems) => {
                for problem in problems {
                    tracing::error!(target: "kube_kms::reload", "the old configuration stays: {problem}");
                }
            }
        }
        systemd::ready("serving");
    }

    async fn try_reload(&mut self) -> Result<(), Vec<String>> {
        let new = config::load(&self.path)
            .map_err(|error| error.problems().iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let lacks = self.sandbox.lacks(&new);
        if !lacks.is_empty() {
            return Err(lacks);
        }
        let one = |text: String| vec![text];
        let keks = keks::connect(&new, &self.entropy, self.written.under().as_ref()).await.map_err(|e| {
            one(format!("{e}: {}", std::error::Error::source(&e).map_or_else(String::new, ToString::to_string)))
        })?;
        let (reply, answer) = oneshot::channel();
        let reload = Reload { keks, settings: new.settings.clone(), reply };
        self.queue.send(reload).await.map_err(|_| one("the supervisor is gone".to_owned()))?;
        match answer.await {
            Ok(Ok(key_id)) => {
                for key in self.started.restart_only_changes(&new) {
                    tracing::warn!(target: "kube_kms::reload", key, "changed in the file, but takes a restart");
                }
                self.log_level.set(pages::log_level(new.log.level));
                tracing::info!(target: "kube_kms::reload", %key_id, "the new configuration is in force");
                Ok(())
            }
            Ok(Err(fault)) => Err(one(format!("the new KEK cannot be used: {fault} {}", fault.causes()))),
            Err(_) => Err(one("the supervisor is gone".to_owned())),
        }
    }
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}
