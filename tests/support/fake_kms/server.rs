//! The HTTP/1.1 side: a thread with a runtime of its own, connections, and the failures that are about connections.
//!
//! Guarantees: it runs whatever the test's runtime does; while stopped, its port refuses connections and nobody else can
//! take it; nothing that a client sends makes it panic. Refuses to know what an operation means.

use super::super::port::{bind, bind_again};
use super::account::{ACCOUNT, Account};
use super::fault::{Failure, Faults};
use super::journal::{Call, Journal, Outcome};
use super::lie;
use super::operation;
use super::refusal::Refusal;
use aws_sdk_kms::primitives::{DateTime, DateTimeFormat as Format};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc as async_mpsc, watch};
use tokio::task::JoinSet;

const TARGET_PREFIX: &str = "TrentService.";
const REQUEST_MAX: usize = 1 << 20;
const BACKLOG: u32 = 4096;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What the handle and the server share.
pub(super) struct Shared {
    pub(super) account: Mutex<Account>,
    pub(super) faults: Mutex<Faults>,
    pub(super) journal: Mutex<Journal>,
    /// Moves whenever the journal does.
    pub(super) news: watch::Sender<u64>,
    /// Moves when hung calls are released.
    pub(super) gate: watch::Sender<u64>,
    /// Seconds that its clock is ahead of ours.
    pub(super) clock_ahead: AtomicI64,
}

/// A poisoned lock is a test that failed while it held it; the other tests' reports matter more.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) enum Command {
    Stop(mpsc::Sender<io::Result<()>>),
    Start(mpsc::Sender<io::Result<()>>),
    DropConnections(mpsc::Sender<io::Result<()>>),
}

/// Serves until every sender of commands is gone. Says through `bound` where it listens.
pub(super) fn run(
    shared: Arc<Shared>,
    commands: async_mpsc::UnboundedReceiver<Command>,
    bound: &mpsc::Sender<io::Result<SocketAddr>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(bound.send(Err(error))),
    };
    runtime.block_on(async {
        match bind(SocketAddr::from(([127, 0, 0, 1], 0))).and_then(|(socket, at)| Ok((socket.listen(BACKLOG)?, at))) {
            Ok((listener, at)) => {
                let _ = bound.send(Ok(at));
                Server { shared, at, listener: Some(listener), reserved: None, connections: JoinSet::new() }
                    .obey(commands)
                    .await;
            }
            Err(error) => drop(bound.send(Err(error))),
        }
    });
}

struct Server {
    shared: Arc<Shared>,
    at: SocketAddr,
    listener: Option<TcpListener>,
    /// While stopped: bound, not listening. Connections are refused and the port stays ours.
    reserved: Option<TcpSocket>,
    connections: JoinSet<()>,
}

impl Server {
    async fn obey(mut self, mut commands: async_mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Stop(done)) => drop(done.send(self.stop().await)),
                    Some(Command::Start(done)) => drop(done.send(self.start().await)),
                    Some(Command::DropConnections(done)) => {
                        self.connections.shutdown().await;
                        let _ = done.send(Ok(()));
                    }
                },
                accepted = accept(self.listener.as_ref()) => if let Ok(stream) = accepted {
                    self.connections.spawn(serve(stream, Arc::clone(&self.shared)));
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    async fn stop(&mut self) -> io::Result<()> {
        if self.listener.take().is_some() {
            self.connections.shutdown().await;
            self.reserved = Some(bind_again(self.at).await?);
        }
        Ok(())
    }

    async fn start(&mut self) -> io::Result<()> {
        if self.listener.is_none() {
            let socket = match self.reserved.take() {
                Some(reserved) => reserved,
                None => bind_again(self.at).await?,
            };
            self.listener = Some(socket.listen(BACKLOG)?);
        }
        Ok(())
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    // The same socket, for the failures that need it: hyper owns the stream.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let socket = Arc::new(socket);
    let service = service_fn(move |request| answer(Arc::clone(&shared), Arc::clone(&socket), request));
    // An error here is a connection that broke, mostly on purpose.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// In the journal for as long as it lives: a call whose caller goes away leaves like any other.
struct Visit<'a> {
    shared: &'a Shared,
    place: usize,
    hung: bool,
}

impl<'a> Visit<'a> {
    fn begin(shared: &'a Shared, call: Call) -> Self {
        let place = lock(&shared.journal).arrive(call);
        shared.news.send_modify(|count| *count += 1);
        Self { shared, place, hung: false }
    }

    fn settle(&self, outcome: Outcome) {
        lock(&self.shared.journal).settle(self.place, outcome);
    }

    async fn hang(&mut self) {
        let mut gate = self.shared.gate.subscribe();
        self.set_hung(true);
        let _ = gate.changed().await;
        self.set_hung(false);
    }

    fn set_hung(&mut self, hung: bool) {
        if self.hung != hung {
            let mut journal = lock(&self.shared.journal);
            if hung {
                journal.hung += 1
            } else {
                journal.hung -= 1
            }
            self.hung = hung;
        }
        self.shared.news.send_modify(|count| *count += 1);
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.set_hung(false);
        lock(&self.shared.journal).leave();
        self.shared.news.send_modify(|count| *count += 1);
    }
}

async fn answer(shared: Arc<Shared>, socket: Arc<OwnedFd>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let op = text(&head.headers, "x-amz-target").and_then(|target| target.strip_prefix(TARGET_PREFIX));
    let op = op.unwrap_or_default().to_owned();
    let input = match Limited::new(body, REQUEST_MAX).collect().await {
        Ok(body) => parse(&body.to_bytes()),
        Err(_) => Err(Refusal::serialization("the request could not be read, or is too long")),
    };
    let request_id = uuid::Uuid::new_v4().to_string();
    let call = recorded(&op, input.as_ref().ok(), &head.headers, &request_id);
    let key_id = call.key_id.clone();
    let (failure, latency) = {
        let mut faults = lock(&shared.faults);
        (faults.decide(&op), faults.latency(&op))
    };
    let mut visit = Visit::begin(&shared, call);
    if latency > Duration::ZERO {
        tokio::time::sleep(latency).await;
    }
    match failure {
        Some(Failure::Hang) => visit.hang().await,
        Some(Failure::Reset) => return Err(reset(&socket)),
        _ => {}
    }
    if let Some(Failure::Flood(flood)) = failure {
        return Ok(lie::flooded(
            flood,
            response(StatusCode::OK, &request_id, Empty::new().map_err(|never| match never {}).boxed_unsync()),
        ));
    }
    let answer = match failure.and_then(|failure| refused(failure, &op, key_id.as_deref())) {
        Some(refusal) => Err(refusal),
        None => authorized(&shared, &head.method, &head.headers)
            .and(input)
            .and_then(|input| operation::perform(&mut lock(&shared.account), &op, &input)),
    };
    if failure == Some(Failure::ResetMidBody) {
        return Ok(broken(answer, &request_id));
    }
    visit.settle(match &answer {
        Ok(_) => Outcome::Succeeded,
        Err(refusal) => Outcome::Refused(refusal.code.to_owned()),
    });
    let (status, mut body) = encoded(answer);
    if let Some(Failure::Lie(lie)) = failure {
        body = lie::told(lie, &body);
    }
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = response(status, &request_id, body);
    let ahead = shared.clock_ahead.load(Ordering::Relaxed);
    if ahead != 0 {
        let now = DateTime::from(std::time::SystemTime::now()).secs();
        let date = DateTime::from_secs(now + ahead).fmt(Format::HttpDate).unwrap();
        response.headers_mut().insert(header::DATE, http::HeaderValue::from_str(&date).unwrap());
    }
    Ok(response)
}

/// The failures that are an answer.
fn refused(failure: Failure, op: &str, key_id: Option<&str>) -> Option<Refusal> {
    match failure {
        Failure::Internal => Some(Refusal::internal()),
        Failure::Throttled => Some(Refusal::throttled()),
        Failure::AccessDenied => Some(Refusal::access_denied(ACCOUNT, op, key_id)),
        Failure::ExpiredToken => Some(Refusal::expired_token()),
        Failure::UnrecognizedClient => Some(Refusal::unrecognized_client()),
        Failure::Reset | Failure::ResetMidBody | Failure::Hang | Failure::Lie(_) | Failure::Flood(_) => None,
    }
}

/// Closing after this sends RST instead of FIN.
fn reset(socket: &OwnedFd) -> io::Error {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    io::Error::from(io::ErrorKind::ConnectionReset)
}

/// Promises the whole body, sends half of it, and closes.
fn broken(answer: Result<Value, Refusal>, request_id: &str) -> Response<Body> {
    let (status, whole) = encoded(answer);
    let half = Some(whole.slice(..whole.len() / 2));
    let frames = futures_util::stream::unfold(half, |half| async {
        if let Some(half) = half {
            return Some((Ok(Frame::data(half)), None));
        }
        // Pending once, so that the head and half of the body are written out before the end.
        tokio::task::yield_now().await;
        Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None))
    });
    let mut response = response(status, request_id, StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_LENGTH, whole.len().into());
    response
}

fn encoded(answer: Result<Value, Refusal>) -> (StatusCode, Bytes) {
    let (status, value) = match answer {
        Ok(value) => (StatusCode::OK, value),
        Err(refusal) => (StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST), refusal.body()),
    };
    (status, Bytes::from(value.to_string()))
}

fn response(status: StatusCode, request_id: &str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/x-amz-json-1.1"));
    if let Ok(id) = http::HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

fn parse(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Refusal::serialization("a JSON object is expected")),
        Err(_) => Err(Refusal::serialization("the request is not JSON")),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `Credential=<access key>/<date>/<region>/kms/aws4_request` of the signature.
fn credential(headers: &HeaderMap) -> Option<Vec<&str>> {
    let (_, scope) = text(headers, "authorization")?.split_once("Credential=")?;
    Some(scope.split(',').next()?.split('/').collect())
}

/// Only that the request is signed for this region: the signature itself is the SDK's own business.
fn authorized(shared: &Shared, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    if method != Method::POST {
        return Err(Refusal::unknown_operation());
    }
    let credential = credential(headers).ok_or_else(Refusal::missing_authentication)?;
    if credential.get(2) != Some(&lock(&shared.account).region.as_str()) || credential.get(3) != Some(&"kms") {
        return Err(Refusal::wrong_region());
    }
    Ok(())
}

fn recorded(op: &str, input: Option<&Map<String, Value>>, headers: &HeaderMap, request_id: &str) -> Call {
    let member = |name| input.and_then(|input| input.get(name));
    let key_id = member("KeyId").or_else(|| member("TargetKeyId")).and_then(Value::as_str).map(str::to_owned);
    let context = member("EncryptionContext").and_then(Value::as_object).into_iter().flatten();
    Call {
        op: op.to_owned(),
        key_id,
        context: context.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect(),
        user_agent: text(headers, "user-agent").map(str::to_owned),
        access_key: credential(headers).and_then(|parts| parts.first().map(|&key| key.to_owned())),
        request_id: request_id.to_owned(),
        outcome: Outcome::Unanswered,
    }
}
