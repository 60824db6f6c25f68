//! A KMS v2 client over a unix socket, with the settings of kube-apiserver's: plaintext HTTP/2, authority `localhost`,
//! one connection, a deadline for every call.

use hyper_util::rt::TokioIo;
use kms_v2_api::v2::key_management_service_client::KeyManagementServiceClient;
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A socket file.
    File(PathBuf),
    /// An abstract socket, without the `@`.
    Abstract(String),
}

impl Target {
    /// Connects, blocking: a unix socket answers at once or not at all.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let stream = match self {
            Self::File(path) => StdUnixStream::connect(path)?,
            Self::Abstract(name) => StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        };
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }
}

/// A client on one connection, which is made again when it is lost.
#[derive(Clone, Debug)]
pub struct KmsClient {
    inner: KeyManagementServiceClient<Channel>,
    timeout: Duration,
}

impl KmsClient {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(target: Target, timeout: Duration) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_static("http://localhost");
        let connector = tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { target.connect().map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Self { inner: KeyManagementServiceClient::new(channel), timeout })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        timed(message, self.timeout)
    }

    /// A stub on the same connection, and the request with a deadline of its own.
    pub(super) fn call<T>(&self, message: T, timeout: Duration) -> (KeyManagementServiceClient<Channel>, Request<T>) {
        (self.inner.clone(), timed(message, timeout))
    }

    /// Calls Status.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn status(&mut self) -> Result<StatusResponse, Status> {
        let request = self.request(StatusRequest {});
        self.inner.status(request).await.map(tonic::Response::into_inner)
    }

    /// Calls Encrypt.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn encrypt(&mut self, plaintext: Vec<u8>, uid: String) -> Result<EncryptResponse, Status> {
        let request = self.request(EncryptRequest { plaintext, uid });
        self.inner.encrypt(request).await.map(tonic::Response::into_inner)
    }

    /// Calls Decrypt with what Encrypt returned.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn decrypt(&mut self, sealed: EncryptResponse, uid: String) -> Result<DecryptResponse, Status> {
        let EncryptResponse { ciphertext, key_id, annotations } = sealed;
        let request = self.request(DecryptRequest { ciphertext, uid, key_id, annotations });
        self.inner.decrypt(request).await.map(tonic::Response::into_inner)
    }
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}
