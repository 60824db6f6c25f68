//! The pages for operators and probes: `/metrics`, `/livez`, `/readyz`.
//!
//! Guarantees: `/livez` follows the process and never the KMS (a restart would cure nothing and lose the DEK that is
//! coasting through an outage); `/readyz` is 200 exactly when Status answers `ok`; no secret and no ARN on any page; a
//! slow or hostile client holds one of a bounded number of connections for a bounded time, and the oldest of them makes room for
//! whoever comes, so that a crowd of silent ones keeps nobody out. Refuses to know where the numbers come from ([`Pages`]). SPEC: docs/conformance.md item 81.

use crate::metrics::CONTENT_TYPE;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE as TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kube_kms_os::wall_clock;
use kube_kms_service::snapshot::Snapshot;
use kube_kms_service::waiting_room::{Place, WaitingRoom};
use serde::Serialize;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Bytes of a request's head at most; hyper's own lower bound.
const HEAD_MAX: usize = 8 * 1024;
/// How long to wait when the system has no socket to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the pages show; read once per request, from memory.
pub trait Pages: Send + Sync + 'static {
    /// The state now.
    fn snapshot(&self) -> Snapshot;
    /// The whole page of metrics.
    fn metrics(&self) -> String;
}

/// SECURITY: what a client can hold, and for how long.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once; one more, and the oldest is closed.
    connections: usize,
    /// For a client to send its request's head.
    head: Duration,
    /// For a connection from beginning to end: one request each.
    connection: Duration,
    /// For answers under way when the shutdown begins.
    drain: Duration,
}

const LIMITS: Limits = Limits {
    connections: 128,
    head: Duration::from_secs(1),
    connection: Duration::from_secs(10),
    drain: Duration::from_millis(500),
};

/// Serves the pages until `shutdown` is ready, then finishes what is being answered, half a second at most.
///
/// # Cancel safety
/// Dropping the future closes the listener and every connection.
pub async fn serve(listener: TcpListener, pages: Arc<dyn Pages>, shutdown: impl Future<Output = ()> + Send) {
    serve_within(LIMITS, listener, pages, shutdown).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    pages: Arc<dyn Pages>,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(pages);
    let places = WaitingRoom::new(limits.connections);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let stream = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener) => accepted,
        };
        connections.spawn(answer(limits, stream, router.clone(), places.enter()));
    }
    drop(listener);
    timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await.ok();
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::debug!(target: "kube_kms::telemetry", %error, "an HTTP connection could not be accepted; still listening");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One request, one answer. What goes wrong here is the client's: there is nobody to tell.
async fn answer(limits: Limits, stream: TcpStream, router: Router, mut place: Place) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        // First: a request that is there already is answered, however many come after it.
        biased;
        ended = timeout(limits.connection, connection) => if let Ok(Err(error)) = ended {
            tracing::debug!(target: "kube_kms::telemetry", %error, "an HTTP connection ended early");
        },
        () = place.is_needed() => {}
    }
}

fn router(pages: Arc<dyn Pages>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(pages)
}

async fn metrics(State(pages): State<Arc<dyn Pages>>) -> Response {
    page(StatusCode::OK, CONTENT_TYPE, pages.metrics())
}

/// INVARIANT: asks nothing (test: livez_is_ok_while_the_kek_is_revoked).
async fn livez() -> Response {
    page(StatusCode::OK, TEXT, "ok\n")
}

async fn readyz(State(pages): State<Arc<dyn Pages>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let readiness = Readiness::new(&pages.snapshot());
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if wants_json(query.as_deref(), &headers) {
        // A struct of words, flags and numbers always has a JSON form.
        let body = serde_json::to_string(&readiness).unwrap_or_default();
        return page(status, JSON, body + "\n");
    }
    page(status, TEXT, format!("{readiness}\n"))
}

async fn not_found() -> Response {
    page(StatusCode::NOT_FOUND, TEXT, "not found; there are /metrics /livez /readyz\n")
}

async fn method_not_allowed() -> Response {
    page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n")
}

fn page(status: StatusCode, content_type: &'static str, body: impl Into<String>) -> Response {
    let headers = [(TYPE, content_type), (CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body.into()).into_response()
}

fn wants_json(query: Option<&str>, headers: &HeaderMap) -> bool {
    let asked = query.is_some_and(|q| q.split('&').any(|pair| pair == "output=json"));
    asked || headers.get_all(ACCEPT).iter().any(|v| v.to_str().is_ok_and(|v| v.contains(JSON)))
}

/// What `/readyz` says. SECURITY: the KEK is not in it: its ARN names the account.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    state: &'static str,
    reason: Option<&'static str>,
    key_id: Option<String>,
    key_id_hash: Option<String>,
    /// When what is wrong began: the last good probe, RFC 3339 UTC.
    since: Option<String>,
    outage_seconds: Option<u64>,
}

impl Readiness {
    fn new(snapshot: &Snapshot) -> Self {
        let began = snapshot.since.and_then(|age| wall_clock().checked_sub(age));
        Self {
            ready: snapshot.is_ok,
            state: snapshot.state,
            reason: snapshot.because.map(|reason| reason.label()),
            key_id: snapshot.key_id.as_ref().map(ToString::to_string),
            key_id_hash: snapshot.key_id.as_ref().map(|id| id.metric_hash()),
            since: began.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
            outage_seconds: snapshot.outage.map(|age| age.as_secs()),
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |value: Option<&str>| value.unwrap_or("-").to_owned();
        write!(
            f,
            "state={} reason={} key_id={} since={}",
            self.state,
            or_dash(self.reason),
            or_dash(self.key_id.as_deref()),
            or_dash(self.since.as_deref())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{self, Page};
    use crate::metrics::Metrics;
    use kube_kms_core::fault::Reason;
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    #[derive(Debug)]
    struct Fake {
        metrics: Metrics,
        snapshot: Mutex<Snapshot>,
    }

    impl Pages for Fake {
        fn snapshot(&self) -> Snapshot {
            self.snapshot.lock().unwrap().clone()
        }
        fn metrics(&self) -> String {
            self.metrics.encode(&self.snapshot(), crate::ProcessFacts::default())
        }
    }

    struct Server {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    async fn start(limits: Limits, snapshot: Snapshot) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Arc::new(Fake { metrics: Metrics::new(), snapshot: Mutex::new(snapshot) });
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(serve_within(limits, listener, pages, shutdown));
        Server { address, stop, task }
    }

    /// Sends these bytes and reads until the server closes.
    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn request(server: &Server, line: &str) -> (u16, String, String) {
        let answer = exchange(server.address, &format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    fn revoked() -> Snapshot {
        let because = Some(Reason::KekDisabled);
        let since = Some(Duration::from_secs(95));
        Snapshot { state: "revoked", because, is_ok: false, outage: None, since, ..exposition::snapshot() }
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_and_parse() {
        let server = start(LIMITS, exposition::snapshot()).await;
        let (status, head, body) = request(&server, "GET /metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains(&format!("content-type: {CONTENT_TYPE}")), "{head}");
        Page::parse(&body).unwrap();
    }

    #[tokio::test]
    async fn livez_is_ok_while_the_kek_is_revoked() {
        let server = start(LIMITS, revoked()).await;
        let (status, _, body) = request(&server, "GET /livez").await;
        assert_eq!((status, body.as_str()), (200, "ok\n"));
        assert_eq!(request(&server, "GET /readyz").await.0, 503);
    }

    #[tokio::test]
    async fn readyz_follows_status_and_says_why_in_one_line() {
        let server = start(LIMITS, revoked()).await;
        let key_id = revoked().key_id.unwrap();
        let (status, _, body) = request(&server, "GET /readyz").await;
        assert_eq!(status, 503);
        let (said, since) = body.trim_end().rsplit_once("since=").unwrap();
        assert_eq!(said, format!("state=revoked reason=kek-disabled key_id={key_id} "));
        let age = wall_clock().duration_since(humantime::parse_rfc3339(since).unwrap()).unwrap();
        assert!((95..115).contains(&age.as_secs()), "{body}");

        let server = start(LIMITS, exposition::snapshot()).await;
        let (status, _, body) = request(&server, "GET /readyz").await;
        assert_eq!(status, 200);
        let since = body.trim_end().rsplit_once("since=").unwrap().1;
        let age = wall_clock().duration_since(humantime::parse_rfc3339(since).unwrap()).unwrap();
        assert!((90..110).contains(&age.as_secs()), "{body}");

        let bare = Snapshot { key_id: None, kek: None, because: None, since: None, state: "starting", ..revoked() };
        let server = start(LIMITS, bare).await;
        assert_eq!(request(&server, "GET /readyz").await.2, "state=starting reason=- key_id=- since=-\n");
    }

    #[tokio::test]
    async fn readyz_is_json_when_asked_in_the_query_or_by_accept() {
        let server = start(LIMITS, exposition::snapshot()).await;
        let by_query = request(&server, "GET /readyz?verbose&output=json").await;
        let accept = "GET /readyz HTTP/1.1\r\nHost: x\r\nAccept: text/html, application/json;q=0.9\r\n\r\n";
        let by_accept = exchange(server.address, accept).await;
        assert!(by_query.1.contains("content-type: application/json"));
        let id = exposition::snapshot().key_id.unwrap();
        for body in [by_query.2.as_str(), by_accept.split_once("\r\n\r\n").unwrap().1] {
            let object: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(object["ready"], true);
            assert_eq!(object["state"], "coasting");
            assert_eq!(object["reason"], "kms-unreachable");
            assert_eq!(object["key_id"], id.as_str());
            assert_eq!(object["key_id_hash"], id.metric_hash());
            assert_eq!(object["outage_seconds"], 90);
        }
    }

    #[tokio::test]
    async fn no_page_names_the_kek() {
        let server = start(LIMITS, exposition::snapshot()).await;
        for path in ["/metrics", "/livez", "/readyz", "/readyz?output=json", "/elsewhere"] {
            let (_, head, body) = request(&server, &format!("GET {path}")).await;
            assert!(!body.contains("arn:") && !body.contains("111122223333"), "{path}: {body}");
            assert!(head.contains("cache-control: no-store"), "{head}");
        }
    }

    #[tokio::test]
    async fn head_has_the_headers_of_get_and_no_body() {
        let server = start(LIMITS, exposition::snapshot()).await;
        for path in ["/livez", "/readyz", "/metrics"] {
            let (status, head, body) = request(&server, &format!("HEAD {path}")).await;
            assert_eq!((status, body.as_str()), (200, ""), "{path}");
            let get = request(&server, &format!("GET {path}")).await;
            assert!(head.contains(&format!("content-length: {}", get.2.len())), "{head}");
        }
    }

    #[tokio::test]
    async fn an_unknown_path_is_404_and_another_method_405() {
        let server = start(LIMITS, exposition::snapshot()).await;
        for path in ["/", "/metrics/", "/livez/x", "/..%2fetc/passwd", "/healthz"] {
            assert_eq!(request(&server, &format!("GET {path}")).await.0, 404, "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
            for path in ["/metrics", "/livez", "/readyz"] {
                let (status, head, _) = request(&server, &format!("{method} {path}")).await;
                assert_eq!(status, 405, "{method} {path}");
                assert!(head.contains("allow: get,head"), "{head}");
            }
        }
    }

    #[tokio::test]
    async fn garbage_is_refused_and_serving_goes_on() {
        let server = start(LIMITS, exposition::snapshot()).await;
        for garbage in
            ["\0\0\0\0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET\r\n\r\n", "GET /livez HTTP/9\r\n\r\n"]
        {
            let answer = exchange(server.address, garbage).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 505"),
                "{answer}"
            );
        }
        let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_MAX));
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(long.as_bytes()).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(request(&server, "GET /livez").await.0, 200);
    }

    #[tokio::test]
    async fn a_client_that_never_finishes_its_request_is_shut_out_and_frees_its_place() {
        let limits = Limits { connections: 2, head: Duration::from_millis(100), ..LIMITS };
        let server = start(limits, exposition::snapshot()).await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\nX-Slow: ").await.unwrap();
        // Both places are taken; the first has to go at once, the other when the time for its head is over.
        assert_eq!(timeout(Duration::from_secs(5), request(&server, "GET /livez")).await.unwrap().0, 200);
        for stream in [&mut silent, &mut slow] {
            let mut rest = Vec::new();
            timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap().ok();
            assert!(!rest.starts_with(b"HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn a_connection_ends_in_time_although_the_time_for_its_head_is_not_over() {
        let connection = Duration::from_millis(200);
        let server = start(Limits { connections: 1, connection, ..LIMITS }, exposition::snapshot()).await;
        let mut unfinished = TcpStream::connect(server.address).await.unwrap();
        unfinished.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let mut rest = Vec::new();
        timeout(Duration::from_secs(4), unfinished.read_to_end(&mut rest)).await.unwrap().ok();
        assert_eq!(rest, b"");
    }

    #[tokio::test]
    async fn a_full_house_closes_the_oldest_instead_of_growing() {
        let hour = Duration::from_secs(3600);
        let limits = Limits { connections: 1, head: hour, connection: hour, ..LIMITS };
        let server = start(limits, exposition::snapshot()).await;
        let mut holder = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(request(&server, "GET /livez").await.0, 200);
        assert_eq!(holder.read(&mut [0]).await.unwrap(), 0, "it was hung up on");
    }

    /// The status of /livez; `None` when the connection is hung up on.
    async fn livez(address: SocketAddr) -> Option<u16> {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        std::str::from_utf8(&answer).ok()?.split(' ').nth(1)?.parse().ok()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_crowd_of_silent_connections_fails_no_probe() {
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
        let server = start(LIMITS, exposition::snapshot()).await;
        let (address, over, held) = (server.address, Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_over, holds) = (Arc::clone(&over), Arc::clone(&held));
        let crowd = std::thread::spawn(move || {
            let mut silent: Vec<std::net::TcpStream> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                // Whoever was hung up on comes again.
                silent.retain(|stream| {
                    stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
                });
                while silent.len() < 2 * LIMITS.connections {
                    let Ok(stream) = std::net::TcpStream::connect(address) else { break };
                    stream.set_nonblocking(true).unwrap();
                    silent.push(stream);
                    holds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for _ in 0..200 {
            while held.load(Ordering::Relaxed) < 2 * LIMITS.connections {
                tokio::task::yield_now().await;
            }
            // Whoever probes asks three times: on a busy machine a crowd may come in between connecting and being read.
            let mut asked = 0;
            while livez(address).await != Some(200) {
                asked += 1;
                assert!(asked < 3, "three times in a row without an answer");
            }
        }
        // They are hung up on and come again.
        while held.load(Ordering::Relaxed) < 4 * LIMITS.connections {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        over.store(true, Ordering::Relaxed);
        crowd.join().unwrap();
    }

    #[tokio::test]
    async fn shutdown_closes_the_listener_in_time_although_a_client_dangles() {
        let server = start(LIMITS, exposition::snapshot()).await;
        let _dangling = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(request(&server, "GET /livez").await.0, 200);
        server.stop.send(()).unwrap();
        timeout(Duration::from_secs(3), server.task).await.unwrap().unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
