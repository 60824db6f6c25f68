//! What the fuzzers run: one function for each decoder and one for the front door, from bytes to nothing.
//!
//! Guarantees: each asserts a law, so that a wrong answer fails and not only a panic. Included by the fuzz targets of cargo-fuzz and by
//! tests/fuzz_smoke.rs, which runs them on a stable compiler. Refuses to know where the bytes come from.

use kms_v2_api::stored as value;
use kms_v2_api::v2::{DecryptRequest, EncryptRequest, EncryptResponse};
use kube_kms::process::keks;
use kube_kms_core::annotation::Annotations;
use kube_kms_core::envelope::Envelope;
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::limit;
use kube_kms_etcd::snapshot::{Snapshot, Unhashed};
use kube_kms_etcd::value::Value;
use kube_kms_grpc::server::KmsServer;
use kube_kms_kek_local::operation;
use kube_kms_os::{MonotonicClock, OsEntropy};
use kube_kms_service::observer::Observer;
use kube_kms_service::plugin::{Parts, Plugin};
use kube_kms_service::state_file::{Remembered, StateFile};
use kube_kms_service::supervisor::Supervisor;
use kube_kms_telemetry::metrics::Metrics;
use kube_kms_transport::peer::{AllowedUids, PeerStream};
use prost::Message;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// A target: what it is called, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("annotation", annotation),
    ("config", config),
    ("envelope", envelope),
    ("front_door", front_door),
    ("key_id", key_id),
    ("keyring", keyring),
    ("message", message),
    ("snapshot", snapshot),
    ("state_file", state_file),
    ("stored", stored),
];

/// What is taken can be read back as it was given, within the limits.
pub fn annotation(data: &[u8]) {
    let Ok(request) = DecryptRequest::decode(data) else { return };
    let given: std::collections::BTreeMap<_, _> = request.annotations.into_iter().collect();
    if let Ok(annotations) = Annotations::parse(given.clone()) {
        assert_eq!(annotations.all(), &given);
        assert!((1..=limit::WRAPPED_DEK_MAX).contains(&annotations.wrapped_dek().len()));
        assert!(annotations.recovery().len() <= 3);
        assert_eq!(KekRef::parse(annotations.kek().to_string().as_bytes()).ok().as_ref(), Some(annotations.kek()));
    }
}

/// The parts are the whole.
pub fn envelope(data: &[u8]) {
    match Envelope::parse(data) {
        Ok(Envelope { nonce, body, tag }) => {
            assert_eq!([&[1], &nonce[..], body, tag].concat(), data);
            assert!(data.len() <= limit::CIPHERTEXT_MAX && !body.is_empty());
        }
        Err(_) => assert!(data.len() < 30 || data.len() > limit::CIPHERTEXT_MAX || data[0] != 1),
    }
}

/// Taken as it is or not at all.
pub fn key_id(data: &[u8]) {
    let Ok(text) = String::from_utf8(data.to_vec()) else { return };
    if let Ok(key_id) = KeyId::parse(text.clone()) {
        assert_eq!(key_id.as_str(), text);
        assert!((1..=1024).contains(&text.len()));
    }
}

/// A refusal has a problem with words, and the same file is judged the same again.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match kube_kms_config::parse(text) {
        Ok(config) => assert_eq!(kube_kms_config::parse(text).unwrap(), config),
        Err(error) => assert!(error.problems().iter().all(|p| !p.what.is_empty()) && !error.problems().is_empty()),
    }
}

/// What a decoder takes, it takes again from what it has encoded.
pub fn message(data: &[u8]) {
    fn round<M: Message + Default + PartialEq>(data: &[u8]) {
        if let Ok(message) = M::decode(data) {
            assert!(M::decode(&*message.encode_to_vec()).is_ok_and(|again| again == message));
        }
    }
    round::<EncryptRequest>(data);
    round::<DecryptRequest>(data);
    round::<EncryptResponse>(data);
}

/// Both readers of a stored value agree, and none reads beyond it.
pub fn stored(data: &[u8]) {
    let strict = value::decode(data);
    if let Ok((provider, object)) = &strict {
        let again = value::encode(provider, object);
        assert_eq!(value::decode(&again).as_ref(), Ok(&(*provider, object.clone())));
    }
    match Value::parse(data) {
        Value::KmsV2(_) => assert!(strict.is_ok(), "the scanner takes what kube-apiserver's decoder refuses"),
        Value::Damaged(_) => assert!(data.starts_with(value::PREFIX)),
        Value::Other(_) => assert!(!data.starts_with(value::PREFIX)),
    }
}

/// One file of this process, with this content.
fn file(name: &str, data: &[u8]) -> PathBuf {
    static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    let path = DIR.path().join(name);
    std::fs::write(&path, data).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// What is remembered is what is saved and read again.
pub fn state_file(data: &[u8]) {
    let path = file("state.json", data);
    let state = StateFile::new(path.parent().unwrap());
    if let Ok(remembered) = state.peek() {
        state.save(&remembered).unwrap();
        assert_eq!(format!("{:?}", state.peek().unwrap()), format!("{remembered:?}"));
    }
}

/// A keyring that is taken has a current version that is not retired; one that is refused says why.
pub fn keyring(data: &[u8]) {
    match operation::list(&file("keyring.json", data), 0) {
        Ok(listing) => assert!(!format!("{listing:?}").is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// No key is given twice, whatever the pages say.
pub fn snapshot(data: &[u8]) {
    let Ok(snapshot) = Snapshot::open(&file("snapshot.db", data), Unhashed::Accept, |_| {}) else { return };
    let mut seen = std::collections::HashSet::new();
    let _ = snapshot.records(
        b"",
        |record| {
            assert!(seen.insert(record.key.to_vec()), "a key twice");
            assert!(record.create_revision <= record.mod_revision || record.mod_revision < 0);
            ControlFlow::Continue(())
        },
        |_| {},
    );
}

/// A server in this process.
struct Server {
    runtime: Mutex<Runtime>,
    connections: mpsc::UnboundedSender<std::io::Result<PeerStream>>,
    _dir: TempDir,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyring.json");
    operation::init(&path, std::time::SystemTime::now(), &OsEntropy).unwrap();
    let text = format!("kek: {{local: {{keyring: {}}}}}\nstateDir: {}\n", path.display(), dir.path().display());
    let config = kube_kms_config::parse(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (connections, incoming) = mpsc::unbounded_channel();
    runtime.block_on(async {
        let entropy: Arc<dyn kube_kms_core::port::Entropy> = Arc::new(OsEntropy);
        let clock: Arc<dyn kube_kms_core::port::Clock> = Arc::new(MonotonicClock::new());
        let observer: Arc<dyn Observer> = Arc::new(Metrics::new());
        let parts = Parts {
            keks: keks::connect(&config, &entropy, None).await.unwrap(),
            settings: config.settings.clone(),
            clock: Arc::clone(&clock),
            entropy,
            observer: Arc::clone(&observer),
        };
        let plugin = Arc::new(Plugin::new(parts, None));
        let (reloads, queue) = mpsc::channel(1);
        let supervisor = Supervisor::new(Arc::clone(&plugin), StateFile::new(&config.state_dir), Remembered::default());
        tokio::spawn(async move {
            let _open = reloads;
            supervisor.run(queue).await;
        });
        let server = KmsServer::new(Arc::clone(&plugin), observer, clock);
        let incoming = tokio_stream::wrappers::UnboundedReceiverStream::new(incoming);
        tokio::spawn(server.serve(incoming, std::future::pending()));
        while plugin.published().write.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    Server { runtime: Mutex::new(runtime), connections, _dir: dir }
});

/// Whatever bytes a client sends, its connection ends when it does, and the next one is served.
///
/// An odd first byte: the rest is sent as it is. An even one: it comes after a good preface.
pub fn front_door(data: &[u8]) {
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let Some((first, rest)) = data.split_first() else { return };
    let server = &*SERVER;
    let runtime = server.runtime.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    runtime.block_on(async {
        let connect = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let identified = PeerStream::identify(theirs, &AllowedUids::default());
            assert!(server.connections.send(identified).is_ok(), "the server is gone");
            ours
        };
        let mut hostile = connect();
        if first % 2 == 0 {
            hostile.write_all(HELLO).await.unwrap();
        }
        let _ = hostile.write_all(rest).await;
        let _ = hostile.shutdown().await;
        let mut answer = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), hostile.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "the connection outlives its client");

        let mut good = connect();
        good.write_all(HELLO).await.unwrap();
        let mut settings = [0; 9];
        let hello = tokio::time::timeout(Duration::from_secs(5), good.read_exact(&mut settings)).await;
        assert!(hello.is_ok_and(|read| read.is_ok()) && settings[3] == 4, "the next client gets no SETTINGS");
    });
}
