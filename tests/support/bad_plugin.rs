//! KMS v2 plugins with exactly one vice each, served by tonic on a real socket, and what the simulator must say of it.
//!
//! They wrap nothing: a ciphertext is the seed with every bit flipped, so that any start of any of them can decrypt what
//! any other encrypted, and only the vice is wrong. [`Vice::None`] has none: what proves that a finding is the vice's.

//!
//! [`faulty`] has plugins that are sound throughout but for one fault, for the conformance list, item by item.

mod connection;
pub mod fault;
pub mod faulty;
mod sound;

use super::site::PATIENCE;
use futures_util::stream;
use kms_v2_api::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use kms_v2_client::kms::Target;
use kms_v2_judge::apiserver::FindingCode;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vice {
    /// Nothing.
    None,
    /// Every Status names the other of two key_ids.
    FlipFlop,
    /// The key_id is rotated and, later, the old one is reinstated.
    KeyIdComesBack,
    /// Status announces a key_id, and Encrypt goes on with the old one.
    StatusAheadOfEncrypt,
    /// Status announces a key_id, and Encrypt fails.
    EncryptFailsForNewKeyId,
    /// Status has no key_id once the KMS is away.
    EmptyKeyId,
    /// The key_id is a whole policy document.
    KeyIdTooLong,
    /// The key_id is drawn anew by every start.
    KeyIdOfTheStart,
    /// The version is one that kube-apiserver never took.
    VersionAlpha,
    /// The version is one, then the other.
    VersionFlip,
    /// Healthy, in capitals.
    HealthzInCapitals,
    /// Encrypt returns nothing.
    CiphertextEmpty,
    /// Encrypt returns more than is taken.
    CiphertextTooLong,
    /// An annotation is named as upstream's documentation shows it.
    SlashInAnnotation,
    /// The annotations hold a certificate chain.
    AnnotationsTooLarge,
    /// Decrypt returns 32 bytes, and not those.
    WrongBytes,
    /// Decrypt returns half of them.
    ShortBytes,
    /// Decrypt knows nothing that Encrypt returned.
    Forgetful,
    /// It takes connections and never answers.
    Silent,
}

impl Vice {
    /// All that have a finding.
    pub const ALL: [Self; 18] = [
        Self::FlipFlop,
        Self::KeyIdComesBack,
        Self::StatusAheadOfEncrypt,
        Self::EncryptFailsForNewKeyId,
        Self::EmptyKeyId,
        Self::KeyIdTooLong,
        Self::KeyIdOfTheStart,
        Self::VersionAlpha,
        Self::VersionFlip,
        Self::HealthzInCapitals,
        Self::CiphertextEmpty,
        Self::CiphertextTooLong,
        Self::SlashInAnnotation,
        Self::AnnotationsTooLarge,
        Self::WrongBytes,
        Self::ShortBytes,
        Self::Forgetful,
        Self::Silent,
    ];

    /// What must be found, and nothing else.
    pub fn finding(self) -> Option<FindingCode> {
        Some(match self {
            Self::None => return None,
            Self::FlipFlop => FindingCode::KeyIdFlipFlop,
            Self::KeyIdComesBack => FindingCode::KeyIdCameBack,
            Self::StatusAheadOfEncrypt => FindingCode::EncryptKeyIdMismatch,
            Self::EncryptFailsForNewKeyId => FindingCode::EncryptFailedAfterNewKeyId,
            Self::EmptyKeyId => FindingCode::KeyIdEmpty,
            Self::KeyIdTooLong => FindingCode::KeyIdTooLong,
            Self::KeyIdOfTheStart => FindingCode::KeyIdUnstableOverRestart,
            Self::VersionAlpha => FindingCode::VersionNotAccepted,
            Self::VersionFlip => FindingCode::VersionChanged,
            Self::HealthzInCapitals => FindingCode::HealthzNotOk,
            Self::CiphertextEmpty => FindingCode::CiphertextEmpty,
            Self::CiphertextTooLong => FindingCode::CiphertextTooLong,
            Self::SlashInAnnotation => FindingCode::AnnotationName,
            Self::AnnotationsTooLarge => FindingCode::AnnotationsTooLarge,
            Self::WrongBytes => FindingCode::DecryptWrongBytes,
            Self::ShortBytes => FindingCode::DecryptWrongLength,
            Self::Forgetful => FindingCode::DecryptOfOwnValueFailed,
            Self::Silent => FindingCode::StatusSlow,
        })
    }
}

/// A plugin with a vice.
#[derive(Debug)]
pub struct BadPlugin {
    vice: Vice,
    start: String,
    statuses: AtomicU32,
}

impl BadPlugin {
    /// One that has just started.
    pub fn new(vice: Vice) -> Self {
        Self { vice, start: uuid::Uuid::new_v4().to_string(), statuses: AtomicU32::new(0) }
    }

    /// The key_id in Status number `n`, and in the Encrypts that follow it.
    fn key_ids(&self, n: u32) -> (String, String) {
        let both = |id: &str| (id.to_owned(), id.to_owned());
        match self.vice {
            Vice::FlipFlop => both(if n.is_multiple_of(2) { "key-b" } else { "key-a" }),
            Vice::KeyIdComesBack => both(if n == 3 || n == 4 { "key-b" } else { "key-a" }),
            Vice::StatusAheadOfEncrypt if n > 2 => ("key-b".to_owned(), "key-a".to_owned()),
            Vice::EncryptFailsForNewKeyId if n > 2 => both("key-b"),
            Vice::EmptyKeyId if n > 2 => both(""),
            Vice::KeyIdTooLong => both(&"k".repeat(1025)),
            Vice::KeyIdOfTheStart => both(&self.start),
            _ => both("key-a"),
        }
    }
}

#[tonic::async_trait]
impl KeyManagementService for BadPlugin {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let n = self.statuses.fetch_add(1, Ordering::SeqCst) + 1;
        if self.vice == Vice::Silent {
            std::future::pending::<()>().await;
        }
        let version = match self.vice {
            Vice::VersionAlpha => "v2alpha1",
            Vice::VersionFlip if n.is_multiple_of(2) => "v2beta1",
            _ => "v2",
        };
        let healthz = if self.vice == Vice::HealthzInCapitals { "OK" } else { "ok" };
        let (key_id, _) = self.key_ids(n);
        Ok(Response::new(StatusResponse { version: version.to_owned(), healthz: healthz.to_owned(), key_id }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let n = self.statuses.load(Ordering::SeqCst);
        if self.vice == Vice::Silent {
            std::future::pending::<()>().await;
        }
        if self.vice == Vice::EncryptFailsForNewKeyId && n > 2 {
            return Err(Status::unavailable("the new key version is not there yet"));
        }
        let ciphertext = match self.vice {
            Vice::CiphertextEmpty => Vec::new(),
            Vice::CiphertextTooLong => vec![7; 1025],
            _ => flipped(&request.get_ref().plaintext),
        };
        let annotations = match self.vice {
            Vice::SlashInAnnotation => BTreeMap::from([("kms.example.io/remote-kms-auditid".to_owned(), vec![1])]),
            Vice::AnnotationsTooLarge => BTreeMap::from([("chain.example.io".to_owned(), vec![0; 32 * 1024])]),
            _ => BTreeMap::from([("version.example.io".to_owned(), vec![1])]),
        };
        let (_, key_id) = self.key_ids(n);
        Ok(Response::new(EncryptResponse { ciphertext, key_id, annotations }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let mut plaintext = flipped(&request.get_ref().ciphertext);
        match self.vice {
            Vice::Silent => std::future::pending::<()>().await,
            Vice::WrongBytes => plaintext[0] ^= 1,
            Vice::ShortBytes => plaintext.truncate(16),
            Vice::Forgetful => return Err(Status::not_found("no such key")),
            _ => {}
        }
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| !b).collect()
}

/// A plugin on a socket, until it is dropped. It has a runtime of its own, as a process has, so that its connections end
/// with it.
pub struct Served {
    dir: Arc<TempDir>,
    runtime: Option<Runtime>,
    vice: Vice,
}

impl Served {
    /// Listens before it returns.
    pub fn start(vice: Vice) -> Self {
        Self::start_in(Arc::new(tempfile::Builder::new().prefix("bad-").tempdir().unwrap()), vice)
    }

    fn start_in(dir: Arc<TempDir>, vice: Vice) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let listener = UnixListener::bind(dir.path().join("kms.sock")).unwrap();
        let incoming = stream::unfold(listener, async |listener| {
            let connection = listener.accept().await.map(|(stream, _)| stream);
            Some((connection, listener))
        });
        let service = KeyManagementServiceServer::new(BadPlugin::new(vice));
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(async move { server.serve_with_incoming(Box::pin(incoming)).await.unwrap() });
        drop(entered);
        Self { dir, runtime: Some(runtime), vice }
    }

    /// The same plugin, started again on the same socket once the first is gone.
    pub async fn restart(mut self) -> Self {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        std::fs::remove_file(self.socket()).unwrap();
        Self::start_in(Arc::clone(&self.dir), self.vice)
    }

    /// The socket file.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("kms.sock")
    }

    /// Where clients connect.
    pub fn target(&self) -> Target {
        Target::File(self.socket())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
