//! One HTTP/2 connection: takes requests in, has them answered, and ends well.
//!
//! Guarantees: what has arrived together is answered together, so that the answers share one write; a request that can be answered
//! from memory is answered on the spot, anything else in a task of its own, so that nothing waits for it; after `stop` there is
//! a GOAWAY, and running calls end. Refuses to know what a request asks. SPEC: RFC 9113.

use crate::grpc::server::KmsServer;
use crate::service::peer::Peer;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http::Request;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Calls at once on one connection; more wait at the client.
const STREAMS_MAX: u32 = 200;
/// Bytes of all headers of a request.
const HEADERS_MAX: u32 = 16 * 1024;
/// Bytes that a client may send before it is read, for a call and for a connection.
const WINDOW: u32 = 1 << 20;

/// A request with the way back.
type Arrival = (Request<RecvStream>, SendResponse<Bytes>);

/// Serves one connection to its end.
///
/// # Cancel safety
/// Dropping the future drops the connection; its calls see that their caller is gone.
pub(super) async fn serve<C>(stream: C, server: KmsServer, peer: Peer, mut stop: watch::Receiver<bool>)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Arc::new(peer);
    let mut stopped = pin!(stop.wait_for(|stop| *stop));
    let shaken = tokio::select! {
        biased;
        shaken = settings().handshake::<_, Bytes>(stream) => shaken,
        // Whoever has not even said hello has no call to lose.
        _ = &mut stopped => return,
    };
    let Ok(mut connection) = shaken.inspect_err(|error| tracing::debug!(%error, "no HTTP/2 connection")) else {
        return;
    };
    let mut is_stopping = false;
    let mut arrived = Vec::new();
    loop {
        let is_open = poll_fn(|cx| {
            if !is_stopping && stopped.as_mut().poll(cx).is_ready() {
                connection.graceful_shutdown();
                is_stopping = true;
            }
            take_in(&mut connection, &mut arrived, cx)
        });
        let is_open = is_open.await;
        for (request, to) in arrived.drain(..) {
            let mut response = Box::pin(server.clone().respond(Arc::clone(&peer), request, to));
            // Woken by nobody: when it is not over at once, its task asks again.
            if response.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                tokio::spawn(response);
            }
        }
        if !is_open {
            return;
        }
        give_way().await;
    }
}

fn settings() -> Builder {
    let mut settings = Builder::new();
    settings
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX);
    settings
}

/// Everything that is there, and sends what waits to be sent; `false` when the connection is over.
fn take_in<C>(connection: &mut Connection<C, Bytes>, arrived: &mut Vec<Arrival>, cx: &mut Context<'_>) -> Poll<bool>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match connection.poll_accept(cx) {
            Poll::Ready(Some(Ok(arrival))) => arrived.push(arrival),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "a connection broke off");
                return Poll::Ready(false);
            }
            Poll::Ready(None) => return Poll::Ready(false),
            Poll::Pending if arrived.is_empty() => return Poll::Pending,
            Poll::Pending => return Poll::Ready(true),
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
