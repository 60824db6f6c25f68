//! The real binary as an operator runs it: a [`Site`] is one node (configuration, KEK, directories), a [`Running`] is one
//! process on it. Several sites can share a KEK: replicas.
//!
//! Guarantees: everything is in a temporary directory and on a port that the kernel chose; a process never outlives its
//! test; nothing talks to anybody but this host. Readiness is waited for, never slept for.

use super::fake_kms::FakeKms;
use super::fault_proxy::FaultProxy;
use kms_v2_api::v2::{EncryptResponse, StatusResponse};
use kms_v2_client::kms::{KmsClient, Target};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::Status;

macro_rules! beside {
    ($name:literal) => {
        if cfg!(debug_assertions) {
            concat!(env!("CARGO_TARGET_TMPDIR"), "/../debug/", $name)
        } else {
            concat!(env!("CARGO_TARGET_TMPDIR"), "/../release/", $name)
        }
    };
}

/// The plugin. [`Site::process`] runs the one that `KUBE_KMS_BINARY` names in its place, the release binary say (`make memory-scan`). Cargo
/// names the program of the package that a test belongs to; the other one is beside it, built by
/// `cargo build --workspace`.
pub const BINARY: &str = match option_env!("CARGO_BIN_EXE_kube-kms") {
    Some(path) => path,
    None => beside!("kube-kms"),
};
/// The operator's tool.
pub const KMSCTL: &str = match option_env!("CARGO_BIN_EXE_kmsctl") {
    Some(path) => path,
    None => beside!("kmsctl"),
};
/// What is a command of [`KMSCTL`] and not of [`BINARY`].
const OF_KMSCTL: [&str; 5] = ["scan", "inspect", "drill", "conformance", "bench"];

/// Which of the two has this command.
pub fn program_of(arguments: &[&str]) -> &'static str {
    if arguments.first().is_some_and(|command| OF_KMSCTL.contains(command)) { KMSCTL } else { BINARY }
}
/// How long anything is waited for before the test fails with the process's log.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The alias that [`Site::aws`] uses.
pub const ALIAS: &str = "alias/prod";

/// Which KEK a site has.
#[derive(Clone)]
pub enum KekKind {
    /// A keyring file, at this path.
    Local(PathBuf),
    /// A fake AWS KMS, under [`ALIAS`].
    Aws(FakeKms),
}

/// One node.
pub struct Site {
    dir: Arc<TempDir>,
    kek: KekKind,
    settings: String,
    listen: String,
    env: Vec<(String, String)>,
    proxy: Option<FaultProxy>,
}

impl Site {
    /// A node with a fresh keyring file.
    pub fn local() -> Self {
        let dir = tempdir();
        let keyring = dir.path().join("keyring.json");
        let site = Self::with_kek(dir, KekKind::Local(keyring.clone()));
        let made = site.command(&["keyring", "init", "--file", keyring.to_str().unwrap()]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        site
    }

    /// A node with a fake AWS KMS of its own that has one key under [`ALIAS`].
    pub fn aws() -> Self {
        let kms = FakeKms::start();
        kms.create_key(ALIAS);
        Self::with_kek(tempdir(), KekKind::Aws(kms))
    }

    /// As [`Site::aws`], with a proxy on the way to the KMS.
    pub fn aws_behind_proxy() -> Self {
        let mut site = Self::aws();
        site.proxy = Some(FaultProxy::start(site.kms().address()));
        site
    }

    /// Another node with the same KEK, as another control-plane node has.
    pub fn replica(&self) -> Self {
        let mut replica = Self::with_kek(tempdir(), self.kek.clone());
        replica.settings.clone_from(&self.settings);
        replica.env.clone_from(&self.env);
        replica.proxy.clone_from(&self.proxy);
        replica
    }

    /// From now on the configuration names the KMS itself: a way around the proxy.
    pub fn without_proxy(mut self) -> Self {
        self.proxy = None;
        self
    }

    fn with_kek(dir: TempDir, kek: KekKind) -> Self {
        Self { dir: Arc::new(dir), kek, settings: String::new(), listen: String::new(), env: Vec::new(), proxy: None }
    }

    /// Adds top-level YAML to the configuration: `"probe: {interval: 1s}\ncache: {ttl: 1s}\n"`.
    pub fn set(&mut self, yaml: &str) -> &mut Self {
        self.settings.push_str(yaml);
        self.settings.push('\n');
        self
    }

    /// Replaces the `listen` section: `"{socket: '@name', allowUids: [0]}"`.
    pub fn listen(&mut self, yaml: &str) -> &mut Self {
        self.listen = yaml.to_owned();
        self
    }

    /// Adds an environment variable for the processes of this site.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Which KEK it has.
    pub fn kek(&self) -> &KekKind {
        &self.kek
    }

    /// The fake KMS, for a site that has one.
    pub fn kms(&self) -> &FakeKms {
        match &self.kek {
            KekKind::Aws(kms) => kms,
            KekKind::Local(_) => panic!("this site has a local KEK"),
        }
    }

    /// The proxy on the way to the KMS, for a site that has one.
    pub fn proxy(&self) -> &FaultProxy {
        self.proxy.as_ref().expect("this site has a proxy")
    }

    /// The keyring file, for a site that has one.
    pub fn keyring(&self) -> &Path {
        match &self.kek {
            KekKind::Local(path) => path,
            KekKind::Aws(_) => panic!("this site has an AWS KEK"),
        }
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The socket of the default `listen` section.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("kms.sock")
    }

    /// The state file.
    pub fn state_file(&self) -> PathBuf {
        self.dir().join("state/state.json")
    }

    /// The configuration file, written anew.
    pub fn write_config(&self) -> PathBuf {
        let kek = match &self.kek {
            KekKind::Local(keyring) => format!("{{local: {{keyring: {}}}}}", keyring.display()),
            KekKind::Aws(kms) => {
                let endpoint = self.proxy.as_ref().map_or_else(|| kms.url(), FaultProxy::url);
                format!("{{aws: {{key: {ALIAS}, region: {}, endpoint: '{endpoint}'}}}}", kms.region())
            }
        };
        let listen = if self.listen.is_empty() {
            format!("{{socket: {}}}", self.socket().display())
        } else {
            self.listen.clone()
        };
        let mut text = format!("listen: {listen}\nstateDir: {}\n", self.dir().join("state").display());
        let is_set = |section: &str| self.settings.lines().any(|line| line.starts_with(section));
        if !is_set("kek:") {
            text.push_str(&format!("kek: {kek}\n"));
        }
        // Not the default port, which another test or the machine may have; "http:" is in every endpoint as well.
        if !is_set("http:") {
            text.push_str("http: {listen: '127.0.0.1:0'}\n");
        }
        text.push_str(&self.settings);
        self.write_raw_config(&text)
    }

    /// The configuration file, with exactly this content.
    pub fn write_raw_config(&self, text: &str) -> PathBuf {
        let path = self.dir().join("config.yaml");
        // As an editor or a configuration manager does it: never half a file.
        let temporary = self.dir().join(".config.yaml.new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(&temporary, &path).unwrap();
        path
    }

    /// A command with the environment of this site: static credentials for the fake KMS, no metadata service.
    pub fn process(&self, program: &str, arguments: &[&str]) -> Command {
        let named = std::env::var("KUBE_KMS_BINARY").ok().filter(|_| program == BINARY);
        let mut command = Command::new(named.as_deref().unwrap_or(program));
        command
            .args(arguments)
            .current_dir(self.dir())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
            .env("AWS_SECRET_ACCESS_KEY", "not-a-secret")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null());
        command
    }

    /// Runs one command of the binary to its end.
    pub fn command(&self, arguments: &[&str]) -> Output {
        self.process(program_of(arguments), arguments).output().unwrap()
    }

    /// Starts `serve`, without waiting for anything.
    pub fn spawn(&self) -> Running {
        self.spawn_with(&[])
    }

    /// Starts `serve` with more arguments, without waiting for anything.
    pub fn spawn_with(&self, arguments: &[&str]) -> Running {
        let config = self.write_config();
        let mut all = vec!["serve", "--config", config.to_str().unwrap()];
        all.extend(arguments);
        self.run(&mut self.process(BINARY, &all))
    }

    /// Starts this command as a process of this site.
    pub fn run(&self, command: &mut Command) -> Running {
        let number = std::fs::read_dir(self.dir()).unwrap().count();
        let log = self.dir().join(format!("log.{number}.{}", uuid::Uuid::new_v4().simple()));
        let out = self.dir().join(format!("out.{number}.{}", uuid::Uuid::new_v4().simple()));
        command.stderr(File::create(&log).unwrap()).stdout(File::create(&out).unwrap());
        let child = command.spawn().unwrap();
        Running { child, log, out, target: Target::File(self.socket()), _dir: Arc::clone(&self.dir) }
    }

    /// Starts `serve` and waits until Status answers `ok`.
    pub async fn start(&self) -> Running {
        let running = self.spawn();
        running.until_ok().await;
        running
    }
}

/// One process. Killed when it is dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
    out: PathBuf,
    /// Where clients connect; a test with another `listen` sets it.
    pub target: Target,
    /// Kept as long as the process.
    _dir: Arc<TempDir>,
}

impl Running {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr, in whole lines. A thread of its own writes what is logged, a moment later: wait for
    /// a line with [`Self::until_log`]; that one is not there says [`Self::settled_log`] only.
    pub fn log(&self) -> String {
        let mut text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }

    /// [`Self::log`] with everything in it that was logged before this call, for what must *not* be there. Lines are written in
    /// their order, so this causes one of its own (a Decrypt of nothing is refused, at `warn`) and waits for it. Takes a
    /// process that serves whoever runs the tests.
    pub async fn settled_log(&self) -> String {
        let (began, mark) = (Instant::now(), uid());
        let mut client = self.client().await;
        loop {
            client.decrypt(EncryptResponse::default(), mark.clone()).await.expect_err("there is nothing to decrypt");
            let asked = Instant::now();
            // Only a few lines about such requests are written in a second: then it takes another.
            while asked.elapsed() < Duration::from_millis(300) {
                let log = self.log();
                if log.contains(&mark) {
                    return log;
                }
                self.give_up_after(began, "the log says nothing of a refused request").await;
            }
        }
    }

    /// What it has written to stdout.
    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// A client with a connection of its own and this deadline for each call.
    pub async fn client_with(&self, timeout: Duration) -> KmsClient {
        let began = Instant::now();
        loop {
            match KmsClient::connect(self.target.clone(), timeout).await {
                Ok(client) => return client,
                Err(error) => self.give_up_after(began, &format!("connecting: {error:?}")).await,
            }
        }
    }

    /// A client with kube-apiserver's default deadline.
    pub async fn client(&self) -> KmsClient {
        self.client_with(Duration::from_secs(3)).await
    }

    /// Waits until Status is as wanted, and returns it.
    pub async fn until_status(
        &self,
        wanted: impl Fn(&Result<StatusResponse, Status>) -> bool,
    ) -> Result<StatusResponse, Status> {
        let began = Instant::now();
        let mut client = self.client().await;
        loop {
            let answer = client.status().await;
            if wanted(&answer) {
                return answer;
            }
            self.give_up_after(began, &format!("last Status: {answer:?}")).await;
        }
    }

    /// Waits until Status answers `ok`, and returns its key_id.
    pub async fn until_ok(&self) -> String {
        let answer = self.until_status(|a| a.as_ref().is_ok_and(|s| s.healthz == "ok")).await;
        answer.unwrap().key_id
    }

    /// Waits until the log has this text.
    pub async fn until_log(&self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            self.give_up_after(began, &format!("the log never said {text:?}")).await;
        }
    }

    /// Waits until the log has this text once more than in `log`.
    pub async fn until_log_again(&self, text: &str, log: &str) {
        let already = log.matches(text).count();
        self.until(&format!("once more in the log: {text:?}"), || self.log().matches(text).count() > already).await;
    }

    /// Waits until this holds.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            self.give_up_after(began, what).await;
        }
    }

    async fn give_up_after(&self, began: Instant, what: &str) {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}\n--- its log:\n{}", self.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    /// Where the health pages are.
    pub async fn http_address(&self) -> String {
        self.until_log("serving /metrics").await;
        let log = self.log();
        let line = log.lines().find(|l| l.contains("serving /metrics")).unwrap();
        let at = line.find("127.0.0.1:").unwrap();
        line[at..].chars().take_while(|c| c.is_ascii_digit() || *c == '.' || *c == ':').collect()
    }

    /// One page of the HTTP port: the status line's code, and the body.
    pub async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http_address().await).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The value of the first series whose line begins with this text, or 0.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, body) = self.http("/metrics").await;
        body.lines()
            .find(|line| line.starts_with(series))
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and the exit status.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait().await
    }

    /// SIGKILL, and gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            self.give_up_after(began, "it did not end").await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 32 bytes as kube-apiserver draws them.
pub fn seed() -> Vec<u8> {
    let (a, b) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    [a.as_bytes().as_slice(), b.as_bytes().as_slice()].concat()
}

/// A uid as kube-apiserver draws it.
pub fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Encrypts a fresh seed and returns it with the answer.
pub async fn sealed(client: &mut KmsClient) -> (Vec<u8>, EncryptResponse) {
    let seed = seed();
    let answer = client.encrypt(seed.clone(), uid()).await.unwrap();
    (seed, answer)
}

fn tempdir() -> TempDir {
    tempfile::Builder::new().prefix("kube-kms-").tempdir().unwrap()
}
