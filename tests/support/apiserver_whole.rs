//! A whole API server on a real etcd: k8s.io/apiextensions-apiserver (`tests/apiserver/extension`), over HTTPS.
//!
//! Guarantees: ports that the kernel chose, everything in the directory of the [`Site`], processes that end with their
//! handle. etcd is the one on the path, or Debian's, unpacked under the target directory and never installed. What is
//! missing is a reason to skip with. Refuses to know KMS.

use super::apiserver_go::{Sample, Storm, go_build};
use super::etcd_store::{free_port, tool};
use super::site::{PATIENCE, Site};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where the API server puts its objects in etcd.
pub const ETCD_PREFIX: &str = "/ext";

/// How often it looks at its EncryptionConfiguration, instead of once a minute.
const FILE_POLL: &str = "200ms";

const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: none, cluster: {server: 'https://127.0.0.1:1'}}]\n\
    users: [{name: none, user: {}}]\ncontexts: [{name: none, context: {cluster: none, user: none}}]\ncurrent-context: none\n";

/// etcd, and the client that speaks to it and to API servers. Blocking: only for tests with more than one thread.
pub struct Machine {
    binary: PathBuf,
    dir: PathBuf,
    etcd: Killed,
    etcd_url: String,
    _client: Killed,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

/// One API server. Several may share a [`Machine`], as those of one cluster share etcd.
pub struct WholeApiServer {
    machine: Arc<Machine>,
    config: PathBuf,
    log: PathBuf,
    api: Option<Killed>,
    url: String,
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// Builds what has to be built, and starts etcd.
    ///
    /// # Errors
    /// Why that cannot be done here.
    pub fn start(site: &Site) -> Result<Arc<Self>, String> {
        tokio::task::block_in_place(|| Self::start_blocking(site))
    }

    fn start_blocking(site: &Site) -> Result<Arc<Self>, String> {
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
        let pipes = Mutex::new((stdin, stdout));
        let machine = Self { binary, dir, etcd, etcd_url, _client: Killed(client), pipes };
        let health = format!("{}/health", machine.etcd_url);
        until("etcd is healthy", || machine.log(), || machine.send("GET", &health, None).0 == 200);
        Ok(Arc::new(machine))
    }

    /// The bytes that etcd has under this key.
    pub fn stored(&self, key: &str) -> Vec<u8> {
        let found = self.range(&json!({"key": BASE64_STANDARD.encode(key)}));
        found.into_iter().next().unwrap_or_else(|| panic!("etcd has no {key}")).1
    }

    /// Every key under this prefix, and the bytes that etcd has under it.
    pub fn all_stored(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        self.range(&json!({"key": BASE64_STANDARD.encode(prefix), "range_end": BASE64_STANDARD.encode(end)}))
    }

    fn range(&self, query: &Value) -> Vec<(String, Vec<u8>)> {
        let (status, body) = self.send("POST", &format!("{}/v3/kv/range", self.etcd_url), Some(query));
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let bytes = |kv: &Value, what: &str| BASE64_STANDARD.decode(kv[what].as_str().unwrap()).unwrap();
        let found = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
        found.iter().map(|kv| (String::from_utf8(bytes(kv, "key")).unwrap(), bytes(kv, "value"))).collect()
    }

    fn send(&self, method: &str, url: &str, body: Option<&Value>) -> (u64, String) {
        let request = json!({"method": method, "url": url, "body": body});
        let request = if body.is_some() { request } else { json!({"method": method, "url": url}) };
        let answer = self.ask(&request);
        let said = answer["error"].as_str().or(answer["body"].as_str()).unwrap();
        (answer["status"].as_u64().unwrap(), said.to_owned())
    }

    fn ask(&self, request: &Value) -> Value {
        tokio::task::block_in_place(|| {
            let mut pipes = self.pipes.lock().unwrap();
            writeln!(pipes.0, "{request}").unwrap();
            let mut line = String::new();
            pipes.1.read_line(&mut line).unwrap();
            serde_json::from_str(&line).unwrap()
        })
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("etcd.log")).unwrap_or_default();
        format!("--- etcd {}:\n{log}", self.etcd.0.id())
    }
}

impl WholeApiServer {
    /// Starts one with this EncryptionConfiguration, and waits until it lives. A plugin that is not there is no error.
    pub fn start(machine: &Arc<Machine>, config: &Path) -> Self {
        let log = config.with_extension("log");
        let (machine, config) = (Arc::clone(machine), config.to_path_buf());
        let mut server = Self { machine, config, log, api: None, url: String::new() };
        server.restart();
        server
    }

    /// Starts the process, or kills it and starts another.
    pub fn restart(&mut self) {
        drop(self.api.take());
        let port = free_port();
        let at = |name: &str| self.machine.dir.join(name).display().to_string();
        let kubeconfig = at("kubeconfig");
        let mut command = Command::new(&self.machine.binary);
        command.env("ENCRYPTION_CONFIG_POLL", FILE_POLL);
        command.args([
            "serve".to_owned(),
            format!("--etcd-servers={}", self.machine.etcd_url),
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
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&self.log).unwrap());
        self.api = Some(Killed(command.spawn().unwrap()));
        self.url = format!("https://127.0.0.1:{port}");
        self.until("the API server lives", |w| w.try_api("GET", "/livez", None).0 == 200);
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its etcd is.
    pub fn etcd_url(&self) -> &str {
        &self.machine.etcd_url
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        let at = |name: &str| self.machine.dir.join(name).display().to_string();
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{client-certificate: '{}', client-key: '{}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.url,
            at("ca.crt"),
            at("client.crt"),
            at("client.key"),
        );
        let path = self.machine.dir.join("admin.conf");
        fs::write(&path, text).unwrap();
        path
    }

    /// One request: status and body.
    pub fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> (u64, String) {
        self.machine.send(method, &format!("{}{path}", self.url), body)
    }

    /// One request that succeeds.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, body) = self.try_api(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {body}\n{}", self.log());
        serde_json::from_str(&body).unwrap()
    }

    /// The check `kms-providers`.
    ///
    /// # Errors
    /// What it says.
    pub fn readyz(&self) -> Result<(), String> {
        let (status, body) = self.try_api("GET", "/readyz/kms-providers", None);
        if status == 200 { Ok(()) } else { Err(body) }
    }

    /// Its metrics about the plugin.
    pub fn metrics(&self) -> Vec<Sample> {
        let (status, page) = self.try_api("GET", "/metrics", None);
        assert_eq!(status, 200, "{page}");
        page.lines().filter_map(sample).collect()
    }

    /// Writes and reads of such objects in this collection, without end, begin.
    pub fn storm(&self, path: &str, object: &Value) {
        let answer = self.machine.ask(&json!({"op": "storm", "url": format!("{}{path}", self.url), "body": object}));
        assert!(answer["error"].is_null(), "{answer}");
    }

    /// And end.
    pub fn calm(&self, path: &str) -> Storm {
        let answer = self.machine.ask(&json!({"op": "calm", "url": format!("{}{path}", self.url)}));
        Storm::parse(&answer["storm"])
    }

    /// Waits until this holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        until(what, || self.log(), || holds(self));
    }

    /// What it and etcd have logged.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        format!("--- API server:\n{log}\n{}", self.machine.log())
    }
}

fn until(what: &str, log: impl Fn() -> String, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE * 2, "waited in vain: {what}\n{}", log());
        tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(50)));
    }
}

/// One line of the Prometheus text format, when it is about the plugin. Of a histogram only how many it counted.
fn sample(line: &str) -> Option<Sample> {
    let wanted = ["apiserver_envelope_encryption_", "apiserver_encryption_config_"];
    let (series, value) = line.rsplit_once(' ').filter(|_| wanted.iter().any(|w| line.starts_with(w)))?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    if name.ends_with("_bucket") || name.ends_with("_sum") {
        return None;
    }
    let labels = labels.trim_end_matches('}').split("\",").filter_map(|pair| {
        let (label, value) = pair.split_once("=\"")?;
        Some((label.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    let name = name.strip_suffix("_count").unwrap_or(name).to_owned();
    Some(Sample { name, labels: labels.collect(), value: value.parse().unwrap() })
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
