//! One HTTP/2 connection to a plugin, without a gRPC library: what a check has to send or to see and no well-behaved
//! client would.
//!
//! Guarantees: nothing is retried; no header is added beyond those that gRPC demands; every call ends by its deadline; no
//! stream is opened over what the server's SETTINGS allow, and what is too much waits. Refuses to know what answers mean. SPEC: gRPC over HTTP/2; RFC 9113.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode, Uri, Version};
use kms_v2_client::kms::Target;
use prost::Message;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Path of Status.
pub(super) const STATUS: &str = "/v2.KeyManagementService/Status";
/// Path of Encrypt.
pub(super) const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";
/// Path of Decrypt.
pub(super) const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";

/// Streams at once before the server has said how many, as hyper and grpc-go have it.
const STREAMS_BEFORE_SETTINGS: usize = 100;
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
    /// An HTTP status that is not 200. SPEC: gRPC's http-grpc-status-mapping: a client takes 404 for Unimplemented.
    Http(StatusCode),
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
            Self::Http(status) => write!(f, "the answer is no gRPC: HTTP status {status}"),
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
    /// Connects, and waits for the server's SETTINGS: for at most this long, since what it says to a call is worth more than
    /// that they do not come.
    pub(super) async fn connect(target: &Target, limit: Duration) -> Result<Self, Trouble> {
        let stream = target.connect().map_err(|error| Trouble::Lost(error.to_string()))?;
        // h2 hangs up on a server whose small frames it has no time to read; grpc-go has no such limit.
        let mut builder = h2::client::Builder::new();
        builder.data_frame_budget(1 << 30).initial_max_send_streams(STREAMS_BEFORE_SETTINGS);
        let (send, mut connection) = builder.handshake(stream).await.map_err(lost)?;
        let streams = Arc::new(AtomicUsize::new(STREAMS_BEFORE_SETTINGS));
        let seen = Arc::clone(&streams);
        // SPEC: RFC 9113, 3.4: SETTINGS are the first frame of a server, so they come before the answer to a PING.
        let mut ping = connection.ping_pong();
        let sent = ping.as_mut().is_some_and(|ping| ping.send_ping(Ping::opaque()).is_ok());
        let (settled, settings) = oneshot::channel();
        let mut settled = sent.then_some(settled);
        let driver = tokio::spawn(async move {
            let _ = poll_fn(|cx| {
                let polled = Pin::new(&mut connection).poll(cx);
                seen.store(connection.max_concurrent_send_streams(), Ordering::Relaxed);
                if let Some(ping) = ping.as_mut().filter(|_| settled.is_some())
                    && ping.poll_pong(cx).is_ready()
                    && let Some(settled) = settled.take()
                {
                    let _ = settled.send(());
                }
                polled
            })
            .await;
        });
        let wire = Self { send, driver, streams };
        let _ = tokio::time::timeout(limit, settings).await;
        Ok(wire)
    }

    /// How many streams the server allows at once.
    pub(super) fn streams_allowed(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Whether the connection is still there.
    pub(super) fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Opens a stream, or lets it wait for its turn; and what there is to be sent on it.
    async fn open(&self, call: &Call) -> Result<(ResponseFuture, SendStream<Bytes>), Trouble> {
        let request = call.request().map_err(|error| Trouble::Lost(error.to_string()))?;
        let mut ready = self.send.clone().ready().await.map_err(lost)?;
        ready.send_request(request, false).map_err(lost)
    }

    /// Sends a request and does not wait for the answer. Dropping what it returns resets the stream.
    pub(super) async fn start(&self, call: &Call) -> Result<Pending, Trouble> {
        let (response, mut stream) = self.open(call).await?;
        let mut body = call.body.clone();
        if call.unfinished {
            let half = body.split_to(body.len().div_euclid(2));
            stream.send_data(half, false).map_err(lost)?;
        } else {
            feed(&mut stream, body).await;
        }
        Ok(Pending { response, _stream: stream })
    }

    /// Sends a request and waits for the answer, for at most this long.
    pub(super) async fn call(&self, call: &Call, limit: Duration) -> Result<Answer, Trouble> {
        let whole = async {
            let (mut response, mut stream) = self.open(call).await?;
            // A server may answer what it has not read to its end, and read no more of it.
            let response = tokio::select! {
                biased;
                early = &mut response => early,
                () = feed(&mut stream, call.body.clone()) => response.await,
            };
            answer(response.map_err(lost)?).await
        };
        tokio::time::timeout(limit, whole).await.unwrap_or(Err(Trouble::Late))
    }
}

/// Sends all of a body, or as much as the server wants: whether that was all, its answer says.
async fn feed(stream: &mut SendStream<Bytes>, mut rest: Bytes) {
    if rest.is_empty() {
        let _ = stream.send_data(Bytes::new(), true);
    }
    stream.reserve_capacity(rest.len());
    while !rest.is_empty() {
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        let part = rest.split_to(room.min(rest.len()));
        if stream.send_data(part, rest.is_empty()).is_err() {
            return;
        }
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
    _stream: SendStream<Bytes>,
}

impl Pending {
    pub(super) async fn answer(self) -> Result<Answer, Trouble> {
        answer(self.response.await.map_err(lost)?).await
    }
}

async fn answer(response: http::Response<RecvStream>) -> Result<Answer, Trouble> {
    let (parts, mut stream) = response.into_parts();
    if parts.status != StatusCode::OK {
        return Err(Trouble::Http(parts.status));
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
