//! gRPC on a unix socket by hand, on `h2`: what a server does wrong below its RPCs.
//!
//! Guarantees: without a [`Fault`] it is a server as any other: each connection and each stream by itself, a cancelled
//! call is dropped, what is unknown is Unimplemented, what cannot be decoded is refused on its own stream.

use super::fault::Fault;
use super::sound::Sound;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use kms_v2_api::v2::StatusRequest;
use prost::Message;
use rustix::net::RecvFlags;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use tonic::Status;

const SERVICE: &str = "/v2.KeyManagementService/";
const PATH_AS_AUTHORITY: &[u8] = b"%2Frun%2Fkms.sock";
const MESSAGE_MAX: usize = 4 << 20;
/// What [`Fault::LongIsReset`] reads of a message.
const LONG: usize = 64 << 10;
/// Places for Decrypts on one connection.
const PLACES: usize = 300;

/// The connection that a call came on.
#[derive(Debug)]
pub struct Peer {
    pub number: usize,
    /// Connections that were open when this one came, itself included.
    pub crowd: usize,
    pub flight: Flight,
    places: Semaphore,
    hang_up: Notify,
}

/// One unwrap that several calls wait for: the first call on a connection makes it, and takes a while.
#[derive(Debug, Default)]
pub struct Flight(Mutex<Option<watch::Receiver<bool>>>);

impl Flight {
    pub async fn join(&self) -> Result<(), Status> {
        let (lead, mut done) = {
            let mut flight = self.0.lock().unwrap();
            match &*flight {
                Some(done) => (None, done.clone()),
                None => {
                    let (sender, done) = watch::channel(false);
                    *flight = Some(done.clone());
                    (Some(sender), done)
                }
            }
        };
        if let Some(lead) = lead {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            lead.send_replace(true);
        }
        // Whoever leads drops the sender when it is cancelled; those who come later need no unwrap any more.
        let ended = done.wait_for(|over| *over).await.is_ok();
        if ended { Ok(()) } else { Err(Status::cancelled("the caller has gone away")) }
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: UnixListener, plugin: Arc<Sound>) {
    let (open, newest) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(0));
    for number in 1.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (plugin, open, newest) = (Arc::clone(&plugin), Arc::clone(&open), newest.clone());
        let crowd = open.fetch_add(1, Ordering::SeqCst) + 1;
        newest.send_replace(number);
        tokio::spawn(async move {
            let peer = Peer {
                number,
                crowd,
                flight: Flight::default(),
                places: Semaphore::new(PLACES),
                hang_up: Notify::new(),
            };
            let _ = connection(stream, plugin, peer, newest.subscribe()).await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn connection(
    stream: UnixStream,
    plugin: Arc<Sound>,
    peer: Peer,
    mut newest: watch::Receiver<usize>,
) -> Result<(), h2::Error> {
    let fault = plugin.fault;
    let minds_paths = matches!(fault, Fault::PathUnanswered | Fault::PathRefusedLate | Fault::BusyAtFirst);
    if minds_paths && says(&stream, PATH_AS_AUTHORITY).await {
        match fault {
            Fault::PathUnanswered => std::future::pending().await,
            Fault::BusyAtFirst if !plugin.is_busy_with_a_path() => {}
            _ => tokio::time::sleep(Duration::from_millis(1300)).await,
        }
        return Ok(());
    }
    if fault == Fault::SettingsLate {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let streams = match fault {
        Fault::FewStreams => 10,
        Fault::SettingsLate => 200,
        _ => 10_000,
    };
    let mut builder = h2::server::Builder::new();
    let mut connection = builder.max_concurrent_streams(streams).handshake::<_, Bytes>(stream).await?;
    let peer = Arc::new(peer);
    let idle = if fault == Fault::IdleHungUp { Duration::from_secs(60) } else { Duration::MAX };
    loop {
        let superseded = async {
            if fault != Fault::NewestConnectionOnly {
                std::future::pending::<()>().await;
            }
            let _ = newest.wait_for(|newest| *newest > peer.number).await;
        };
        tokio::select! {
            request = connection.accept() => match request {
                Some(request) => {
                    let (request, respond) = request?;
                    tokio::spawn(call(Arc::clone(&plugin), Arc::clone(&peer), request, respond));
                }
                None => return Ok(()),
            },
            () = superseded => connection.abrupt_shutdown(Reason::NO_ERROR),
            () = peer.hang_up.notified() => connection.abrupt_shutdown(Reason::PROTOCOL_ERROR),
            () = tokio::time::sleep(idle) => connection.graceful_shutdown(),
        }
        if fault == Fault::NewestConnectionOnly && *newest.borrow() > peer.number {
            // Lets what it says get out.
            let _ = tokio::time::timeout(Duration::from_millis(20), connection.accept()).await;
            return Ok(());
        }
    }
}

/// Whether this is in the first bytes that came. They stay where they are.
async fn says(stream: &UnixStream, words: &[u8]) -> bool {
    let mut first = [0; 1024];
    while stream.readable().await.is_ok() {
        match rustix::net::recv(stream, &mut first, RecvFlags::PEEK) {
            Ok((_, n)) => return first[..n].windows(words.len()).any(|w| w == words),
            Err(rustix::io::Errno::AGAIN) => tokio::task::yield_now().await,
            Err(_) => return false,
        }
    }
    false
}

/// One call, dropped when it is cancelled.
async fn call(plugin: Arc<Sound>, peer: Arc<Peer>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let is_decrypt = request.uri().path().ends_with("/Decrypt");
    let place = match plugin.fault {
        Fault::CancelledKeepTheirPlace if is_decrypt => Some(peer.places.acquire().await.unwrap()),
        _ => None,
    };
    let (fault, zipped) = (plugin.fault, request.headers().contains_key("grpc-accept-encoding"));
    tokio::select! {
        answer = answered(&plugin, &peer, request) => {
            drop(place);
            if let Some(answer) = answer {
                respond_with(fault, zipped, answer, &mut respond);
            }
        }
        _ = poll_fn(|cx| respond.poll_reset(cx)) => {
            plugin.cancelled();
            if let Some(place) = place {
                place.forget();
            }
        }
    }
}

/// What is to be sent: a message, a gRPC status, an HTTP status.
enum Answer {
    Message(Vec<u8>),
    Status(Status),
    Http(u16),
}

/// `None` when there will be no answer.
async fn answered(plugin: &Sound, peer: &Peer, request: Request<RecvStream>) -> Option<Answer> {
    let (head, mut stream) = request.into_parts();
    if let Some(refusal) = minded(plugin.fault, &head) {
        return Some(refusal);
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.ok()?;
        let _ = stream.flow_control().release_capacity(chunk.len());
        body.extend(chunk);
        if plugin.fault == Fault::LongIsReset && body.len() > LONG {
            return None;
        }
    }
    let asked = head.headers.get("grpc-timeout").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if asked == "50m" && (plugin.fault == Fault::DeadlineIgnored || plugin.is_busy_with_a_deadline()) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let path = head.uri.path();
    let method = path.strip_prefix(SERVICE);
    let method = if plugin.fault == Fault::AnyServiceAnswered { path.rsplit('/').next() } else { method };
    let answer = match method {
        Some("Status") => match message::<StatusRequest>(plugin.fault, &body).await {
            Ok(_) => plugin.status().await.map(|m| m.encode_to_vec()),
            Err(status) => Err(status),
        },
        Some("Encrypt") => match message(plugin.fault, &body).await {
            Ok(request) => plugin.encrypt(peer, request).await.map(|m| m.encode_to_vec()),
            Err(status) => Err(status),
        },
        Some("Decrypt") => match message(plugin.fault, &body).await {
            Ok(request) => plugin.decrypt(peer, request, &body).await.map(|m| m.encode_to_vec()),
            Err(status) => Err(status),
        },
        _ => match plugin.fault {
            Fault::ServesV1 if path == "/v1beta1.KeyManagementService/Version" => Ok(Vec::new()),
            Fault::UnknownPathIsNotFound => return Some(Answer::Http(404)),
            Fault::UnknownPathIsInternal => Err(Status::internal("no handler")),
            Fault::UnknownPathHangsUp => {
                peer.hang_up.notify_one();
                return None;
            }
            _ => Err(Status::unimplemented("")),
        },
    };
    if answer.as_ref().is_err_and(|status| status.message() == UNREADABLE) {
        match plugin.fault {
            Fault::MalformedIsAnswered => return Some(Answer::Message(Vec::new())),
            Fault::MalformedHangsUp => {
                peer.hang_up.notify_one();
                return None;
            }
            _ => {}
        }
    }
    Some(answer.map_or_else(Answer::Status, Answer::Message))
}

/// What a server that minds authority and headers says to them.
fn minded(fault: Fault, head: &http::request::Parts) -> Option<Answer> {
    let authority = head.uri.authority().map_or("", |a| a.as_str());
    let strange = || head.headers.keys().any(|name| name.as_str().starts_with("x-"));
    match fault {
        Fault::LocalhostRefused if authority == "localhost" => Some(Answer::Http(421)),
        Fault::AtNameRefused if authority.starts_with('@') => Some(Answer::Http(400)),
        Fault::AuthorityDemanded if authority.is_empty() => Some(Answer::Http(400)),
        Fault::UnknownHeaderRefused if strange() => Some(Answer::Status(Status::invalid_argument("a strange header"))),
        _ => None,
    }
}

const UNREADABLE: &str = "the message cannot be decoded";

/// The one message in a body.
async fn message<M: Message + Default>(fault: Fault, body: &[u8]) -> Result<M, Status> {
    let whole = body.split_first_chunk::<5>().and_then(|([flag, length @ ..], message)| {
        let fits = usize::try_from(u32::from_be_bytes(*length)) == Ok(message.len());
        (*flag == 0 && fits && message.len() <= MESSAGE_MAX).then_some(message)
    });
    match whole.and_then(|message| M::decode(message).ok()) {
        Some(message) => Ok(message),
        None => match fault {
            Fault::MalformedUnanswered => std::future::pending().await,
            _ => Err(Status::invalid_argument(UNREADABLE)),
        },
    }
}

fn respond_with(fault: Fault, zipped: bool, answer: Answer, respond: &mut SendResponse<Bytes>) {
    let kind = if fault == Fault::ContentType { "application/json" } else { "application/grpc" };
    let mut head = Response::builder().header("content-type", kind);
    let message = match answer {
        Answer::Http(status) => {
            let _ = respond.send_response(head.status(status).body(()).unwrap(), true);
            return;
        }
        Answer::Status(status) => {
            head = head.header("grpc-status", i32::from(status.code())).header("grpc-message", status.message());
            let _ = respond.send_response(head.body(()).unwrap(), true);
            return;
        }
        Answer::Message(message) => message,
    };
    let zipped = zipped && fault == Fault::GzipWhereOffered;
    if zipped {
        head = head.header("grpc-encoding", "gzip");
    }
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[u8::from(zipped)][..], &length, &message].concat();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    // The caller may have gone.
    if let Ok(mut stream) = respond.send_response(head.body(()).unwrap(), false) {
        let _ = stream.send_data(body.into(), false).and_then(|()| stream.send_trailers(trailers));
    }
}
