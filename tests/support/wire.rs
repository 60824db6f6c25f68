//! One HTTP/2 connection to the plugin, without a gRPC library: what a test needs to send and to see that no well-behaved
//! client would send or show. [`Wire`] speaks gRPC through `h2`; [`frames`] takes raw bytes apart.
//!
//! Guarantees: nothing is retried and no header is added beyond those that gRPC demands; every frame that the server sent
//! is kept, in order. Refuses to know what the messages mean.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Uri, Version};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_api::v2::{DecryptRequest, StatusRequest};
use kms_v2_client::kms::Target;
use prost::Message;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

pub const STATUS: &str = "/v2.KeyManagementService/Status";
pub const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";
pub const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";

/// Frame types of RFC 9113, section 6.
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;

/// Connects, blocking: a unix socket answers at once or not at all.
pub fn dial(target: &Target) -> std::io::Result<UnixStream> {
    let stream = dial_blocking(target)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// As [`dial`], for a client without a runtime.
pub fn dial_blocking(target: &Target) -> std::io::Result<StdUnixStream> {
    match target {
        Target::File(path) => StdUnixStream::connect(path),
        Target::Abstract(name) => StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
    }
}

/// One frame as the server sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// The whole frames at the beginning of these bytes.
pub fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut found = Vec::new();
    while bytes.len() >= 9 {
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        if bytes.len() < 9 + length {
            break;
        }
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap()) & 0x7fff_ffff;
        let payload = bytes[9..9 + length].to_vec();
        found.push(Frame { kind: bytes[3], flags: bytes[4], stream, payload });
        bytes = &bytes[9 + length..];
    }
    found
}

/// A frame as a client sends it.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block without Huffman coding and without the dynamic table. SPEC: RFC 7541, 6.2.2.
pub fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        assert!(name.len() < 127 && value.len() < 127, "one byte of length");
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A stream that keeps a copy of what came in.
struct Tap {
    stream: UnixStream,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.seen.lock().unwrap().extend(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One request, to be changed before it is sent.
#[derive(Clone)]
pub struct Call {
    pub path: String,
    pub authority: Option<&'static str>,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: Bytes,
}

impl Call {
    /// As kube-apiserver sends it: `:authority: localhost`.
    pub fn new(path: &str, message: &impl Message) -> Self {
        Self { path: path.to_owned(), authority: Some("localhost"), headers: Vec::new(), body: grpc_frame(message) }
    }

    pub fn status() -> Self {
        Self::new(STATUS, &StatusRequest {})
    }

    pub fn decrypt(sealed: &EncryptResponse) -> Self {
        let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
        Self::new(DECRYPT, &DecryptRequest { ciphertext, uid: super::site::uid(), key_id, annotations })
    }

    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::post("/");
        if let Some(authority) = self.authority {
            let uri = Uri::builder().scheme("http").authority(authority).path_and_query(&*self.path);
            request = request.uri(uri.build().unwrap()).version(Version::HTTP_2);
        } else {
            // h2 sends no :authority for a request that it believes to be a forwarded HTTP/1.1 one.
            request = request.uri(&*self.path).version(Version::HTTP_11);
        }
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }
}

/// A message with the five bytes that gRPC puts before it.
pub fn grpc_frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(body.len()).unwrap());
    framed.put_slice(&body);
    framed.freeze()
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// `grpc-status`, from wherever it stands.
    pub fn code(&self) -> i32 {
        let found = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        found.expect("a grpc-status").to_str().unwrap().parse().unwrap()
    }

    /// `grpc-message`, still percent-encoded.
    pub fn message(&self) -> String {
        let found = self.trailers.get("grpc-message").or_else(|| self.headers.get("grpc-message"));
        found.map_or_else(String::new, |m| m.to_str().unwrap().to_owned())
    }

    /// The one message in the body.
    pub fn decode<M: Message + Default>(&self) -> M {
        assert_eq!(self.code(), 0, "{}", self.message());
        assert_eq!(self.body[0], 0, "the answer is not compressed");
        let length = u32::from_be_bytes(self.body[1..5].try_into().unwrap()) as usize;
        assert_eq!(self.body.len(), 5 + length, "exactly one message");
        M::decode(&self.body[5..]).unwrap()
    }
}

/// One connection.
pub struct Wire {
    send: SendRequest<Bytes>,
    seen: Arc<Mutex<Vec<u8>>>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Wire {
    /// Connects to a plugin that serves.
    pub async fn connect(target: &Target) -> Self {
        Self::try_connect(target, Duration::from_secs(20)).await.expect("the plugin accepts and sends its SETTINGS")
    }

    /// Connects as grpc-go does: it is a connection only when the server's SETTINGS are there, all within `deadline`.
    pub async fn try_connect(target: &Target, deadline: Duration) -> Option<Self> {
        let seen = Arc::default();
        let tap = Tap { stream: dial(target).ok()?, seen: Arc::clone(&seen) };
        let connecting = async {
            // h2 hangs up on a server whose small frames it has no time to read; grpc-go has no such limit.
            let (send, connection) =
                h2::client::Builder::new().data_frame_budget(1 << 30).handshake::<_, Bytes>(tap).await.ok()?;
            let wire = Self { send, seen, driver: tokio::spawn(connection) };
            while !wire.frames().iter().any(|f| f.kind == SETTINGS) {
                if wire.driver.is_finished() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Some(wire)
        };
        tokio::time::timeout(deadline, connecting).await.ok().flatten()
    }

    /// Every frame that the server has sent so far.
    pub fn frames(&self) -> Vec<Frame> {
        frames(&self.seen.lock().unwrap())
    }

    pub fn saw(&self, kind: u8) -> bool {
        self.frames().iter().any(|f| f.kind == kind)
    }

    /// Whether the connection is still there.
    pub fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Sends a request and does not wait. Dropping what it returns sends RST_STREAM CANCEL.
    pub async fn start(&self, call: Call) -> Result<Pending, h2::Error> {
        let mut ready = self.send.clone().ready().await?;
        let (response, mut stream) = ready.send_request(call.request(), false)?;
        let mut rest = call.body;
        if rest.is_empty() {
            stream.send_data(Bytes::new(), true)?;
        }
        stream.reserve_capacity(rest.len());
        while !rest.is_empty() {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(room)) => stream.send_data(rest.split_to(room.min(rest.len())), rest.is_empty())?,
                // The server has answered already and wants no more of it.
                _ => break,
            }
        }
        Ok(Pending { response, _stream: stream })
    }

    pub async fn call(&self, call: Call) -> Result<Answer, h2::Error> {
        self.start(call).await?.answer().await
    }

    /// Status, which must succeed.
    pub async fn status_is_ok(&self) {
        let answer = self.call(Call::status()).await.unwrap();
        let status: kms_v2_api::v2::StatusResponse = answer.decode();
        assert_eq!((&*status.version, &*status.healthz), ("v2", "ok"));
    }
}

/// A request that is under way.
pub struct Pending {
    response: ResponseFuture,
    _stream: h2::SendStream<Bytes>,
}

impl Pending {
    /// The HTTP status alone, which is 200 whatever gRPC says.
    pub async fn http_status(self) -> Result<u16, h2::Error> {
        Ok(self.response.await?.status().as_u16())
    }

    pub async fn answer(self) -> Result<Answer, h2::Error> {
        let (parts, mut stream) = self.response.await?.into_parts();
        assert_eq!(parts.status, 200);
        let mut body = BytesMut::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk?;
            stream.flow_control().release_capacity(chunk.len())?;
            body.extend(chunk);
        }
        let trailers = stream.trailers().await?.unwrap_or_default();
        Ok(Answer { headers: parts.headers, trailers, body: body.freeze() })
    }
}
