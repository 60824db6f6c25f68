//! The stream of connections that the gRPC server takes its work from.
//!
//! Guarantees: it never ends and never yields an error. A process that is out of file descriptors for a moment keeps its
//! listener and goes on, where ending the server would take the control plane down. Refused uids and accept errors are
//! logged, at most one line of each kind per [`LOG_EVERY`]. Refuses to know: gRPC; peers that are not allowed are passed on,
//! marked, and refused there. SPEC: accept(2), whose errors include those of the connection that is taken.

use super::peer::{AllowedUids, PeerStream};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_service::peer::Peer;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

/// Time between two log lines of the same kind.
pub const LOG_EVERY: Duration = Duration::from_secs(10);
/// Time to wait after an error that trying again at once would only repeat.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections as they come in. Dropping it closes the listener: no new connection, the accepted ones live on.
#[derive(Debug)]
pub struct Incoming(AcceptLoop<UnixListener>);

impl Incoming {
    /// Accepts from a non-blocking listener. Must be called inside a runtime with I/O and time enabled.
    ///
    /// # Errors
    /// When the listener cannot be registered with the runtime.
    pub fn new(listener: StdListener, allowed: AllowedUids, clock: Arc<dyn Clock>) -> io::Result<Self> {
        Ok(Self(AcceptLoop::new(UnixListener::from_std(listener)?, allowed, clock)))
    }
}

/// # Cancel safety
/// A connection is either yielded or still in the listener's queue.
impl Stream for Incoming {
    type Item = io::Result<PeerStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(cx).map(|peer| Some(Ok(peer)))
    }
}

/// The one thing that the loop needs of a listener; tests script its errors.
trait PollAccept {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>>;
}

impl PollAccept for UnixListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        Self::poll_accept(self, cx).map_ok(|(stream, _)| stream)
    }
}

#[derive(Debug)]
struct AcceptLoop<L> {
    listener: L,
    allowed: AllowedUids,
    clock: Arc<dyn Clock>,
    pause: Option<Pin<Box<Sleep>>>,
    errors: Quiet,
    refusals: Quiet,
}

impl<L: PollAccept> AcceptLoop<L> {
    fn new(listener: L, allowed: AllowedUids, clock: Arc<dyn Clock>) -> Self {
        Self { listener, allowed, clock, pause: None, errors: Quiet::default(), refusals: Quiet::default() }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PeerStream> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            // SECURITY: a connection whose peer the kernel does not name is dropped, never served.
            let accepted = ready!(self.listener.poll_accept(cx));
            match accepted.and_then(|stream| PeerStream::identify(stream, &self.allowed)) {
                Ok(stream) => {
                    if !stream.peer().allowed {
                        self.report_refusal(stream.peer());
                    }
                    return Poll::Ready(stream);
                }
                Err(error) => {
                    self.report_error(&error);
                    if !is_about_one_connection(&error) {
                        self.pause = Some(Box::pin(sleep(PAUSE)));
                    }
                }
            }
        }
    }

    fn report_error(&mut self, error: &io::Error) {
        if let Some(unreported) = self.errors.admit(self.clock.now()) {
            tracing::warn!(target: "kube_kms::transport", %error, unreported, "a connection could not be accepted; still listening");
        }
    }

    fn report_refusal(&mut self, peer: &Peer) {
        if let Some(unreported) = self.refusals.admit(self.clock.now()) {
            let (peer_uid, pid) = (peer.uid, peer.pid);
            tracing::warn!(target: "kube_kms::transport", peer_uid, pid, unreported, "refusing calls of a peer whose uid is not in listen.allowUids");
        }
    }
}

/// Whether only the connection being taken is gone; the next one may be fine, so there is nothing to wait for.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::Interrupted
    )
}

/// Lets one line through per [`LOG_EVERY`] and counts the others.
#[derive(Debug, Default)]
struct Quiet {
    last: Option<Moment>,
    unreported: u64,
}

impl Quiet {
    /// How many were held back since the last line, when this one may be written.
    fn admit(&mut self, now: Moment) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < LOG_EVERY) {
            self.unreported = self.unreported.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    #[derive(Debug, Default)]
    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn now(&self) -> Moment {
            Moment(self.0.load(Ordering::Relaxed))
        }
    }

    struct Scripted {
        errors: RefCell<VecDeque<Errno>>,
        then: Cell<Option<UnixStream>>,
    }

    impl PollAccept for Scripted {
        fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
            if let Some(errno) = self.errors.borrow_mut().pop_front() {
                return Poll::Ready(Err(errno.into()));
            }
            self.then.take().map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
        }
    }

    #[tokio::test]
    async fn no_error_of_accept_ends_the_stream() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let errors = [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL];
        let script = Scripted { errors: RefCell::new(errors.into()), then: Cell::new(Some(ours)) };
        let mut accept = AcceptLoop::new(script, AllowedUids::default(), Arc::new(ManualClock::default()));
        let stream = std::future::poll_fn(|cx| accept.poll(cx)).await;
        assert!(stream.peer().allowed);
        assert!(accept.listener.errors.borrow().is_empty());
        assert_eq!(accept.errors.unreported, 5, "one line for six errors");
    }

    #[tokio::test]
    async fn after_an_error_that_would_repeat_accept_waits_and_after_an_aborted_connection_it_does_not() {
        for (errno, waits) in [(Errno::MFILE, true), (Errno::CONNABORTED, false)] {
            let script = Scripted { errors: RefCell::new([errno].into()), then: Cell::new(None) };
            let mut accept = AcceptLoop::new(script, AllowedUids::default(), Arc::new(ManualClock::default()));
            let polled = std::future::poll_fn(|cx| Poll::Ready(accept.poll(cx))).await;
            assert!(polled.is_pending());
            assert_eq!(accept.pause.is_some(), waits, "{errno}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_not_allowed_is_passed_on_marked_and_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = StdListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let nobody_here = AllowedUids::parse(vec![rustix::process::geteuid().as_raw() + 1]).unwrap();
        let clock = Arc::new(ManualClock::default());
        let mut incoming = Incoming::new(listener, nobody_here, Arc::<ManualClock>::clone(&clock)).unwrap();
        for expected in [0, 1, 2] {
            let _client = UnixStream::connect(&path).await.unwrap();
            assert!(!incoming.next().await.unwrap().unwrap().peer().allowed);
            assert_eq!(incoming.0.refusals.unreported, expected);
        }
        clock.0.store(u64::try_from(LOG_EVERY.as_nanos()).unwrap(), Ordering::Relaxed);
        let _client = UnixStream::connect(&path).await.unwrap();
        let _refused = incoming.next().await.unwrap().unwrap();
        assert_eq!(incoming.0.refusals.unreported, 0, "after a while there is a line again");
    }

    #[test]
    fn a_process_without_file_descriptors_accepts_again_as_soon_as_it_has_some() {
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["accept::tests::child_without_file_descriptors", "--exact", "--ignored"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
    }

    /// Not a test of its own: what the child process of the test above does.
    #[tokio::test]
    #[ignore = "run as a child process by the test above: it uses up every file descriptor"]
    async fn child_without_file_descriptors() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = StdListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut incoming = Incoming::new(listener, AllowedUids::default(), Arc::new(ManualClock::default())).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        setrlimit(Resource::Nofile, Rlimit { current: Some(128), ..getrlimit(Resource::Nofile) }).unwrap();
        let mut hoard = Vec::new();
        while let Ok(fd) = rustix::io::dup(&client) {
            hoard.push(fd);
        }
        let starved = tokio::time::timeout(PAUSE * 3, incoming.next()).await;
        assert!(starved.is_err() && incoming.0.errors.unreported > 0, "accept failed more than once");
        drop(hoard);
        let mut served = incoming.next().await.unwrap().unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn dropping_it_stops_new_connections_and_leaves_the_accepted_ones_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = StdListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut incoming = Incoming::new(listener, AllowedUids::default(), Arc::new(ManualClock::default())).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut served = incoming.next().await.unwrap().unwrap();
        drop(incoming);
        // A child process that another test is starting just now may hold a copy of the listener for a moment.
        let refusal = loop {
            match UnixStream::connect(&path).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused);
        client.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
    }
}
