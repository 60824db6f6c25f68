//! A real moto server (somebody else's fake of AWS) for tests.
//!
//! Guarantees: moto is installed once into `venv-moto` under the target directory, whatever threads and processes want it
//! at the same time; a half-made environment is never used; the server listens on 127.0.0.1 on a port of its own choice,
//! answers before `start` returns, and ends with its handle or with this process, however this process ends. Without
//! Python or packages the caller gets a reason, to skip with. Refuses to know KMS.

use super::skip::target_dir;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// What is installed; part of the marker's name, so that another version is another installation.
const VERSION: &str = "5.2.5";

/// How long a server may take until it says where it listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// moto's server, ending when standard input does: the other end of it is this process.
const SERVER: &str = "
import os, sys, threading
def end_with_parent():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
from moto.server import main
main(['-H', '127.0.0.1', '-p', '0'])
";

/// A running server; dropped, it is killed.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    at: SocketAddr,
}

impl Moto {
    /// Installs moto if need be (about 40 seconds, once) and starts it.
    ///
    /// # Errors
    /// Why there is no moto here: no Python, no packages, or it does not start.
    pub fn start() -> Result<Self, String> {
        static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let python = PYTHON.get_or_init(install).as_ref().map_err(Clone::clone)?;
        let mut child = Command::new(python)
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("moto does not start: {e}"))?;
        let stderr = child.stderr.take();
        let mut starting = Starting(Some(child));
        let at = announced(stderr.ok_or("moto has no standard error")?)?;
        TcpStream::connect(at).map_err(|e| format!("moto does not answer: {e}"))?;
        let child = starting.0.take().ok_or("moto is gone")?;
        Ok(Self { child, at })
    }

    /// `http://127.0.0.1:<port>`, for `endpoint_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A child that is ended unless it became a [`Moto`].
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads the server's log for its address, then goes on reading, so that the pipe never fills.
fn announced(stderr: impl Read + Send + 'static) -> Result<SocketAddr, String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut log = Vec::new();
        let mut listening = false;
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if listening {
                continue;
            }
            if let Some((_, url)) = line.split_once("Running on http://") {
                let at = url.split_whitespace().next().unwrap_or_default().trim_end_matches('/').parse();
                listening = true;
                let _ = tell.send(at.map_err(|e| format!("moto's address {url:?}: {e}")));
            }
            log.push(line);
        }
        if !listening {
            let _ = tell.send(Err(format!("moto ended: {}", log.join(" | "))));
        }
    });
    told.recv_timeout(PATIENCE).map_err(|_| format!("moto said nothing within {PATIENCE:?}"))?
}

/// The Python that has moto.
fn install() -> Result<PathBuf, String> {
    let environment = target_dir().join("venv-moto");
    let python = environment.join("bin").join("python");
    let marker = environment.join(format!("complete-{VERSION}"));
    let lock = OpenOptions::new().create(true).append(true).open(target_dir().join("venv-moto.lock"));
    let lock = lock.map_err(|e| format!("the lock of moto's environment: {e}"))?;
    // Held until it is closed, by this process's end at the latest.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| format!("the lock of moto's environment: {e}"))?;
    if !marker.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
            .arg(format!("moto[server]=={VERSION}")))?;
        mark(&marker).map_err(|e| format!("moto's environment cannot be marked complete: {e}"))?;
    }
    Ok(python)
}

fn mark(marker: &Path) -> io::Result<()> {
    let unfinished = marker.with_extension("unfinished");
    fs::File::create(&unfinished)?.write_all(VERSION.as_bytes())?;
    fs::rename(&unfinished, marker)
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = Path::new(command.get_program()).display().to_string();
    let ran = command.stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(format!("{program} ({}): {last}", ran.status))
}
