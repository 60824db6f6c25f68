//! One HTTP/2 connection: takes requests in, has them answered, and ends well.
//!
//! Guarantees: what arrives together is answered together, so that the answers share one write (the first of a crowd may have one of
//! its own, and each with a seed in it has: `reply`); a request that can be answered from memory is answered on the spot, anything else in a task of its own, so that nothing
//! waits for it; after `stop` there is a GOAWAY, and running calls end. Refuses to know what a request asks. SPEC: RFC 9113.

use crate::message;
use crate::reply::{Outbox, Reply};
use crate::request_log::Served;
use crate::server::KmsServer;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http::Request;
use kube_kms_core::limit;
use kube_kms_service::peer::Peer;
use kube_kms_service::waiting_room::Place;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Calls at once on one connection; more wait at the client.
const STREAMS_MAX: u32 = 200;
/// Bytes of all headers of a request.
const HEADERS_MAX: u32 = 16 * 1024;
/// Until when the preface has to be there: whoever connects and says nothing is not a client.
const HELLO: Duration = Duration::from_secs(10);
/// Bytes that a client may send before it is read: for a call one message, for a connection what it may make us keep in h2.
const CALL_WINDOW: u32 = 64 * 1024 + 5;
const _: () = assert!(CALL_WINDOW as usize == limit::MESSAGE_MAX + message::HEAD, "one whole message");
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// A request with the way back.
type Arrival = (Request<RecvStream>, SendResponse<Bytes>);

/// Serves one connection to its end.
///
/// # Cancel safety
/// Dropping the future drops the connection; its calls see that their caller is gone.
pub(super) async fn serve<C>(
    stream: C,
    server: KmsServer,
    (peer, mut silent): (Peer, Place),
    mut stop: watch::Receiver<bool>,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Arc::new(peer);
    let mut stopped = pin!(stop.wait_for(|stop| *stop));
    let shaken = tokio::select! {
        biased;
        shaken = timeout(HELLO, settings().handshake::<_, Bytes>(stream)) => shaken,
        // Whoever has not even said hello has no call to lose.
        _ = &mut stopped => return,
        () = silent.is_needed() => return,
    };
    drop(silent);
    // SECURITY: without a limit, connections that never say hello would use up the file descriptors.
    let Ok(Ok(mut connection)) = shaken.inspect(|shaken| log_refusal(shaken.as_ref().err())) else {
        return;
    };
    let mut is_stopping = false;
    let (mut arrived, mut rhythm) = (Vec::new(), Rhythm::default());
    let mut answered = Answered { server: &server, all: Vec::new() };
    let (later, mut late) = mpsc::unbounded_channel::<Reply>();
    let mut outbox = Outbox::default();
    loop {
        let is_open = poll_fn(|cx| {
            if !is_stopping && stopped.as_mut().poll(cx).is_ready() {
                connection.graceful_shutdown();
                is_stopping = true;
            }
            while let Poll::Ready(Some(reply)) = late.poll_recv(cx) {
                outbox.add(reply);
            }
            let taken = take_in(&mut connection, &mut arrived, &mut rhythm, cx);
            // The answers are sent.
            answered.log();
            match taken {
                Poll::Ready(Taken::Some) => Poll::Ready(true),
                Poll::Ready(Taken::Over) => Poll::Ready(false),
                Poll::Ready(Taken::All) | Poll::Pending => {
                    outbox.written();
                    if taken.is_pending() && outbox.is_empty() { Poll::Pending } else { Poll::Ready(true) }
                }
            }
        });
        let is_open = is_open.await;
        for (request, to) in arrived.drain(..) {
            let mut response = Box::pin(server.clone().respond(Arc::clone(&peer), request, to));
            // Woken by nobody: when it is not over at once, its task asks again.
            match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(reply) => reply.into_iter().for_each(|reply| outbox.add(reply)),
                Poll::Pending => {
                    let later = later.clone();
                    // Nobody takes it when the connection is gone.
                    tokio::spawn(async move { response.await.map(|reply| later.send(reply).ok()) });
                }
            }
        }
        outbox.give(&mut answered.all);
        if !is_open {
            return;
        }
        give_way().await;
    }
}

/// Requests that are to be logged when their answers have been sent, or when the connection ends.
struct Answered<'a> {
    server: &'a KmsServer,
    all: Vec<Served>,
}

impl Answered<'_> {
    fn log(&mut self) {
        for served in self.all.drain(..) {
            self.server.log(&served);
        }
    }
}

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.log();
    }
}

fn log_refusal(error: Option<&h2::Error>) {
    if let Some(error) = error {
        tracing::debug!(target: "kube_kms::grpc", %error, "no HTTP/2 connection");
    }
}

fn settings() -> Builder {
    let mut settings = Builder::new();
    settings
        .initial_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX);
    settings
}

/// Requests one at a time, in a row, after which the next is taken for one of them.
const SINGLES: u8 = 8;

/// Whether requests come one at a time or together. To look whether there is another costs as much as all our own work, so a client
/// that has sent them one at a time has the next one answered before the look; a wrong guess costs one write, nothing else.
#[derive(Debug, Default)]
struct Rhythm {
    /// Requests since there was none.
    seen: usize,
    /// Requests in a row that were the only one.
    singles: u8,
}

impl Rhythm {
    /// Takes note of a request; whether it is answered before the next is looked for.
    const fn is_alone(&mut self) -> bool {
        self.seen = self.seen.saturating_add(1);
        self.seen == 1 && self.singles >= SINGLES
    }

    /// Takes note that no request is left. A look for nothing (h2 had something to send) says nothing about the client.
    const fn rest(&mut self) {
        self.singles = match std::mem::replace(&mut self.seen, 0) {
            0 => self.singles,
            1 => self.singles.saturating_add(1),
            _ => 0,
        };
    }
}

/// What was taken in.
enum Taken {
    /// What is to be answered before the next is looked for.
    Some,
    /// All that was there, and what waited to be written has been written as far as the client takes it. So it has on `Pending`.
    All,
    /// The connection is over.
    Over,
}

/// What is there and is to be answered together, and sends what waits to be sent.
fn take_in<C>(
    connection: &mut Connection<C, Bytes>,
    arrived: &mut Vec<Arrival>,
    rhythm: &mut Rhythm,
    cx: &mut Context<'_>,
) -> Poll<Taken>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match connection.poll_accept(cx) {
            Poll::Ready(Some(Ok(arrival))) => {
                arrived.push(arrival);
                if rhythm.is_alone() {
                    return Poll::Ready(Taken::Some);
                }
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(target: "kube_kms::grpc", %error, "a connection broke off");
                return Poll::Ready(Taken::Over);
            }
            Poll::Ready(None) => return Poll::Ready(Taken::Over),
            Poll::Pending if arrived.is_empty() => {
                rhythm.rest();
                return Poll::Pending;
            }
            Poll::Pending => return Poll::Ready(Taken::All),
        }
    }
}

/// Lets others run and comes back: h2 has asked to be polled for the answers anyway, and a poll more would find nothing to do.
async fn give_way() {
    let mut is_back = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_back, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_came_one_at_a_time_are_answered_at_once_and_after_a_crowd_they_are_gathered() {
        let mut rhythm = Rhythm::default();
        let mut alone = |requests| {
            let alone: Vec<bool> = (0..requests).map(|_| rhythm.is_alone()).collect();
            rhythm.rest();
            rhythm.rest();
            alone
        };
        for _ in 0..SINGLES {
            assert_eq!(alone(1), [false]);
        }
        assert_eq!(alone(1), [true]);
        assert_eq!(alone(3), [true, false, false], "the first of a crowd is not known to be one");
        assert_eq!(alone(3), [false; 3]);
        assert_eq!(alone(1), [false]);
    }
}
