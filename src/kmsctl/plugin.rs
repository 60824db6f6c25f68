//! The program `kube-kms`, for what needs a KEK: found beside this one or on the PATH, started for a moment, ended.
//!
//! Guarantees: what was started ends with this value, and its directory goes. Refuses to know KEKs: they are the plugin's.

use kms_v2_client::kms::Target;
use kube_kms_cli::exit::{Exit, Failure};
use serde_json::{Value, json};
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const NAME: &str = "kube-kms";
/// How to have it.
pub(crate) const HINT: &str = "install kube-kms beside kmsctl, or put it on the PATH";
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// `kube-kms`: beside this program, or wherever the PATH has it.
pub(crate) fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(NAME)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| NAME.into())
}

/// What a `kube-kms` that failed has said, as this program's own failure.
pub(crate) fn said(status: i32, what: &str, stderr: &str) -> Failure {
    let exit = match status {
        2 => Exit::Usage,
        3 => Exit::Configuration,
        4 => Exit::Unreachable,
        5 => Exit::Refused,
        6 => Exit::VerificationFailed,
        _ => Exit::Failed,
    };
    let parts =
        |line: &str| ["error: ", "cause: "].iter().find_map(|label| line.strip_prefix(label).map(str::to_owned));
    stderr.lines().filter_map(parts).fold(Failure::new(exit, what), Failure::cause)
}

/// A plugin that serves a configuration on a socket of its own, in a directory of its own.
pub(crate) struct Started {
    child: Child,
    dir: TempDir,
}

impl Started {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When the configuration or the program does not serve, with its words.
    pub(crate) async fn with(config: &Path, within: Duration) -> Result<Self, Failure> {
        let unusable = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(Exit::Configuration, format!("{} is not a configuration of kube-kms", config.display()))
                .because(error)
                .hint("`kube-kms check --config FILE` says what is wrong with it")
        };
        let text = std::fs::read_to_string(config).map_err(|error| unusable(&error))?;
        let mut document: Value = serde_saphyr::from_str(&text).map_err(|error| unusable(&error))?;
        let failed = |error: io::Error| {
            Failure::new(Exit::Failed, "a plugin cannot be started for this").because(&error).hint(HINT)
        };
        // SECURITY: the library's own default leaves it to the umask.
        let private = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("kmsctl-").permissions(private).tempdir().map_err(failed)?;
        if let Some(map) = document.as_object_mut() {
            // The KEKs and their settings stay; the place, and what others look at, are its own.
            map.insert("listen".to_owned(), json!({"socket": dir.path().join("kms.sock")}));
            map.insert("http".to_owned(), json!({"listen": "none"}));
            map.insert("stateDir".to_owned(), json!(dir.path().join("state")));
            map.insert("log".to_owned(), json!({"level": "warn"}));
            map.remove("otlp");
        }
        let path = dir.path().join("config.json");
        let private = |path: &Path| OpenOptions::new().create_new(true).append(true).mode(0o600).open(path);
        private(&path).and_then(|mut file| file.write_all(document.to_string().as_bytes())).map_err(failed)?;
        let log = private(&dir.path().join("log")).map_err(failed)?;
        let mut command = Command::new(program());
        command.arg("serve").arg("--config").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(failed)?;
        let mut started = Self { child, dir };
        started.until_it_listens(config, within).await?;
        Ok(started)
    }

    async fn until_it_listens(&mut self, config: &Path, within: Duration) -> Result<(), Failure> {
        let listens = async {
            loop {
                if let Ok(Some(status)) = self.child.try_wait() {
                    let what = format!("kube-kms does not serve {}", config.display());
                    return Err(said(status.code().unwrap_or(1), &what, &self.log())
                        .hint("`kube-kms check --config FILE` says more"));
                }
                if self.target().connect().is_ok() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(within, listens).await.unwrap_or_else(|_| {
            Err(Failure::new(Exit::Unreachable, format!("kube-kms does not serve {} in time", config.display()))
                .hint("give it more time with --timeout"))
        })
    }

    /// Where it listens.
    pub(crate) fn target(&self) -> Target {
        Target::File(self.dir.path().join("kms.sock"))
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// The last line of its log, which has the KMS's own words.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        log.lines()
            .next_back()
            .map_or_else(|| "its log is empty".to_owned(), |line| format!("its log says: {}", line.trim()))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
