//! The server: accepts connections, refuses strangers, and answers the three RPCs.
//!
//! Guarantees: every call ends before its caller's deadline with a reason, also one whose message never comes; a peer that is not
//! allowed is refused before its message is read; a caller that goes away takes its call along.

use crate::call::Calls;
use crate::connection;
use crate::crowd::Crowd;
use crate::deadline::patience;
use crate::message::{Outcome, Refusal, decoded};
use crate::reply::Reply;
use crate::request_log::{Served, Under};
use crate::status::status;
use crate::{answer, message};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderMap, Request};
use kms_v2_api::v2::{DecryptRequest, EncryptRequest};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::limit;
use kube_kms_core::port::Clock;
use kube_kms_core::uid::Uid;
use kube_kms_service::decrypt::DecryptInput;
use kube_kms_service::observer::{Observer, Rpc};
use kube_kms_service::peer::{Peer, Session};
use kube_kms_service::plugin::Plugin;
use kube_kms_service::waiting_room::WaitingRoom;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tonic::transport::server::Connected;

pub use crate::answer::API_VERSION;

/// Bytes that an annotation takes beside its name and value.
const ANNOTATION: usize = 128;

/// Serves KMS v2 over the plugin.
#[derive(Clone, Debug)]
pub struct KmsServer(Arc<Shared>);

/// The answer to a request that went well.
struct Answer {
    frame: Bytes,
    /// Whether a seed is in it.
    is_secret: bool,
    /// What is to be logged of it.
    served: Option<Served>,
}

#[derive(Debug)]
struct Shared {
    plugin: Arc<Plugin>,
    calls: Calls,
    /// Requests whose message is not whole yet.
    incomplete: Arc<WaitingRoom>,
}

impl KmsServer {
    /// A server over this plugin.
    #[must_use]
    pub fn new(plugin: Arc<Plugin>, observer: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        let incomplete = WaitingRoom::new(limit::MESSAGES_INCOMPLETE_MAX);
        Self(Arc::new(Shared { plugin, calls: Calls::new(observer, clock), incomplete }))
    }

    /// Serves these connections until `shutdown`, then sends GOAWAY and lets running calls end. A connection that fails ends alone.
    ///
    /// # Cancel safety
    /// Dropping the future drops every connection.
    pub async fn serve<I, C>(self, connections: I, shutdown: impl Future<Output = ()>)
    where
        I: Stream<Item = io::Result<C>>,
        C: AsyncRead + AsyncWrite + Connected<ConnectInfo = Peer> + Unpin + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let mut open = JoinSet::new();
        let crowd = Crowd::new();
        let mut shutdown = pin!(shutdown);
        {
            // Dropped at the end of this block: no new connection while the open ones drain.
            let mut connections = pin!(connections);
            loop {
                tokio::select! {
                    () = &mut shutdown => break,
                    next = connections.next() => match next {
                        Some(Ok(stream)) => {
                            let peer = stream.connect_info();
                            let Some((place, silent)) = crowd.admit(&peer) else {
                                self.0.calls.refuse_connection(&peer);
                                continue;
                            };
                            let served = connection::serve(stream, self.clone(), (peer, silent), stopped.clone());
                            open.spawn(async move {
                                let _place = place;
                                served.await;
                            });
                        }
                        Some(Err(error)) => tracing::debug!(target: "kube_kms::grpc", %error, "a connection could not be accepted"),
                        None => break,
                    },
                    Some(_) = open.join_next(), if !open.is_empty() => {}
                }
            }
        }
        // Nobody listens any more when there is no connection.
        let _ = stop.send(true);
        while open.join_next().await.is_some() {}
    }

    /// The answer to one request of this peer, unless it goes away before.
    pub(super) async fn respond(
        self,
        peer: Arc<Peer>,
        request: Request<RecvStream>,
        mut to: SendResponse<Bytes>,
    ) -> Option<Reply> {
        let (head, mut body) = request.into_parts();
        let answer = {
            let mut answer = pin!(self.answer(&peer, head, &mut body));
            poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                // The call is dropped and counted as cancelled.
                Poll::Pending => to.poll_reset(cx).map(|_| None),
            })
            .await
        };
        Some(match answer? {
            Ok(Answer { frame, is_secret, served }) => {
                Reply { to, outcome: Outcome::Message(frame), is_secret, served }
            }
            Err(outcome) => Reply { to, outcome, is_secret: false, served: None },
        })
    }

    /// Logs what was answered.
    pub(super) fn log(&self, served: &Served) {
        self.0.calls.log(served);
    }

    async fn answer(&self, peer: &Peer, head: Parts, body: &mut RecvStream) -> Result<Answer, Outcome> {
        // SECURITY: before the message is read, so a stranger gets nothing decoded.
        if !peer.allowed {
            return Err(Outcome::Status(self.0.calls.refuse_stranger()));
        }
        if let Err(status) = message::refuse_foreign(&head) {
            return Err(Outcome::Http(status));
        }
        let rpc = match head.uri.path() {
            "/v2.KeyManagementService/Status" => Rpc::Status,
            "/v2.KeyManagementService/Encrypt" => Rpc::Encrypt,
            "/v2.KeyManagementService/Decrypt" => Rpc::Decrypt,
            _ => {
                let said = Status::unimplemented("KMS v2 has the methods Status, Encrypt and Decrypt");
                return Err(Outcome::Status(said));
            }
        };
        let headers = head.headers;
        let answer = match self.read_in_time(body, &headers).await {
            Ok(message) => match rpc {
                Rpc::Status => self.status(&peer.session, &headers),
                Rpc::Encrypt => self.encrypt(&peer.session, &headers, message),
                // Apart, because it is large: it may wait for a KMS, and the others' memory need not have room for that.
                Rpc::Decrypt => Box::pin(self.decrypt(headers, message)).await,
            },
            Err(Refusal::Fault(fault)) => Err(self.0.calls.begin(rpc, &headers).failed(&Uid::parse(""), &fault)),
            Err(Refusal::Status(status)) => Err(status),
        };
        answer.map_err(Outcome::Status)
    }

    /// Reads the message; what has arrived already costs no timer.
    async fn read_in_time(&self, body: &mut RecvStream, headers: &HeaderMap) -> Result<Bytes, Refusal> {
        let mut message = pin!(message::read(body, headers, &self.0.incomplete));
        if let Poll::Ready(message) = poll_fn(|cx| Poll::Ready(message.as_mut().poll(cx))).await {
            return message;
        }
        match tokio::time::timeout(patience(headers), message).await {
            Ok(message) => message,
            Err(_) => Err(status(&Fault::new(Reason::Deadline), &Uid::parse("")).into()),
        }
    }

    fn status(&self, session: &Session, headers: &HeaderMap) -> Result<Answer, Status> {
        let call = self.0.calls.begin(Rpc::Status, headers);
        let published = session.status(&self.0.plugin);
        match published.status_encoded(answer::status) {
            Ok((answer, encoded)) => {
                call.said(&answer.key_id, if answer.healthz == "ok" { "ok" } else { "not ok" });
                Ok(Answer { frame: encoded, is_secret: false, served: None })
            }
            Err(fault) => Err(call.failed(&Uid::parse(""), fault)),
        }
    }

    fn encrypt(&self, session: &Session, headers: &HeaderMap, message: Bytes) -> Result<Answer, Status> {
        let mut call = self.0.calls.begin(Rpc::Encrypt, headers);
        let mut request = match decoded::<EncryptRequest>(message) {
            Ok(request) => request,
            Err(fault) => return Err(call.failed(&Uid::parse(""), &fault)),
        };
        let uid = Uid::take(std::mem::take(&mut request.uid));
        // Nothing is waited for, so nothing is held.
        match call.admitted(0).and_then(|()| session.encrypt(&self.0.plugin, &request.plaintext)) {
            Ok(encrypted) => {
                let served = call.served(uid, Under::WriteState(Arc::clone(&encrypted.write)), "write-state");
                Ok(Answer { frame: answer::encrypted(encrypted), is_secret: false, served: Some(served) })
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }

    async fn decrypt(&self, headers: HeaderMap, message: Bytes) -> Result<Answer, Status> {
        let mut call = self.0.calls.begin(Rpc::Decrypt, &headers);
        let patience = patience(&headers);
        let size = message.len();
        let DecryptRequest { ciphertext, uid, key_id, annotations } = match decoded(message) {
            Ok(request) => request,
            Err(fault) => return Err(call.failed(&Uid::parse(""), &fault)),
        };
        let uid = Uid::take(uid);
        let held = size.saturating_add(annotations.len().saturating_mul(ANNOTATION));
        if let Err(fault) = call.admitted(held) {
            return Err(call.failed(&uid, &fault));
        }
        // SECURITY: it may wait, for thousands of others too, and is held to what was counted meanwhile.
        drop(headers);
        let input = DecryptInput { ciphertext: &ciphertext, key_id, annotations, uid: &uid, patience };
        let opened = {
            let opening = pin!(self.0.plugin.decrypt(input));
            call.scope().within(opening).await
        };
        match opened {
            Ok(mut opened) => {
                // Moved, not copied: the message wipes it when it has been encoded.
                let frame = answer::decrypted(std::mem::take(&mut *opened.plaintext));
                let served = call.served(uid, Under::KeyId(opened.key_id), opened.source.label());
                Ok(Answer { frame, is_secret: true, served: Some(served) })
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }
}
