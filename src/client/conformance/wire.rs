//! One HTTP/2 connection to a plugin, without a gRPC library: what a check has to send or to see and no well-behaved
//! client would.
//!
//! Guarantees: nothing is retried; no header is added beyond those that gRPC demands; every call ends by its deadline.
//! Refuses to know what answers mean. SPEC: gRPC over HTTP/2; RFC 9113.

use crate::client::kms::Target;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Uri, Version};
use prost::Message;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Path of Status.
pub(super) const STATUS: &str = "/v2.KeyManagementService/Status";
/// Path of Encrypt.
pub(super) const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";
/// Path of Decrypt.
pub(super) const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";

/// Bytes of gRPC's own head before a message: a flag and a length.
const HEAD: usize = 5;

/// Why there is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The plugin's own status.
    Status(Code, String),
    /// No answer within the deadline, by our clock.
    Late,
    /// The stream was reset, or the connection is gone.
    Lost(String),
    /// An answer that is not what gRPC asks for.
    Garbled(String),
}

impl Trouble {
    /// Whether the plugin said no, in so many words.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(..))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code, message) => {
                let cut: String = message.chars().take(160).collect();
                write!(f, "{code:?}: {cut:?}")
            }
            Self::Late => f.write_str("no answer within the deadline"),
            Self::Lost(why) => write!(f, "no answer: {why}"),
            Self::Garbled(why) => write!(f, "the answer is no gRPC: {why}"),
        }
    }
}

/// One request, to be changed before it is sent.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: &'static str,
    pub(super) authority: Option<String>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    /// Half of the body is sent, and the stream stays open.
    pub(super) unfinished: bool,
}

impl Call {
    /// As kube-apiserver sends it: `:authority: localhost`.
    pub(super) fn new(path: &'static str, message: &impl Message) -> Self {
        Self {
            path,
            authority: Some("localhost".to_owned()),
            headers: Vec::new(),
            body: framed(message),
            unfinished: false,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// As kube-apiserver does with every call.
    pub(super) fn within(self, limit: Duration) -> Self {
        self.header("grpc-timeout", &format!("{}m", limit.as_millis()))
    }

    /// A call that its server has to keep waiting for, however fast it is.
    pub(super) const fn unfinished(mut self) -> Self {
        self.unfinished = true;
        self
    }

    fn request(&self) -> Result<Request<()>, http::Error> {
        let mut request = Request::post("/");
        if let Some(authority) = &self.authority {
            let uri = Uri::builder().scheme("http").authority(authority.as_str()).path_and_query(self.path).build()?;
            request = request.uri(uri).version(Version::HTTP_2);
        } else {
            // h2 sends no :authority for a request that it believes to be a forwarded HTTP/1.1 one.
            request = request.uri(self.path).version(Version::HTTP_11);
        }
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in &self.headers {
            request = request.header(*name, value.as_str());
        }
        request.body(())
    }
}

/// A message with the five bytes that gRPC puts before it.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(body.len().saturating_add(HEAD));
    framed.put_u8(0);
    framed.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    framed.put_slice(&body);
    framed.freeze()
}

/// What came back, as it came.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    trailers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The one message in the body, or the plugin's status.
    pub(super) fn message<M: Message + Default>(&self) -> Result<M, Trouble> {
        let garbled = |why: &str| Err(Trouble::Garbled(why.to_owned()));
        let status = Status::from_header_map(&self.trailers).or_else(|| Status::from_header_map(&self.headers));
        match status {
            None => return garbled("there is no grpc-status"),
            Some(status) if status.code() == Code::Ok => {}
            Some(status) => return Err(Trouble::Status(status.code(), status.message().to_owned())),
        }
        let Some((head, body)) = self.body.split_first_chunk::<HEAD>() else { return garbled("there is no message") };
        let [flag, length @ ..] = head;
        if *flag != 0 {
            return garbled("the message is compressed, and nobody agreed to that");
        }
        if usize::try_from(u32::from_be_bytes(*length)) != Ok(body.len()) {
            return garbled("there is not exactly one message");
        }
        M::decode(body).or_else(|error| garbled(&error.to_string()))
    }
}

/// What became of a call, in other words than h2's: `not a result of an error` is what it says of a GOAWAY.
fn lost(error: h2::Error) -> Trouble {
    Trouble::Lost(match error.reason() {
        Some(reason) if error.is_go_away() => format!("the connection was closed with GOAWAY {reason:?}"),
        Some(reason) if error.is_reset() => format!("the stream was reset with {reason:?}"),
        _ => error.to_string(),
    })
}

/// One connection. Closed when it is dropped.
#[derive(Debug)]
pub(super) struct Wire {
    send: SendRequest<Bytes>,
    driver: JoinHandle<()>,
    streams: Arc<AtomicUsize>,
}

impl Wire {
    /// Connects, and sends the preface. The plugin has not said anything yet.
    pub(super) async fn connect(target: &Target) -> Result<Self, Trouble> {
        let stream = target.connect().map_err(|error| Trouble::Lost(error.to_string()))?;
        // h2 hangs up on a server whose small frames it has no time to read; grpc-go has no such limit.
        let mut builder = h2::client::Builder::new();
        let (send, mut connection) = builder.data_frame_budget(1 << 30).handshake(stream).await.map_err(lost)?;
        let streams = Arc::new(AtomicUsize::new(usize::MAX));
        let seen = Arc::clone(&streams);
        let driver = tokio::spawn(async move {
            // The limit is known once the server's SETTINGS are there.
            let _ = poll_fn(|cx| {
                let polled = Pin::new(&mut connection).poll(cx);
                seen.store(connection.max_concurrent_send_streams(), Ordering::Relaxed);
                polled
            })
            .await;
        });
        Ok(Self { send, driver, streams })
    }

    /// How many streams the server allows at once.
    pub(super) fn streams_allowed(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Whether the connection is still there.
    pub(super) fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Sends a request and does not wait for the answer. Dropping what it returns resets the stream.
    pub(super) async fn start(&self, call: &Call) -> Result<Pending, Trouble> {
        let request = call.request().map_err(|error| Trouble::Lost(error.to_string()))?;
        let mut ready = self.send.clone().ready().await.map_err(lost)?;
        let (response, mut stream) = ready.send_request(request, false).map_err(lost)?;
        let mut rest = call.body.clone();
        if call.unfinished {
            let half = rest.split_to(rest.len().div_euclid(2));
            stream.send_data(half, false).map_err(lost)?;
            return Ok(Pending { response, _stream: stream });
        }
        if rest.is_empty() {
            stream.send_data(Bytes::new(), true).map_err(lost)?;
        }
        stream.reserve_capacity(rest.len());
        while !rest.is_empty() {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(room)) => {
                    let part = rest.split_to(room.min(rest.len()));
                    stream.send_data(part, rest.is_empty()).map_err(lost)?;
                }
                // The server has answered already and wants no more of it.
                _ => break,
            }
        }
        Ok(Pending { response, _stream: stream })
    }

    /// Sends a request and waits for the answer, for at most this long.
    pub(super) async fn call(&self, call: &Call, limit: Duration) -> Result<Answer, Trouble> {
        let whole = async { self.start(call).await?.answer().await };
        tokio::time::timeout(limit, whole).await.unwrap_or(Err(Trouble::Late))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Pending {
    response: ResponseFuture,
    _stream: h2::SendStream<Bytes>,
}

impl Pending {
    pub(super) async fn answer(self) -> Result<Answer, Trouble> {
        let (parts, mut stream) = self.response.await.map_err(lost)?.into_parts();
        if parts.status != http::StatusCode::OK {
            return Err(Trouble::Garbled(format!("HTTP status {}", parts.status)));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.map_err(lost)?;
            stream.flow_control().release_capacity(chunk.len()).map_err(lost)?;
            body.extend(chunk);
        }
        let trailers = stream.trailers().await.map_err(lost)?.unwrap_or_default();
        Ok(Answer { headers: parts.headers, trailers, body: body.freeze() })
    }
}
