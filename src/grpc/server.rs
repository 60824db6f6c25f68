//! The server: admission, deadline, conversion, and then the use case.
//!
//! Guarantees: at most so many calls at once, the rest is refused and not queued without end; every call ends before its
//! caller's deadline with a reason; a peer that is not allowed is refused before its message is read.

use crate::api::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use crate::api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use crate::core::fault::{Fault, Reason};
use crate::core::limit;
use crate::core::port::{Clock, Moment};
use crate::core::uid::Uid;
use crate::grpc::deadline::patience;
use crate::grpc::request_log::RequestLog;
use crate::grpc::status::status;
use crate::service::decrypt::DecryptInput;
use crate::service::observer::{Observer, Rpc};
use crate::service::peer::{Peer, Session};
use crate::service::plugin::Plugin;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

/// The API version that Status reports. SPEC: kube-apiserver pins the first answer for its life.
pub const API_VERSION: &str = "v2";

/// Serves KMS v2 over the plugin.
#[derive(Clone, Debug)]
pub struct KmsServer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    plugin: Arc<Plugin>,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    log: RequestLog,
    in_flight: AtomicUsize,
}

impl KmsServer {
    /// A server over this plugin.
    #[must_use]
    pub fn new(plugin: Arc<Plugin>, observer: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        let in_flight = AtomicUsize::new(0);
        Self(Arc::new(Shared { plugin, observer, clock, log: RequestLog::default(), in_flight }))
    }

    /// Serves these connections until `shutdown`, then sends GOAWAY and lets running calls end.
    ///
    /// # Errors
    /// When the transport fails as a whole; a connection that fails ends alone.
    ///
    /// # Cancel safety
    /// Dropping the future drops every connection.
    pub async fn serve<I, C>(
        self,
        connections: I,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error>
    where
        I: Stream<Item = io::Result<C>>,
        C: AsyncRead + AsyncWrite + Connected<ConnectInfo = Peer> + Unpin + Send + 'static,
    {
        let judge = self.clone();
        let service = KeyManagementServiceServer::with_interceptor(self, move |request: Request<()>| {
            judge.refuse_strangers(request)
        });
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(connections, shutdown)
            .await
    }

    /// SECURITY: runs before the message is read, so a stranger gets nothing decoded.
    fn refuse_strangers(&self, request: Request<()>) -> Result<Request<()>, Status> {
        if request.extensions().get::<Peer>().is_some_and(|peer| peer.allowed) {
            return Ok(request);
        }
        let (fault, uid) = (Fault::new(Reason::PeerUid), Uid::parse(""));
        self.0.log.failed(Rpc::Status, &uid, &fault, std::time::Duration::ZERO, self.0.clock.now());
        Err(status(&fault, &uid))
    }
}

#[tonic::async_trait]
impl KeyManagementService for KmsServer {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (call, uid) = (self.0.begin(Rpc::Status), Uid::parse(""));
        match session(&request).map_or_else(|| self.0.plugin.status(), |s| s.status(&self.0.plugin)) {
            Ok(answer) => {
                let detail = if answer.healthz == "ok" { "ok" } else { "not ok" };
                call.served(&uid, &answer.key_id, detail);
                let key_id = answer.key_id.as_str().to_owned();
                Ok(Response::new(StatusResponse { version: API_VERSION.to_owned(), healthz: answer.healthz, key_id }))
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let call = self.0.begin(Rpc::Encrypt);
        let message = request.get_ref();
        let uid = Uid::parse(&message.uid);
        let seal = || match session(&request) {
            Some(session) => session.encrypt(&self.0.plugin, &message.plaintext),
            None => self.0.plugin.encrypt(&message.plaintext),
        };
        match call.admitted().and_then(|()| seal()) {
            Ok(encrypted) => {
                call.served(&uid, encrypted.write.key_id(), "write-state");
                Ok(Response::new(EncryptResponse {
                    ciphertext: encrypted.ciphertext,
                    key_id: encrypted.write.key_id().as_str().to_owned(),
                    annotations: encrypted.write.annotations().all().clone(),
                }))
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let call = self.0.begin(Rpc::Decrypt);
        let patience = patience(request.metadata());
        let DecryptRequest { ciphertext, uid, key_id, annotations } = request.into_inner();
        let uid = Uid::parse(&uid);
        if let Err(fault) = call.admitted() {
            return Err(call.failed(&uid, &fault));
        }
        let input = DecryptInput { ciphertext: &ciphertext, key_id, annotations, uid: &uid, patience };
        match self.0.plugin.decrypt(input).await {
            Ok(mut opened) => {
                call.served(&uid, &opened.key_id, opened.source.label());
                // Moved, not copied: DecryptResponse wipes it when it has been encoded.
                Ok(Response::new(DecryptResponse { plaintext: std::mem::take(&mut *opened.plaintext) }))
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }
}

/// What the connection of this request was told.
fn session<T>(request: &Request<T>) -> Option<&Session> {
    request.extensions().get::<Peer>().map(|peer| &*peer.session)
}

impl Shared {
    fn begin(&self, rpc: Rpc) -> Call<'_> {
        self.observer.rpc_in_flight(rpc, 1);
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed);
        Call {
            shared: self,
            rpc,
            began: self.clock.now(),
            crowded: in_flight >= limit::CALLS_IN_FLIGHT_MAX,
            ended: false,
        }
    }
}

/// One call in flight. Dropped without an end it was cancelled, which is counted as `deadline`.
struct Call<'a> {
    shared: &'a Shared,
    rpc: Rpc,
    began: Moment,
    crowded: bool,
    ended: bool,
}

impl Call<'_> {
    fn admitted(&self) -> Result<(), Fault> {
        if self.crowded { Err(Reason::Overloaded.into()) } else { Ok(()) }
    }

    fn served(mut self, uid: &Uid, key_id: &dyn Display, detail: &'static str) {
        let elapsed = self.end(Ok(()));
        self.shared.log.served(self.rpc, uid, key_id, detail, elapsed);
    }

    fn failed(mut self, uid: &Uid, fault: &Fault) -> Status {
        let elapsed = self.end(Err(fault.reason()));
        self.shared.log.failed(self.rpc, uid, fault, elapsed, self.shared.clock.now());
        status(fault, uid)
    }

    fn end(&mut self, outcome: Result<(), Reason>) -> std::time::Duration {
        let elapsed = self.shared.clock.now().since(self.began);
        self.shared.observer.rpc(self.rpc, outcome, elapsed);
        self.ended = true;
        elapsed
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Err(Reason::Deadline));
        }
        self.shared.observer.rpc_in_flight(self.rpc, -1);
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
