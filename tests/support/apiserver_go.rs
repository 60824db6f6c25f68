//! The storage side of a real kube-apiserver: k8s.io/apiserver's own code in a Go process (`tests/apiserver/driver`).
//!
//! Guarantees: built once for each test run into the target directory, whatever threads and processes want it at the same
//! time; one [`RealApiServer`] is one process, which ends with its handle. Without Go, or without its modules, the caller
//! gets a reason to skip with; a driver that does not compile is no such reason. Refuses to know what is right.

use super::skip::target_dir;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

/// How often the driver looks at its EncryptionConfiguration, instead of once a minute.
const FILE_POLL_MS: u64 = 200;

/// Go's and the proxies' words for modules that cannot be had, and for a Go that is too old.
const NOT_HERE: &[&str] = &[
    "dial tcp",
    "no such host",
    "i/o timeout",
    "connection refused",
    "connection reset",
    "TLS handshake",
    "module lookup disabled",
    "unexpected EOF",
    "Forbidden",
    "Bad Gateway",
    "Service Unavailable",
    "Gateway Timeout",
    "requires go >=",
    "toolchain not available",
];

/// Which release of k8s.io/apiserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// `go.mod`: the newest.
    Newest,
    /// `old.mod`: the oldest minor that speaks to a socket file.
    Old,
}

impl Release {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Newest, Self::Old];

    fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Old => "old",
        }
    }
}

/// The driver of every release.
///
/// # Errors
/// Why there is none here.
pub async fn built() -> Result<(), String> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let building = tokio::task::spawn_blocking(|| BUILT.get_or_init(build).clone());
    building.await.expect("the driver of k8s.io/apiserver builds")
}

fn build() -> Result<(), String> {
    go_build("driver", None, Release::Newest.name())?;
    go_build("driver", Some("old.mod"), Release::Old.name())?;
    Ok(())
}

/// Builds the module in that folder of `tests/apiserver`, and says where the binary is. One at a time, whoever asks.
///
/// # Errors
/// Why it cannot be built here: no Go, or no modules.
///
/// # Panics
/// When it does not compile.
pub fn go_build(folder: &str, modfile: Option<&str>, name: &str) -> Result<PathBuf, String> {
    let lock = OpenOptions::new().create(true).append(true).open(target_dir().join("apiserver-driver.lock"));
    let lock = lock.map_err(|e| format!("the lock of the Go builds: {e}"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| format!("the lock of the Go builds: {e}"))?;
    let binary = target_dir().join("apiserver-driver").join(name);
    let mut go = Command::new("go");
    go.current_dir(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/apiserver").join(folder));
    go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env("CGO_ENABLED", "0");
    go.args(["build", "-mod=readonly", "-buildvcs=false", "-o"]).arg(&binary);
    go.args(modfile.map(|file| format!("-modfile={file}")));
    let built = go.arg(".").stdin(Stdio::null()).output().map_err(|e| format!("no Go here: {e}"))?;
    if built.status.success() {
        return Ok(binary);
    }
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(NOT_HERE.iter().any(|words| said.contains(words)), "{folder} does not build:\n{said}");
    Err(format!("{folder} ({name}) cannot be built: {}", said.lines().last().unwrap_or("no message")))
}

fn binary(release: Release) -> PathBuf {
    target_dir().join("apiserver-driver").join(release.name())
}

/// An object that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    /// The object.
    pub plaintext: Vec<u8>,
    /// Whether an update that changes nothing writes it again.
    pub stale: bool,
}

/// What a storm came to.
#[derive(Debug)]
pub struct Storm {
    /// Objects written.
    pub writes: u64,
    /// Objects read back.
    pub reads: u64,
    /// Writes and reads that failed, and reads with other bytes than were written.
    pub failed: u64,
    /// The first errors.
    pub errors: Value,
}

impl Storm {
    /// What a Go program says of one.
    pub fn parse(answer: &Value) -> Self {
        let number = |name: &str| answer[name].as_u64().unwrap_or_else(|| panic!("no {name} in {answer}"));
        Self {
            writes: number("writes"),
            reads: number("reads"),
            failed: number("failed") + number("wrong"),
            errors: answer["errors"].clone(),
        }
    }

    /// It was one, of at least so many writes, and nothing failed.
    pub fn assert_unharmed(&self, writes: u64) {
        assert_eq!(self.failed, 0, "of {} writes: {}", self.writes, self.errors);
        assert!(self.writes > writes && self.reads == self.writes, "{self:?}");
    }
}

/// One series of the API server's metrics.
#[derive(Debug)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value; of a histogram, how many it counted.
    pub value: f64,
}

impl Sample {
    /// Whether it counts the configurations that were taken into use after a change of the file.
    pub fn is_a_good_reload(&self) -> bool {
        self.name.contains("automatic_reload") && self.labels.get("status").is_some_and(|s| s == "success")
    }
}

/// One process.
pub struct RealApiServer {
    child: Child,
    pipes: Arc<Mutex<(ChildStdin, BufReader<ChildStdout>)>>,
    /// Of k8s.io/apiserver.
    pub version: String,
    log: PathBuf,
}

impl RealApiServer {
    /// Starts a process with this EncryptionConfiguration. A plugin that is not there is no error.
    pub async fn start(release: Release, config: &Path) -> Self {
        let log = config.with_extension(format!("{}.log", uuid::Uuid::new_v4().simple()));
        let mut child = Command::new(binary(release))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut server = Self { child, pipes: Arc::new(Mutex::new((stdin, stdout))), version: String::new(), log };
        let answer = server.ask(json!({"op": "load", "config": config, "poll_ms": FILE_POLL_MS})).await;
        answer["version"].as_str().unwrap().clone_into(&mut server.version);
        server
    }

    async fn ask(&self, request: Value) -> Value {
        let pipes = Arc::clone(&self.pipes);
        let asking = tokio::task::spawn_blocking(move || {
            let mut pipes = pipes.lock().unwrap();
            let mut line = request.to_string();
            line.push('\n');
            pipes.0.write_all(line.as_bytes())?;
            line.clear();
            pipes.1.read_line(&mut line)?;
            std::io::Result::Ok(serde_json::from_str::<Value>(&line)?)
        });
        let answer = asking.await.unwrap().unwrap_or_else(|e| panic!("the driver: {e}\n{}", self.log()));
        assert!(answer["error"].is_null(), "the driver: {}\n{}", answer["error"], self.log());
        answer
    }

    async fn transform(&self, op: &str, objects: &[(&str, &[u8])]) -> Vec<Result<Object, String>> {
        if objects.is_empty() {
            return Vec::new();
        }
        let objects: Vec<_> =
            objects.iter().map(|(key, data)| json!({"key": key, "data": BASE64_STANDARD.encode(data)})).collect();
        let answer = self.ask(json!({"op": op, "objects": objects})).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), objects.len());
        results
            .iter()
            .map(|result| match result["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => Ok(Object {
                    plaintext: BASE64_STANDARD.decode(result["data"].as_str().unwrap()).unwrap(),
                    stale: result["stale"].as_bool().unwrap(),
                }),
            })
            .collect()
    }

    /// The values for etcd of these objects, each with its etcd key.
    pub async fn write(&self, objects: &[(&str, &[u8])]) -> Vec<Result<Vec<u8>, String>> {
        self.transform("write", objects).await.into_iter().map(|r| r.map(|o| o.plaintext)).collect()
    }

    /// The objects in these values, each with its etcd key.
    pub async fn read(&self, values: &[(&str, &[u8])]) -> Vec<Result<Object, String>> {
        self.transform("read", values).await
    }

    /// The check `kms-providers`.
    ///
    /// # Errors
    /// What it says.
    pub async fn readyz(&self) -> Result<(), String> {
        let answer = self.ask(json!({"op": "readyz"})).await;
        let said = answer["ready"].as_str().unwrap();
        if said == "ok" { Ok(()) } else { Err(said.to_owned()) }
    }

    /// Its metrics about the plugin.
    pub async fn metrics(&self) -> Vec<Sample> {
        let answer = self.ask(json!({"op": "metrics"})).await;
        let samples = answer["samples"].as_array().unwrap();
        samples
            .iter()
            .map(|sample| Sample {
                name: sample["name"].as_str().unwrap().to_owned(),
                labels: serde_json::from_value(sample["labels"].clone()).unwrap(),
                value: sample["value"].as_f64().unwrap(),
            })
            .collect()
    }

    /// Writes and reads without end begin.
    pub async fn storm(&self) {
        self.ask(json!({"op": "storm"})).await;
    }

    /// And end.
    pub async fn calm(&self) -> Storm {
        Storm::parse(&self.ask(json!({"op": "calm"})).await["storm"])
    }

    /// What k8s.io/apiserver has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for RealApiServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
