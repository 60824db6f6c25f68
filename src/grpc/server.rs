//! The server: accepts connections, refuses strangers, and answers the three RPCs.
//!
//! Guarantees: every call ends before its caller's deadline with a reason, also one whose message never comes; a peer that is not
//! allowed is refused before its message is read; a caller that goes away takes its call along.

use crate::api::v2::{DecryptRequest, EncryptRequest};
use crate::core::fault::{Fault, Reason};
use crate::core::port::Clock;
use crate::core::uid::Uid;
use crate::grpc::call::Calls;
use crate::grpc::connection;
use crate::grpc::crowd::Crowd;
use crate::grpc::deadline::patience;
use crate::grpc::request_log::{Served, Under};
use crate::grpc::status::status;
use crate::grpc::{answer, message};
use crate::service::decrypt::DecryptInput;
use crate::service::observer::{Observer, Rpc};
use crate::service::peer::{Peer, Session};
use crate::service::plugin::Plugin;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderMap, Request};
use prost::Message;
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

pub use crate::grpc::answer::API_VERSION;

/// Serves KMS v2 over the plugin.
#[derive(Clone, Debug)]
pub struct KmsServer(Arc<Shared>);

/// The answer to a request that went well.
struct Answer {
    frame: Bytes,
    /// What is to be logged of it.
    served: Option<Served>,
}

#[derive(Debug)]
struct Shared {
    plugin: Arc<Plugin>,
    calls: Calls,
}

impl KmsServer {
    /// A server over this plugin.
    #[must_use]
    pub fn new(plugin: Arc<Plugin>, observer: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { plugin, calls: Calls::new(observer, clock) }))
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
                            let Some(place) = crowd.admit(&peer) else {
                                self.0.calls.refuse_connection(&peer);
                                continue;
                            };
                            let served = connection::serve(stream, self.clone(), peer, stopped.clone());
                            open.spawn(async move {
                                let _place = place;
                                served.await;
                            });
                        }
                        Some(Err(error)) => tracing::debug!(%error, "a connection could not be accepted"),
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

    /// Answers one request of this peer, unless it goes away before; what it returns is logged when the answer has been sent.
    pub(super) async fn respond(
        self,
        peer: Arc<Peer>,
        request: Request<RecvStream>,
        mut to: SendResponse<Bytes>,
    ) -> Option<Served> {
        let (head, mut body) = request.into_parts();
        let answer = {
            let mut answer = pin!(self.answer(&peer, &head, &mut body));
            poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                // The call is dropped and counted as cancelled.
                Poll::Pending => to.poll_reset(cx).map(|_| None),
            })
            .await
        };
        let (frame, served) = match answer? {
            Ok(Answer { frame, served }) => (Ok(frame), served),
            Err(status) => (Err(status), None),
        };
        if let Err(error) = message::send(&mut to, frame) {
            tracing::debug!(%error, "nobody waits for this answer any more");
        }
        served
    }

    /// Logs what was answered.
    pub(super) fn log(&self, served: &Served) {
        self.0.calls.log(served);
    }

    async fn answer(&self, peer: &Peer, head: &Parts, body: &mut RecvStream) -> Result<Answer, Status> {
        // SECURITY: before the message is read, so a stranger gets nothing decoded.
        if !peer.allowed {
            return Err(self.0.calls.refuse_stranger());
        }
        let rpc = match head.uri.path() {
            "/v2.KeyManagementService/Status" => Rpc::Status,
            "/v2.KeyManagementService/Encrypt" => Rpc::Encrypt,
            "/v2.KeyManagementService/Decrypt" => Rpc::Decrypt,
            _ => return Err(Status::unimplemented("KMS v2 has the methods Status, Encrypt and Decrypt")),
        };
        let message = read_in_time(body, &head.headers).await?;
        match rpc {
            Rpc::Status => self.status(&peer.session, &head.headers),
            Rpc::Encrypt => self.encrypt(&peer.session, &head.headers, message),
            // Apart, because it is large: it may wait for a KMS, and the others' memory need not have room for that.
            Rpc::Decrypt => Box::pin(self.decrypt(&head.headers, message)).await,
        }
    }

    fn status(&self, session: &Session, headers: &HeaderMap) -> Result<Answer, Status> {
        let call = self.0.calls.begin(Rpc::Status, headers);
        let published = session.status(&self.0.plugin);
        match published.status_encoded(answer::status) {
            Ok((answer, encoded)) => {
                call.said(&answer.key_id, if answer.healthz == "ok" { "ok" } else { "not ok" });
                Ok(Answer { frame: encoded, served: None })
            }
            Err(fault) => Err(call.failed(&Uid::parse(""), fault)),
        }
    }

    fn encrypt(&self, session: &Session, headers: &HeaderMap, message: Bytes) -> Result<Answer, Status> {
        let mut request = decoded::<EncryptRequest>(message)?;
        let call = self.0.calls.begin(Rpc::Encrypt, headers);
        let uid = Uid::take(std::mem::take(&mut request.uid));
        match call.admitted().and_then(|()| session.encrypt(&self.0.plugin, &request.plaintext)) {
            Ok(encrypted) => {
                let served = call.served(uid, Under::WriteState(Arc::clone(&encrypted.write)), "write-state");
                Ok(Answer { frame: answer::encrypted(encrypted), served: Some(served) })
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }

    async fn decrypt(&self, headers: &HeaderMap, message: Bytes) -> Result<Answer, Status> {
        let request = decoded::<DecryptRequest>(message)?;
        let call = self.0.calls.begin(Rpc::Decrypt, headers);
        let patience = patience(headers);
        let DecryptRequest { ciphertext, uid, key_id, annotations } = request;
        let uid = Uid::take(uid);
        if let Err(fault) = call.admitted() {
            return Err(call.failed(&uid, &fault));
        }
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
                Ok(Answer { frame, served: Some(served) })
            }
            Err(fault) => Err(call.failed(&uid, &fault)),
        }
    }
}

/// Reads the message; what has arrived already costs no timer.
async fn read_in_time(body: &mut RecvStream, headers: &HeaderMap) -> Result<Bytes, Status> {
    let mut message = pin!(message::read(body, headers));
    if let Poll::Ready(message) = poll_fn(|cx| Poll::Ready(message.as_mut().poll(cx))).await {
        return message;
    }
    match tokio::time::timeout(patience(headers), message).await {
        Ok(message) => message,
        Err(_) => Err(status(&Fault::new(Reason::Deadline), &Uid::parse(""))),
    }
}

fn decoded<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::internal(format!("the message is not as KMS v2 has it: {error}")))
}
