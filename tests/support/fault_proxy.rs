//! A TCP proxy that fails on purpose, to stand between the plugin and the fake KMS: what a network does and a KMS cannot.
//!
//! Guarantees: a thread and a runtime of its own; a port that the kernel chose and that stays its own while nobody listens on
//! it; [`FaultProxy::set`] holds for new connections and for those that are there; whoever was swallowed once stays dead, as
//! a connection that a NAT has forgotten. It goes away with its last handle. Refuses to know HTTP, but for where a body begins.

use super::port::{bind, bind_again};
use rustix::net::sockopt::set_socket_linger;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc as async_mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const BACKLOG: u32 = 4096;
/// Enough to fill the shortest queue that the kernel makes.
const FILLERS: usize = 8;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: everything passes.
    None,
    /// Each way, this long before the first byte and this many bytes a second after it.
    Slow { delay: Duration, bytes_per_second: usize },
    /// Connections are accepted; what is sent is swallowed; nothing ever comes back.
    BlackHole,
    /// Nobody accepts and the queue is full: a SYN is not answered.
    Deaf,
    /// A SYN is answered by RST.
    Refuse,
    /// Accepted, and reset at once.
    ResetAtConnect,
    /// Reset when half of a request has passed.
    ResetMidRequest,
    /// Reset when the head and half of the body of an answer have passed.
    ResetMidBody,
    /// The request passes; instead of an answer comes the end of the stream, and the other direction stays open.
    HalfClose,
}

/// A handle of the proxy; clones are handles of the same one.
#[derive(Clone)]
pub struct FaultProxy(Arc<Handle>);

struct Handle {
    at: SocketAddr,
    shared: Arc<Shared>,
    commands: Option<async_mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

struct Shared {
    upstream: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Moves when every connection that is there now is to be forgotten.
    stranded: watch::Sender<u64>,
    counters: Counters,
}

enum Command {
    Set(Fault, mpsc::Sender<()>),
    Flap(Vec<(Fault, Duration)>, mpsc::Sender<()>),
    Cut(mpsc::Sender<()>),
    Limit(Option<usize>, mpsc::Sender<()>),
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl FaultProxy {
    /// Starts one in front of `upstream`, with [`Fault::None`].
    pub fn start(upstream: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            upstream,
            fault: watch::Sender::new(Fault::None),
            stranded: watch::Sender::new(0),
            counters: Counters::default(),
        });
        let (commands, orders) = async_mpsc::unbounded_channel();
        let (bound, binding) = mpsc::channel();
        let served = Arc::clone(&shared);
        let run = move || run(served, orders, &bound);
        let thread = std::thread::Builder::new().name("fault-proxy".to_owned()).spawn(run).unwrap();
        let at = binding.recv().unwrap().expect("the proxy has a port");
        Self(Arc::new(Handle { at, shared, commands: Some(commands), thread: Some(thread) }))
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.at)
    }

    /// From now on, until told otherwise.
    pub fn set(&self, fault: Fault) {
        self.command(|done| Command::Set(fault, done));
    }

    /// One after the other, each for its time, over and over, until [`FaultProxy::set`].
    pub fn flap(&self, schedule: &[(Fault, Duration)]) {
        assert!(!schedule.is_empty());
        self.command(|done| Command::Flap(schedule.to_vec(), done));
    }

    /// Resets every connection now; new ones are as before.
    pub fn cut(&self) {
        self.command(Command::Cut);
    }

    /// Every connection that is there now is dead for good, and nobody is told: what a failover behind a NAT does. New ones
    /// are as before.
    pub fn strand(&self) {
        self.0.shared.stranded.send_modify(|count| *count += 1);
    }

    /// So many connections at once; more wait in the queue.
    pub fn limit_connections(&self, limit: Option<usize>) {
        self.command(|done| Command::Limit(limit, done));
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.0.shared.counters.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are there now.
    pub fn open_connections(&self) -> usize {
        self.0.shared.counters.open.load(Ordering::Relaxed)
    }

    /// The most that were there at once.
    pub fn most_connections(&self) -> usize {
        self.0.shared.counters.most_open.load(Ordering::Relaxed)
    }

    /// Bytes that were passed on: to the KMS, and back.
    pub fn bytes(&self) -> (u64, u64) {
        let counters = &self.0.shared.counters;
        (counters.bytes_up.load(Ordering::Relaxed), counters.bytes_down.load(Ordering::Relaxed))
    }

    fn command(&self, command: impl FnOnce(mpsc::Sender<()>) -> Command) {
        let (done, answer) = mpsc::channel();
        assert!(self.0.commands.as_ref().is_some_and(|c| c.send(command(done)).is_ok()), "the proxy's thread is gone");
        answer.recv().expect("the proxy's thread answers");
    }
}

fn run(
    shared: Arc<Shared>,
    orders: async_mpsc::UnboundedReceiver<Command>,
    bound: &mpsc::Sender<io::Result<SocketAddr>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match bind(SocketAddr::from(([127, 0, 0, 1], 0))).and_then(|(s, at)| Ok((s.listen(BACKLOG)?, at))) {
            Ok((listener, at)) => {
                let _ = bound.send(Ok(at));
                let door = Door::Open(listener);
                Proxy {
                    shared,
                    at,
                    door,
                    limit: None,
                    schedule: VecDeque::new(),
                    next: None,
                    connections: JoinSet::new(),
                }
                .obey(orders)
                .await;
            }
            Err(error) => drop(bound.send(Err(error))),
        }
    });
}

/// What is at the port.
enum Door {
    Open(TcpListener),
    /// Bound and not listening: SYNs are refused, and nobody else can take the port.
    Shut {
        _reserved: TcpSocket,
    },
    /// Listening with the shortest queue, which is full.
    Deaf {
        _listener: TcpListener,
        _fillers: Vec<TcpStream>,
    },
    /// On the way from one to the other.
    None,
}

struct Proxy {
    shared: Arc<Shared>,
    at: SocketAddr,
    door: Door,
    limit: Option<usize>,
    schedule: VecDeque<(Fault, Duration)>,
    next: Option<Instant>,
    connections: JoinSet<()>,
}

impl Proxy {
    async fn obey(mut self, mut orders: async_mpsc::UnboundedReceiver<Command>) {
        loop {
            let room = self.limit.is_none_or(|limit| self.connections.len() < limit);
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Command::Set(fault, done)) => {
                        (self.schedule, self.next) = (VecDeque::new(), None);
                        self.change(fault).await;
                        let _ = done.send(());
                    }
                    Some(Command::Flap(schedule, done)) => {
                        self.schedule = schedule.into();
                        self.turn().await;
                        let _ = done.send(());
                    }
                    Some(Command::Cut(done)) => {
                        self.connections.shutdown().await;
                        let _ = done.send(());
                    }
                    Some(Command::Limit(limit, done)) => {
                        self.limit = limit;
                        let _ = done.send(());
                    }
                },
                () = sleep_until(self.next.unwrap_or_else(Instant::now)), if self.next.is_some() => self.turn().await,
                accepted = accept(&self.door), if room => if let Ok(stream) = accepted {
                    self.accepted(stream);
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream) {
        let counters = &self.shared.counters;
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        // Whatever ends this connection before its own end (a cut, the end of the proxy) resets it.
        let _ = set_socket_linger(&stream, Some(Duration::ZERO));
        if *self.shared.fault.borrow() != Fault::ResetAtConnect {
            let open = Open::new(Arc::clone(&self.shared));
            self.connections.spawn(async move {
                // An error is a connection that broke, mostly on purpose.
                let _ = Connection::new(stream, &open.0).pass().await;
            });
        }
    }

    /// The next of the schedule.
    async fn turn(&mut self) {
        if let Some((fault, time)) = self.schedule.pop_front() {
            self.schedule.push_back((fault, time));
            self.next = Some(Instant::now() + time);
            self.change(fault).await;
        }
    }

    async fn change(&mut self, fault: Fault) {
        self.shared.fault.send_replace(fault);
        match (fault, &self.door) {
            (Fault::Refuse, Door::Shut { .. }) | (Fault::Deaf, Door::Deaf { .. }) => {}
            (Fault::Refuse, _) => {
                self.door = Door::None;
                self.connections.shutdown().await;
                self.door = Door::Shut { _reserved: bind_again(self.at).await.expect("the port stays ours") };
            }
            (Fault::Deaf, _) => {
                self.door = Door::None;
                self.shared.stranded.send_modify(|count| *count += 1);
                let listener = bind_again(self.at).await.and_then(|s| s.listen(0)).expect("the port stays ours");
                let mut fillers = Vec::new();
                for _ in 0..FILLERS {
                    match tokio::time::timeout(Duration::from_millis(20), TcpStream::connect(self.at)).await {
                        Ok(Ok(stream)) => fillers.push(stream),
                        _ => break,
                    }
                }
                self.door = Door::Deaf { _listener: listener, _fillers: fillers };
            }
            (_, Door::Open(_)) => {}
            (..) => {
                self.door = Door::None;
                let listener = bind_again(self.at).await.and_then(|s| s.listen(BACKLOG));
                self.door = Door::Open(listener.expect("the port stays ours"));
            }
        }
    }
}

async fn accept(door: &Door) -> io::Result<TcpStream> {
    match door {
        Door::Open(listener) => listener.accept().await.map(|(stream, _)| stream),
        Door::Shut { .. } | Door::Deaf { .. } | Door::None => std::future::pending().await,
    }
}

/// Counted for as long as it lives.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        let open = shared.counters.open.fetch_add(1, Ordering::Relaxed) + 1;
        shared.counters.most_open.fetch_max(open, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Connection<'a> {
    client: TcpStream,
    shared: &'a Shared,
    fault: watch::Receiver<Fault>,
    stranded: watch::Receiver<u64>,
}

impl<'a> Connection<'a> {
    fn new(client: TcpStream, shared: &'a Shared) -> Self {
        Self { client, shared, fault: shared.fault.subscribe(), stranded: shared.stranded.subscribe() }
    }

    fn now(&self) -> Fault {
        *self.fault.borrow()
    }

    async fn pass(mut self) -> io::Result<()> {
        let mut server = TcpStream::connect(self.shared.upstream).await?;
        let _ = server.set_nodelay(true);
        let (mut up, mut down) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
        loop {
            tokio::select! {
                biased;
                _ = self.stranded.changed() => return self.swallow().await,
                read = self.client.read(&mut up) => match read? {
                    0 => return self.end(server).await,
                    n => self.upwards(&mut server, &up[..n]).await?,
                },
                read = server.read(&mut down) => match read? {
                    0 => {
                        let _ = set_socket_linger(&self.client, None);
                        return self.client.shutdown().await;
                    }
                    n => self.downwards(&down[..n]).await?,
                },
            }
        }
    }

    /// The client is done; it ends as it began.
    async fn end(&mut self, mut server: TcpStream) -> io::Result<()> {
        let _ = set_socket_linger(&self.client, None);
        server.shutdown().await
    }

    async fn upwards(&mut self, server: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        match self.now() {
            Fault::BlackHole => self.swallow().await,
            Fault::ResetMidRequest => {
                server.write_all(&bytes[..bytes.len() / 2]).await?;
                Err(reset())
            }
            fault => {
                self.shared.counters.bytes_up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                trickle(&mut self.fault, fault, server, bytes).await
            }
        }
    }

    async fn downwards(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.now() {
            Fault::BlackHole => self.swallow().await,
            Fault::ResetMidBody => {
                let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 4);
                self.client.write_all(&bytes[..head + (bytes.len() - head) / 2]).await?;
                // So that the client has seen it before the reset, which throws away what is not read yet.
                sleep(Duration::from_millis(50)).await;
                Err(reset())
            }
            Fault::HalfClose => {
                self.client.shutdown().await?;
                self.swallow().await
            }
            fault => {
                self.shared.counters.bytes_down.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                trickle(&mut self.fault, fault, &mut self.client, bytes).await
            }
        }
    }

    /// Takes everything, gives nothing, until the client goes away.
    async fn swallow(&mut self) -> io::Result<()> {
        let mut sink = vec![0; 16 * 1024];
        while self.client.read(&mut sink).await? > 0 {}
        Err(reset())
    }
}

/// Writes as fast as the fault allows; at once when it ends meanwhile.
async fn trickle(
    faults: &mut watch::Receiver<Fault>,
    fault: Fault,
    to: &mut TcpStream,
    bytes: &[u8],
) -> io::Result<()> {
    let Fault::Slow { delay, bytes_per_second } = fault else { return to.write_all(bytes).await };
    faults.mark_unchanged();
    let mut rest = bytes;
    let mut pause = delay;
    while !rest.is_empty() {
        tokio::select! {
            () = sleep(pause) => {}
            _ = faults.changed() => return to.write_all(rest).await,
        }
        let (now, later) = rest.split_at((bytes_per_second / 20).max(1).min(rest.len()));
        to.write_all(now).await?;
        rest = later;
        pause = Duration::from_millis(50);
    }
    Ok(())
}

/// With the linger time of zero that every connection has, going away now sends RST.
fn reset() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionReset)
}
