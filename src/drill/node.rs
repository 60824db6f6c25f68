//! One plugin of the sandbox: the real binary as a process of its own, with a configuration, a state directory and a socket.
//!
//! Guarantees: the process, and whatever it started, is killed when this is dropped. It is a process group of its own, so that
//! Ctrl-C goes to the drill, which ends all of them.

use crate::tempo::Tempo;
use kms_v2_client::kms::{KmsClient, Target};
use kube_kms_os::Stopwatch;
use kube_kms_os::durable::{self, Existing};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How the plugins of a sandbox are started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Program and first arguments; `serve --config FILE` follows.
    pub(crate) command: Vec<String>,
    /// The `kek` section.
    pub(crate) kek: Value,
    pub(crate) tempo: Tempo,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    dir: PathBuf,
    command: Vec<String>,
    child: Option<Child>,
    tempo: Tempo,
}

impl Node {
    /// Its directory and configuration; not started yet.
    pub(crate) fn new(sandbox: &Path, name: &str, launch: &Launch) -> io::Result<Self> {
        let dir = sandbox.join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let tempo = launch.tempo;
        let text = |time: Duration| humantime::format_duration(time).to_string();
        // JSON is YAML, and quotes whatever a path may hold.
        let config = json!({
            "listen": {"socket": dir.join("kms.sock")},
            "kek": launch.kek,
            "stateDir": dir.join("state"),
            "http": {"listen": "none"},
            "probe": {"interval": text(tempo.probe_interval), "timeout": text(tempo.probe_timeout)},
            "rotation": {"observations": tempo.observations},
            "cache": {"ttl": text(tempo.cache_ttl)},
            "outage": {"grace": text(tempo.grace)},
        });
        let node = Self { name: name.to_owned(), dir, command: launch.command.clone(), child: None, tempo };
        durable::write(&node.config(), format!("{config:#}\n").as_bytes(), Existing::Refuse)?;
        Ok(node)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    pub(crate) fn target(&self) -> Target {
        Target::File(self.dir.join("kms.sock"))
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Starts it, without waiting for anything.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.kill();
        let (program, first) = self.command.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.log())?;
        let mut command = Command::new(program);
        command.args(first).arg("serve").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// SIGKILL, and gone.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Not waited for yet, so the id is still its own.
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Whether the process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until Status answers `ok`: its key_id, and how long that took.
    ///
    /// # Errors
    /// What it said last, and the end of its log.
    pub(crate) async fn until_ok(&mut self, within: Duration) -> Result<(String, Duration), String> {
        let watch = Stopwatch::start();
        let mut client: Option<KmsClient> = None;
        let mut last = "nobody listens on its socket".to_owned();
        while watch.elapsed() < within {
            if !self.is_running() {
                return Err(format!("the plugin on node {} has ended: {}", self.name, self.last_words()));
            }
            if client.is_none() {
                client = KmsClient::connect(self.target(), self.tempo.rpc_timeout).await.ok();
            }
            if let Some(client) = &mut client {
                match client.status().await {
                    Ok(status) if status.healthz == "ok" => return Ok((status.key_id, watch.elapsed())),
                    Ok(status) => last = format!("healthz {:?}", status.healthz),
                    Err(status) => last = format!("{:?}: {}", status.code(), status.message()),
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(format!("the plugin on node {} is not well after {within:?}: {last}; {}", self.name, self.last_words()))
    }

    /// The last warning or error of its log, or its last line.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let bad = |line: &&str| ["ERROR", "WARN", "error:", "cause:"].iter().any(|word| line.contains(word));
        let line = log.lines().rev().find(bad).or_else(|| log.lines().next_back());
        line.map_or_else(|| "its log is empty".to_owned(), |line| format!("its log says: {}", line.trim()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
