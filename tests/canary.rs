//! The real binary at trace level, driven through everything, with secrets that can be recognised: none of them comes out.
//!
//! Guarantees: looked for are the seed, the data keys of every write state met, the local KEK's material or AWS's secret
//! access key and session token, and a value in the wrong place of a configuration; looked through are stdout and stderr
//! of every process, the HTTP pages, what an OTLP collector gets, gRPC messages, annotations, the state directory. [`Canary`] says in which spellings.

use crate::kek_conformance::aws::instance;
use crate::support::canary::{self, Canary};
use crate::support::collector::Collector;
use crate::support::fake_kms::{ANY, Failure};
use crate::support::site::{ALIAS, Running, Site, uid};
use base64::Engine as _;
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use kube_kms_core::annotation::Annotations;
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::port::{Kek, KekCall};
use kube_kms_kek_local::LocalKek;
use kube_kms_os::OsEntropy;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SEED: &[u8; 32] = b"CANARY-seed-of-the-API-server-01";
const MATERIAL: &[u8; 32] = b"CANARY-kek-material-in-the-file!";
const SECRET_KEY: &str = "CANARYsecret/accesskey+0123456789abcdef01";
const SESSION_TOKEN: &str = "CANARYsession/token+fedcba9876543210abcdefghijklmnop";
const MISPLACED: &str = "CANARY-pin-in-the-wrong-place";
const KEYRING_ID: &str = "6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11";
const VERSION: &str = "2f2b5a1e-3f7f-4c57-8a38-4f0f7a8d1c22";

/// A site under way, and everything that it has let out.
struct Drive {
    site: Site,
    kek: Arc<dyn Kek>,
    canaries: Vec<Canary>,
    out: Vec<(String, Vec<u8>)>,
    collector: Collector,
}

impl Drive {
    fn new(site: Site, collector: Collector, kek: Arc<dyn Kek>, secrets: &[(&str, &[u8])]) -> Self {
        let mut canaries = vec![Canary::new("the seed", SEED), Canary::new("a misplaced secret", MISPLACED.as_bytes())];
        canaries.extend(secrets.iter().map(|(name, secret)| Canary::new(name, secret)));
        Self { site, kek, canaries, out: Vec::new(), collector }
    }

    fn keep(&mut self, place: &str, text: impl Into<Vec<u8>>) {
        self.out.push((place.to_owned(), text.into()));
    }

    /// A command, as an operator runs it.
    fn command(&mut self, arguments: &[&str]) {
        let output = self.site.command(arguments);
        self.keep(&format!("stdout of {arguments:?}"), output.stdout);
        self.keep(&format!("stderr of {arguments:?}"), output.stderr);
    }

    /// Seals the seed; the data key that did it is a canary from now on.
    async fn encrypt(&mut self, client: &mut KmsClient) -> EncryptResponse {
        let sealed = client.encrypt(SEED.to_vec(), uid()).await.unwrap();
        self.keep("EncryptResponse", format!("{sealed:?}"));
        self.keep("EncryptResponse.ciphertext", sealed.ciphertext.clone());
        for (name, value) in &sealed.annotations {
            self.keep(name, value.clone());
        }
        let annotations = Annotations::parse(sealed.annotations.clone()).unwrap();
        let (context, call) =
            (WrapContext::new(BTreeMap::new()), KekCall { timeout: Duration::from_secs(10), uid: None });
        let blob = WrappedDek::parse(annotations.wrapped_dek().to_vec()).unwrap();
        let dek = self.kek.unwrap_dek(annotations.kek(), &blob, &context, &call).await.unwrap().dek;
        self.canaries.push(Canary::new("a data key", dek.expose_bytes()));
        sealed
    }

    /// Decrypt, whatever comes of it; what it says is kept, but for the plaintext of a success.
    async fn decrypt(&mut self, client: &mut KmsClient, sealed: EncryptResponse) -> Result<Vec<u8>, tonic::Code> {
        match client.decrypt(sealed, uid()).await {
            Ok(answer) => {
                self.keep("DecryptResponse, printed", format!("{answer:?}"));
                Ok(answer.plaintext.clone())
            }
            Err(status) => {
                self.keep("a status", format!("{status:?} {status}"));
                Err(status.code())
            }
        }
    }

    /// Every RPC, good and bad.
    async fn every_rpc(&mut self, running: &Running) {
        let mut client = running.client().await;
        let status = client.status().await;
        self.keep("StatusResponse", format!("{status:?}"));
        let good = self.encrypt(&mut client).await;
        assert_eq!(self.decrypt(&mut client, good.clone()).await.unwrap(), SEED);
        for plaintext in [Vec::new(), SEED.repeat(40)] {
            let refused = client.encrypt(plaintext, uid()).await.unwrap_err();
            self.keep("a status", format!("{refused:?}"));
        }
        let mut bad = vec![EncryptResponse { ciphertext: Vec::new(), ..good.clone() }];
        for at in [0, 5, 20, 60] {
            let mut flipped = good.clone();
            flipped.ciphertext[at] ^= 1;
            bad.push(flipped);
        }
        bad.push(EncryptResponse { key_id: "other".to_owned(), ..good.clone() });
        bad.push(EncryptResponse { key_id: String::new(), ..good.clone() });
        bad.push(EncryptResponse { annotations: BTreeMap::new(), ..good.clone() });
        for name in ["dek.kube-kms", "kek.kube-kms"] {
            let mut changed = good.clone();
            let value = changed.annotations.get_mut(name).unwrap();
            *value.last_mut().unwrap() ^= 1;
            bad.push(changed);
        }
        // The secrets themselves, where they do not belong.
        bad.push(EncryptResponse { ciphertext: SEED.to_vec(), ..good.clone() });
        let mut inside = good.clone();
        inside.annotations.insert("dek.kube-kms".to_owned(), SEED.to_vec());
        bad.push(inside);
        for sealed in bad {
            self.decrypt(&mut client, sealed).await.unwrap_err();
        }
        self.not_even_grpc(running);
        assert_eq!(self.decrypt(&mut client, good).await.unwrap(), SEED, "the plugin is not well any more");
    }

    /// Bytes that are no HTTP/2, and HTTP/2 that is no gRPC, with the seed in them.
    fn not_even_grpc(&mut self, _: &Running) {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for message in [SEED.repeat(20), [preface, SEED.repeat(20)].concat()] {
            let mut stream = UnixStream::connect(self.site.socket()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let _ = stream.write_all(&message);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            self.keep("an answer to noise", answer);
        }
    }

    async fn pages(&mut self, running: &Running) {
        for path in ["/metrics", "/livez", "/readyz", "/readyz?verbose", "/debug", "/"] {
            let (code, body) = running.http(path).await;
            self.keep(&format!("{path} ({code})"), body);
        }
    }

    /// A good reload, and a bad one with a secret where none belongs.
    async fn reloads(&mut self, running: &Running) {
        self.site.set("probe: {interval: 1s, timeout: 500ms}");
        self.site.write_config();
        running.until_log("the new configuration is in force").await;
        let good = std::fs::read_to_string(self.site.write_config()).unwrap();
        let before = running.log().matches("the old configuration stays").count();
        self.site.write_raw_config(&format!("{good}pin: {MISPLACED}\noutage: {{grace: {MISPLACED}}}\n"));
        self.command(&["check", "--config", "config.yaml"]);
        running.signal(rustix::process::Signal::HUP);
        let stays = || running.log().matches("the old configuration stays").count() > before;
        running.until("the bad reload", stays).await;
        self.site.write_raw_config(&good);
    }

    fn commands(&mut self) {
        let socket = self.site.socket().to_str().unwrap().to_owned();
        for output in ["text", "json"] {
            self.command(&["check", "--config", "config.yaml", "--output", output]);
            self.command(&["probe", "--socket", &socket, "--output", output]);
        }
        self.command(&["serve", "--config", "config.yaml"]);
        self.command(&["probe", "--socket", "/nowhere/x.sock"]);
        self.command(&["--help"]);
    }

    /// Everything on disk but the keyring itself and the configuration.
    fn files(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                self.files(&path);
            } else if !["keyring.json", "config.yaml", "kms.sock"].contains(&name.as_str()) {
                self.keep(&name, std::fs::read(&path).unwrap());
            }
        }
    }

    /// Ends the process and looks.
    async fn verdict(mut self, running: Running, key_id: &str) {
        let log = running.settled_log().await;
        // Our own code has nothing to say below debug here; dependencies would, and may not.
        assert!(log.contains(" DEBUG "), "the log is not at level trace");
        assert!(log.contains(key_id) && log.len() > 5_000, "this log is not the one: {} bytes", log.len());
        assert!(running.stop().await.success());
        assert!(self.collector.spans().len() > 20 && !self.collector.metrics().is_empty(), "nothing was exported");
        let exported = self.collector.bytes();
        self.keep("what a collector gets", exported);
        let dir = self.site.dir().to_owned();
        self.files(&dir);
        let places: Vec<&str> = self.out.iter().map(|(place, _)| place.as_str()).collect();
        for expected in ["state.json", "/metrics (200)", "/readyz (200)", "a status", "dek.kube-kms"] {
            assert!(places.contains(&expected), "nothing was kept of {expected}");
        }
        assert!(places.iter().any(|p| p.starts_with("log.")) && places.iter().any(|p| p.starts_with("out.")));
        for (place, text) in &self.out {
            canary::assert_none(&self.canaries, place, text);
        }
    }
}

/// A collector, which the site exports to.
fn exporting(site: &mut Site) -> Collector {
    let collector = Collector::start();
    site.set(&format!("otlp: {{endpoint: '{}'}}", collector.url()));
    collector
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_comes_out_on_the_local_kek() {
    let mut site = Site::local();
    let keyring = site.keyring().to_owned();
    let mut file = String::new();
    let material = base64::engine::general_purpose::STANDARD.encode(MATERIAL);
    writeln!(file, r#"{{"format":"kube-kms-keyring","version":1,"id":"{KEYRING_ID}","current":"{VERSION}","keys":["#)
        .unwrap();
    writeln!(
        file,
        r#"{{"id":"{VERSION}","created":"2026-01-02T03:04:05Z","state":"enabled","material":"{material}"}}"#
    )
    .unwrap();
    writeln!(file, "]}}").unwrap();
    std::fs::write(&keyring, &file).unwrap();
    let collector = exporting(&mut site);
    site.set("log: {level: trace}");
    let running = site.start().await;
    let kek = Arc::new(LocalKek::new(keyring.clone(), Arc::new(OsEntropy)));
    let mut drive = Drive::new(site, collector, kek, &[("the KEK's material", MATERIAL)]);
    drive.every_rpc(&running).await;
    drive.pages(&running).await;
    drive.commands();
    let path = keyring.to_str().unwrap();
    for output in ["text", "json"] {
        drive.command(&["keyring", "list", "--file", path, "--output", output]);
        drive.command(&["keyring", "init", "--file", path, "--output", output]);
        drive.command(&["keyring", "promote", "--file", path, "--output", output, VERSION]);
        drive.command(&["keyring", "retire", "--file", path, "--output", output, VERSION]);
        drive.command(&["keyring", "add", "--file", path, "--output", output]);
    }
    drive.reloads(&running).await;
    // Damaged in every way that quotes what it has read.
    for damaged in [
        file.replace("\"enabled\"", "\"lost\""),
        file.replace("\"created\"", "\"creation\""),
        file.replace(&material, &format!("{material}{material}")),
        file.replace(&format!("\"{material}\""), &material),
        file[..file.len() - 20].to_owned(),
        String::from_utf8_lossy(MATERIAL).into_owned(),
    ] {
        std::fs::write(&keyring, damaged).unwrap();
        drive.command(&["keyring", "list", "--file", path]);
        drive.command(&["keyring", "add", "--file", path]);
        drive.command(&["check", "--config", "config.yaml"]);
        let mut client = running.client().await;
        let sealed = client.encrypt(SEED.to_vec(), uid()).await.unwrap();
        let mut unknown = sealed;
        unknown.annotations.get_mut("dek.kube-kms").unwrap()[40] ^= 1;
        drive.decrypt(&mut client, unknown).await.unwrap_err();
    }
    std::fs::write(&keyring, &file).unwrap();
    drive.every_rpc(&running).await;
    drive.pages(&running).await;
    let key_id = running.until_ok().await;
    drive.verdict(running, &key_id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_comes_out_on_the_aws_kek() {
    let mut site = Site::aws();
    site.env("AWS_SECRET_ACCESS_KEY", SECRET_KEY).env("AWS_SESSION_TOKEN", SESSION_TOKEN).set("log: {level: trace}");
    // An operator who wants to know everything.
    site.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    let collector = exporting(&mut site);
    let kms = site.kms().clone();
    let running = site.start().await;
    let kek = instance(&kms.url(), kms.region(), &kms.key_arn(ALIAS));
    let secrets = [("the secret access key", SECRET_KEY.as_bytes()), ("the session token", SESSION_TOKEN.as_bytes())];
    let mut drive = Drive::new(site, collector, kek, &secrets);
    drive.every_rpc(&running).await;
    drive.pages(&running).await;
    drive.commands();
    drive.reloads(&running).await;
    // A wrapped DEK that the plugin has to ask for, and every way in which that fails.
    let mut client = running.client_with(Duration::from_secs(10)).await;
    let sealed = drive.encrypt(&mut client).await;
    let mut salt = 0_u8;
    for failure in [
        Failure::Internal,
        Failure::Throttled,
        Failure::AccessDenied,
        Failure::ExpiredToken,
        Failure::UnrecognizedClient,
        Failure::Reset,
        Failure::ResetMidBody,
    ] {
        kms.fail_next(ANY, 1, failure);
        let mut unknown = sealed.clone();
        salt += 1;
        unknown.annotations.get_mut("dek.kube-kms").unwrap()[40] ^= salt;
        drive.decrypt(&mut client, unknown).await.unwrap_err();
        drive.command(&["check", "--config", "config.yaml"]);
        kms.heal(ANY);
    }
    // And one whose answer carries the DEK itself, and breaks in the middle: another instance's.
    let other = drive.site.replica();
    let foreign = other.start().await;
    let mut foreign_client = foreign.client().await;
    let sealed = drive.encrypt(&mut foreign_client).await;
    foreign.kill();
    kms.fail_next("Decrypt", 1, Failure::ResetMidBody);
    assert_eq!(drive.decrypt(&mut client, sealed).await.unwrap(), SEED);
    kms.rotate(ALIAS);
    kms.disable(ALIAS);
    drive.commands();
    running.until_status(Result::is_err).await.unwrap_err();
    kms.enable(ALIAS);
    running.until_ok().await;
    drive.every_rpc(&running).await;
    drive.pages(&running).await;
    let key_id = running.until_ok().await;
    drive.verdict(running, &key_id).await;
}
