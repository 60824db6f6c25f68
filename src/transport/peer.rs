//! Who is at the other end: a connection and the credentials that the kernel gives for it.
//!
//! Guarantees: the uid is the kernel's word (SO_PEERCRED), taken when the connection is accepted, never the peer's own.
//! A peer that is not allowed is marked, not cut off, so that the gRPC layer can answer PERMISSION_DENIED in words.
//! Refuses to know: gRPC, and how connections are accepted. SPEC: unix(7) SO_PEERCRED; SECURITY.md "Socket peer".

use super::flush::Flush;
use kube_kms_service::peer::Peer;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

/// The uids that may call, at least one.
///
/// SECURITY: in a user namespace the kernel shows every uid that is not mapped as 65534; allowing it allows them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedUids(Vec<u32>);

/// `listen.allowUids` is empty: nobody could ever call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no uid is allowed; list at least the one that kube-apiserver runs as, usually 0")]
pub struct NobodyAllowed;

impl AllowedUids {
    /// Takes the list of a configuration.
    ///
    /// # Errors
    /// [`NobodyAllowed`] when it is empty.
    pub fn parse(mut uids: Vec<u32>) -> Result<Self, NobodyAllowed> {
        uids.sort_unstable();
        uids.dedup();
        if uids.is_empty() { Err(NobodyAllowed) } else { Ok(Self(uids)) }
    }

    /// Whether a peer with this uid may call.
    #[must_use]
    pub fn allows(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }

    /// The list, sorted.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

/// Root and our own effective uid.
impl Default for AllowedUids {
    fn default() -> Self {
        let mut uids = vec![0, rustix::process::geteuid().as_raw()];
        uids.dedup();
        Self(uids)
    }
}

/// A connection that knows its peer.
#[derive(Debug)]
pub struct PeerStream {
    stream: UnixStream,
    peer: Peer,
    flush: Flush,
}

impl PeerStream {
    /// Asks the kernel who is at the other end.
    ///
    /// # Errors
    /// When the kernel does not say; the connection must be dropped then.
    pub fn identify(stream: UnixStream, allowed: &AllowedUids) -> io::Result<Self> {
        let (uid, pid) = credentials(&stream)?;
        let peer = Peer { uid, pid, allowed: allowed.allows(uid), session: Arc::default() };
        Ok(Self { stream, peer, flush: Flush::default() })
    }

    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }
}

fn credentials(stream: &UnixStream) -> io::Result<(u32, Option<i32>)> {
    let peer = stream.peer_cred()?;
    Ok((peer.uid(), peer.pid().and_then(visible)))
}

/// A peer outside our pid namespace (kube-apiserver in another container) has pid 0.
fn visible(pid: i32) -> Option<i32> {
    (pid > 0).then_some(pid)
}

/// The process that listens at the other end of a blocking connection, when the kernel tells.
///
/// The detour over a thread with a runtime of its own, on the way to an error message only: std has no stable way to
/// ask, and rustix reads the pid as non-zero, which is undefined behaviour for a peer outside our pid namespace.
pub(super) fn listener_pid(stream: std::os::unix::net::UnixStream) -> Option<i32> {
    let ask = move || {
        stream.set_nonblocking(true).ok()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().ok()?;
        let _inside = runtime.enter();
        credentials(&UnixStream::from_std(stream).ok()?).ok()?.1
    };
    std::thread::Builder::new().spawn(ask).ok()?.join().ok()?
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// SECURITY: the reader has to speak HTTP/2: where it would wait, it may get a frame to ignore (`flush`).
impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.flush.follow(buf.filled().get(before..).unwrap_or_default());
        } else if let Some((head, length)) = self.flush.filler(buf.remaining()) {
            buf.put_slice(&head);
            let payload = length.saturating_sub(head.len());
            buf.initialize_unfilled_to(payload).fill(0);
            buf.advance(payload);
            return Poll::Ready(Ok(()));
        }
        polled
    }
}

/// INVARIANT: not vectored. h2 flushes every DATA frame of 256 bytes or more by itself on a socket that can write
/// vectored, which costs each Encrypt a second write(2) (tested by `a_stream_never_claims_to_write_vectored`).
impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_peer_is_who_the_kernel_says_it_is() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let stream = PeerStream::identify(ours, &AllowedUids::default()).unwrap();
        let info = stream.connect_info();
        assert_eq!((info.uid, info.allowed), (me, true));
        assert_eq!(info.pid, i32::try_from(std::process::id()).ok());

        let (ours, _theirs) = UnixStream::pair().unwrap();
        let others = AllowedUids::parse(vec![me + 1]).unwrap();
        assert!(!PeerStream::identify(ours, &others).unwrap().peer().allowed);
    }

    #[tokio::test]
    async fn a_stream_never_claims_to_write_vectored() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(ours.is_write_vectored(), "the wrapper is there to hide this");
        assert!(!PeerStream::identify(ours, &AllowedUids::default()).unwrap().is_write_vectored());
        drop(theirs);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_end_is_seen() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut stream = PeerStream::identify(ours, &AllowedUids::default()).unwrap();
        theirs.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        stream.write_all(&buffer).await.unwrap();
        let slices = [IoSlice::new(b""), IoSlice::new(b"!!")];
        assert_eq!(stream.write_vectored(&slices).await.unwrap(), 2);
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"ping!!");
    }

    #[test]
    fn a_peer_in_another_pid_namespace_has_no_pid() {
        assert_eq!((visible(0), visible(7)), (None, Some(7)));
    }

    #[test]
    fn a_list_that_allows_nobody_is_refused() {
        assert_eq!(AllowedUids::parse(vec![]), Err(NobodyAllowed));
        let list = AllowedUids::parse(vec![7, 0, 7]).unwrap();
        assert_eq!(list.as_slice(), [0, 7]);
        assert!(list.allows(7) && !list.allows(1));
    }
}
