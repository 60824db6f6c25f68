//! A whole API server on a real etcd: k8s.io/apiextensions-apiserver (`tests/apiserver/extension`), over HTTPS.
//!
//! Guarantees: ports that the kernel chose, everything in the directory of the [`Site`], processes that end with their
//! handle. etcd is the one on the path, or Debian's, unpacked under the target directory and never installed. What is
//! missing is a reason to skip with. Refuses to know KMS.

use super::apiserver_go::go_build;
use super::etcd_store::{free_port, tool};
use super::site::{PATIENCE, Site};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where the API server puts its objects in etcd.
pub const ETCD_PREFIX: &str = "/ext";

const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: none, cluster: {server: 'https://127.0.0.1:1'}}]\n\
    users: [{name: none, user: {}}]\ncontexts: [{name: none, context: {cluster: none, user: none}}]\ncurrent-context: none\n";

/// etcd, the API server, and the client that speaks to both. Blocking: only for tests with more than one thread.
pub struct WholeApiServer {
    binary: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    etcd: Killed,
    etcd_url: String,
    api: Option<Killed>,
    api_url: String,
    _client: Killed,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl WholeApiServer {
    /// Builds what has to be built, and starts everything with this EncryptionConfiguration.
    ///
    /// # Errors
    /// Why that cannot be done here.
    pub fn start(site: &Site, config: &Path) -> Result<Self, String> {
        let etcd = tool("etcd", "etcd-server")?;
        let binary = go_build("extension", None, "extension")?;
        let dir = site.dir().join("whole");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("kubeconfig"), KUBECONFIG).unwrap();
        let mut client = Command::new(&binary);
        let mut client = client.arg("client").arg(&dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, mut stdout) = (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()));
        stdout.read_line(&mut String::new()).unwrap();
        let (etcd, etcd_url) = start_etcd(&etcd, &dir);
        let mut whole = Self {
            binary,
            dir,
            config: config.to_path_buf(),
            etcd,
            etcd_url,
            api: None,
            api_url: String::new(),
            _client: Killed(client),
            pipes: Mutex::new((stdin, stdout)),
        };
        whole.until("etcd is healthy", |w| w.try_send("GET", &format!("{}/health", w.etcd_url), None).0 == 200);
        whole.restart();
        Ok(whole)
    }

    /// Starts the API server, or kills it and starts another.
    pub fn restart(&mut self) {
        drop(self.api.take());
        let port = free_port();
        let at = |name: &str| self.dir.join(name).display().to_string();
        let kubeconfig = at("kubeconfig");
        let mut command = Command::new(&self.binary);
        command.args([
            "serve".to_owned(),
            format!("--etcd-servers={}", self.etcd_url),
            format!("--etcd-prefix={ETCD_PREFIX}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            "--authentication-skip-lookup".to_owned(),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--kubeconfig={kubeconfig}"),
            "--enable-priority-and-fairness=false".to_owned(),
            "--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,\
             ValidatingAdmissionPolicy,MutatingAdmissionPolicy"
                .to_owned(),
            format!("--encryption-provider-config={}", self.config.display()),
            "--encryption-provider-config-automatic-reload=true".to_owned(),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.dir.join("api.log")).unwrap());
        self.api = Some(Killed(command.spawn().unwrap()));
        self.api_url = format!("https://127.0.0.1:{port}");
        self.until("the API server is healthy", |w| w.try_api("GET", "/healthz", None).0 == 200);
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.api_url
    }

    /// Where its etcd is.
    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{client-certificate: '{}', client-key: '{}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.api_url,
            at("ca.crt"),
            at("client.crt"),
            at("client.key"),
        );
        let path = self.dir.join("admin.conf");
        fs::write(&path, text).unwrap();
        path
    }

    /// One request to the API server: status and body.
    pub fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> (u64, String) {
        self.try_send(method, &format!("{}{path}", self.api_url), body)
    }

    /// One request to the API server that succeeds.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, body) = self.try_api(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {body}\n{}", self.log());
        serde_json::from_str(&body).unwrap()
    }

    /// The bytes that etcd has under this key.
    pub fn stored(&self, key: &str) -> Vec<u8> {
        let query = json!({"key": BASE64_STANDARD.encode(key)});
        let (status, body) = self.try_send("POST", &format!("{}/v3/kv/range", self.etcd_url), Some(&query));
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let value = answer["kvs"][0]["value"].as_str().unwrap_or_else(|| panic!("etcd has no {key}: {answer}"));
        BASE64_STANDARD.decode(value).unwrap()
    }

    /// Waits until this holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < PATIENCE * 2, "waited in vain: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn try_send(&self, method: &str, url: &str, body: Option<&Value>) -> (u64, String) {
        let mut pipes = self.pipes.lock().unwrap();
        let request = json!({"method": method, "url": url, "body": body});
        let request = if body.is_some() { request } else { json!({"method": method, "url": url}) };
        writeln!(pipes.0, "{request}").unwrap();
        let mut line = String::new();
        pipes.1.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        let said = answer["error"].as_str().or(answer["body"].as_str()).unwrap();
        (answer["status"].as_u64().unwrap(), said.to_owned())
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        format!("--- API server:\n{}\n--- etcd {}:\n{}", read("api.log"), self.etcd.0.id(), read("etcd.log"))
    }
}

fn start_etcd(binary: &Path, dir: &Path) -> (Killed, String) {
    let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = Command::new(binary);
    command.arg("--data-dir").arg(dir.join("etcd")).args(["--listen-client-urls", &client]);
    command.args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
    command.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
    let log = File::create(dir.join("etcd.log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    (Killed(command.spawn().unwrap()), client)
}
