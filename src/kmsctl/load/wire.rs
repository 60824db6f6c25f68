//! A connection that carries calls and costs little: HTTP/2 without a gRPC library on top.
//!
//! Guarantees: a lost connection is made again by the next call; every call ends with a message or with the name of what went
//! wrong. Deadlines are the caller's. SPEC: gRPC over HTTP/2.

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use kms_v2_client::kms::Target;
use kms_v2_client::plugin::Rpc;
use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::time::Duration;
use tonic::Code;

/// Time between a lost connection and the next try.
pub(super) const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// What the plugin may send before it must wait: more than all answers in flight.
const WINDOW: u32 = 16 << 20;
/// Bytes of gRPC's own head before a message.
const HEAD: usize = 5;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Served,
    /// With the plugin's gRPC code, or another name.
    Failed(Cow<'static, str>),
    /// The connection or the stream is gone.
    Lost,
}

impl Outcome {
    pub(super) const LATE: Self = Self::Failed(Cow::Borrowed("DEADLINE_EXCEEDED (by our clock)"));
    pub(super) const WRONG: Self = Self::Failed(Cow::Borrowed("WRONG ANSWER"));

    pub(super) fn failure(&self) -> Option<&str> {
        match self {
            Self::Served => None,
            Self::Failed(name) => Some(name),
            Self::Lost => Some("CONNECTION LOST"),
        }
    }

    pub(super) const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }
}

/// See the module.
pub(super) struct Wire {
    target: Target,
    sender: RefCell<Option<SendRequest<Bytes>>>,
    peer: Option<u32>,
    requests: [Uri; 3],
}

impl Wire {
    /// Connects.
    pub(super) async fn connect(target: Target) -> io::Result<Self> {
        let (sender, peer) = shake_hands(&target).await?;
        let uri = |name: &str| {
            let path = format!("/v2.KeyManagementService/{name}");
            Uri::builder().scheme("http").authority("localhost").path_and_query(path).build().map_err(io::Error::other)
        };
        let requests = [uri("Status")?, uri("Encrypt")?, uri("Decrypt")?];
        Ok(Self { target, sender: RefCell::new(Some(sender)), peer, requests })
    }

    /// The process that made the socket. A plugin that was given its socket (by systemd) is not that process.
    pub(super) const fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Sends a framed message; returns the answer's, without its frame.
    pub(super) async fn call(&self, rpc: Rpc, body: Bytes) -> Result<Bytes, Outcome> {
        let sender = self.sender().await?;
        match self.exchange(sender, rpc, body).await {
            Ok(answered) => answered,
            Err(error) => {
                if !error.is_reset() {
                    self.sender.take();
                }
                Err(Outcome::Lost)
            }
        }
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, Outcome> {
        if let Some(sender) = &*self.sender.borrow() {
            return Ok(sender.clone());
        }
        let (sender, _) = shake_hands(&self.target).await.map_err(|_| Outcome::Lost)?;
        self.sender.replace(Some(sender.clone()));
        Ok(sender)
    }

    async fn exchange(
        &self,
        sender: SendRequest<Bytes>,
        rpc: Rpc,
        body: Bytes,
    ) -> Result<Result<Bytes, Outcome>, h2::Error> {
        let [status, encrypt, decrypt] = &self.requests;
        let uri = match rpc {
            Rpc::Status => status,
            Rpc::Encrypt => encrypt,
            Rpc::Decrypt => decrypt,
        };
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(USER_AGENT, HeaderValue::from_static("kube-kms-bench"));

        let mut sender = sender.ready().await?;
        let (answer, mut stream) = sender.send_request(request, false)?;
        stream.send_data(body, true)?;
        let (head, mut incoming) = answer.await?.into_parts();
        // An error without a message has its status where the headers are.
        if let Some(code) = grpc_status(&head.headers) {
            return Ok(Err(code));
        }
        let mut message = BytesMut::new();
        let mut whole = Bytes::new();
        while let Some(data) = incoming.data().await {
            let data = data?;
            incoming.flow_control().release_capacity(data.len())?;
            if whole.is_empty() && message.is_empty() {
                whole = data;
            } else {
                if message.is_empty() {
                    message.extend_from_slice(&whole);
                }
                message.extend_from_slice(&data);
            }
        }
        let trailers = incoming.trailers().await?;
        if let Some(failed) = trailers.as_ref().and_then(grpc_status).filter(|o| *o != Outcome::Served) {
            return Ok(Err(failed));
        }
        let whole = if message.is_empty() { whole } else { message.freeze() };
        if trailers.is_none() || whole.len() < HEAD {
            return Ok(Err(Outcome::Failed("NO gRPC ANSWER".into())));
        }
        Ok(Ok(whole.slice(HEAD..)))
    }
}

async fn shake_hands(target: &Target) -> io::Result<(SendRequest<Bytes>, Option<u32>)> {
    let stream = target.connect()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok();
    let peer = peer.and_then(|c| u32::try_from(c.pid.as_raw_nonzero().get()).ok());
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await
        .map_err(io::Error::other)?;
    tokio::task::spawn_local(connection);
    // Streams that the plugin refuses before it has said how many it takes would count as failed.
    poll_fn(|cx| {
        let mut probe = sender.clone();
        probe.poll_ready(cx)
    })
    .await
    .map_err(io::Error::other)?;
    Ok((sender, peer))
}

/// `Served` for OK.
fn grpc_status(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get("grpc-status")?;
    Some(match Code::from_bytes(status.as_bytes()) {
        Code::Ok => Outcome::Served,
        code => Outcome::Failed(name(code).into()),
    })
}

/// As gRPC spells it.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
