//! Lines that wait to be written: whoever logs never waits for whoever reads.
//!
//! Guarantees: each line is written once, in the order in which they came, all of them when the [`Writer`] is dropped; within
//! 40 ms, as long as stderr is read and the thread that serves rests now and then. A stderr that is not read stops the log's own
//! thread and nothing else: up to 8 MiB wait, what does not fit is dropped and counted.
//!
//! Two write. The thread that serves does so itself when it has nothing else to do ([`Lines::rest`]) and a write that does not
//! wait is all that it takes (RWF_NOWAIT): when it is quiet, a line costs neither a second thread nor its wake-ups, and when
//! requests come one after the other, what ten milliseconds bring is one write. The log's own thread has what is left: the lines
//! of other threads, what is still there after 40 ms, and a stderr that cannot take a write now, or never without waiting.
//! SPEC: preadv2(2).

use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::MonotonicClock;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Time between two writes of the thread that serves, at least.
const GATHER: Duration = Duration::from_millis(10);
/// How long a line waits for that thread before the log's own writes it.
const PATIENCE: Duration = Duration::from_millis(40);
/// Bytes that are written without waiting for more: what a pipe holds.
const ENOUGH: usize = 64 * 1024;
/// Bytes that may wait.
const WAITING_MAX: usize = 8 << 20;
/// Bytes of memory that are kept for the next lines.
const KEPT: usize = 4 * ENOUGH;
/// How long the end of the process waits for whoever reads.
const GOODBYE: Duration = Duration::from_secs(1);
/// Bytes of stack: it writes and waits.
const STACK: usize = 64 * 1024;

/// The way in for lines.
#[derive(Clone, Debug)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    to: File,
    clock: MonotonicClock,
    state: Mutex<State>,
    /// There is something for the log's own thread, or it has ended.
    changed: Condvar,
    dropped: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// Whole lines that nobody has begun to write, but for a first one that may have been written in part.
    waiting: Vec<u8>,
    /// When the first of them came.
    since: Moment,
    /// When the thread that serves wrote for the last time; `None` before that.
    rested: Option<Moment>,
    /// The thread that serves and calls [`Lines::rest`].
    serving: Option<ThreadId>,
    /// Whether a write that does not wait is worth a try: not every kind of file has it.
    may_write_at_once: bool,
    own: Own,
    is_closed: bool,
}

/// What the log's own thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    /// Sleeps until it is woken.
    Asleep,
    /// Looks whether a line has waited too long.
    Watching,
    /// Is to write as soon as it can.
    Called,
    /// Writes what it took; whatever comes meanwhile goes after that.
    Writing,
    /// Has written everything, after the end was announced.
    Ended,
}

/// Writes what is left when it is dropped, if that takes no more than a second: a stderr that nobody reads stops no end.
#[derive(Debug)]
pub(super) struct Writer(Lines);

impl Writer {
    /// Starts the log's own thread.
    ///
    /// # Errors
    /// When there can be no other thread.
    pub(super) fn start(to: File) -> io::Result<Self> {
        let state = State {
            waiting: Vec::new(),
            since: Moment::default(),
            rested: None,
            serving: None,
            may_write_at_once: true,
            own: Own::Asleep,
            is_closed: false,
        };
        let shared = Shared {
            to,
            clock: MonotonicClock::new(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            dropped: AtomicUsize::new(0),
        };
        let lines = Lines(Arc::new(shared));
        let shared = Arc::clone(&lines.0);
        thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(move || shared.run())?;
        Ok(Self(lines))
    }

    pub(super) fn lines(&self) -> Lines {
        self.0.clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.is_closed = true;
        shared.changed.notify_all();
        drop(shared.changed.wait_timeout_while(state, GOODBYE, |state| state.own != Own::Ended));
    }
}

impl Lines {
    /// Lines that were dropped so far.
    pub(super) fn dropped(&self) -> usize {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// The thread that serves has nothing else to do: it writes what waits, if that takes no waiting and the last time was not just
    /// now. From the first call on, its lines wait for the next.
    pub(super) fn rest(&self) {
        let mut state = self.0.lock();
        if state.waiting.is_empty() || matches!(state.own, Own::Called | Own::Writing | Own::Ended) {
            return;
        }
        let now = self.0.clock.now();
        let is_just_now = state.rested.is_some_and(|rested| now.since(rested) < GATHER);
        if is_just_now && state.waiting.len() < ENOUGH {
            self.0.watch(&mut state);
            return;
        }
        if state.serving.is_none() {
            state.serving = Some(thread::current().id());
        }
        state.rested = Some(now);
        if !self.0.write_at_once(&mut state) {
            self.0.call(&mut state);
        }
    }

    /// Nobody will call [`Lines::rest`] any more.
    pub(super) fn no_more_rest(&self) {
        let mut state = self.0.lock();
        state.serving = None;
        state.may_write_at_once = false;
        self.0.call(&mut state);
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.waiting.len().saturating_add(line.len()) > WAITING_MAX {
            drop(state);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if state.waiting.is_empty() {
            state.since = self.0.clock.now();
        }
        state.waiting.extend_from_slice(line);
        // A thread that serves without a pause does not rest.
        let will_rest = state.serving == Some(thread::current().id()) && state.waiting.len() < 2 * ENOUGH;
        if !will_rest {
            self.0.watch(&mut state);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, state: &mut State) {
        if state.own == Own::Asleep {
            state.own = Own::Watching;
            self.changed.notify_all();
        }
    }

    fn call(&self, state: &mut State) {
        if matches!(state.own, Own::Asleep | Own::Watching) {
            state.own = Own::Called;
            self.changed.notify_all();
        }
    }

    /// Whether everything is written.
    fn write_at_once(&self, state: &mut State) -> bool {
        if !state.may_write_at_once {
            return false;
        }
        match pwritev2(&self.to, &[IoSlice::new(&state.waiting)], u64::MAX, ReadWriteFlags::NOWAIT) {
            Ok(written) => {
                state.waiting.drain(..written.min(state.waiting.len()));
                state.waiting.is_empty()
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // No such call, or not for this kind of file; or nobody reads any more, which the other thread will find as well.
            Err(_) => {
                state.may_write_at_once = false;
                false
            }
        }
    }

    /// The log's own thread.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let waited = self.clock.now().since(state.since);
            let is_due = state.own == Own::Called || state.is_closed || waited >= PATIENCE;
            if state.waiting.is_empty() {
                if state.is_closed {
                    state.own = Own::Ended;
                    self.changed.notify_all();
                    return;
                }
                state.own = Own::Asleep;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if is_due {
                state.own = Own::Writing;
                let mut lines = std::mem::take(&mut state.waiting);
                drop(state);
                // A log that cannot be written stays silent.
                (&self.to).write_all(&lines).ok();
                lines.clear();
                lines.shrink_to(KEPT);
                state = self.lock();
                if state.waiting.is_empty() {
                    state.waiting = lines;
                }
                state.own = Own::Watching;
            } else {
                let left = PATIENCE.saturating_sub(waited);
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "who writes when is a matter of real time")]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read, Seek};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;
    use std::time::Instant;

    fn on_a_pipe() -> (PipeReader, Writer) {
        let (from, to) = io::pipe().unwrap();
        (from, Writer::start(File::from(OwnedFd::from(to))).unwrap())
    }

    /// What can be read without waiting.
    fn there(from: &PipeReader) -> String {
        rustix::io::ioctl_fionbio(from, true).unwrap();
        let mut bytes = Vec::new();
        let _ = (&mut &*from).read_to_end(&mut bytes);
        rustix::io::ioctl_fionbio(from, false).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn own(lines: &Lines) -> Own {
        lines.0.lock().own
    }

    #[test]
    fn when_it_is_quiet_the_thread_that_serves_writes_by_itself() {
        let (from, writer) = on_a_pipe();
        let lines = writer.lines();
        lines.push(b"at first nobody rests\n");
        assert_eq!(own(&lines), Own::Watching);
        thread::sleep(PATIENCE * 3);
        assert_eq!(there(&from), "at first nobody rests\n");
        lines.push(b"one\n");
        lines.rest();
        while own(&lines) != Own::Asleep {
            thread::sleep(PATIENCE);
        }
        there(&from);
        for _ in 0..3 {
            thread::sleep(GATHER * 2);
            lines.push(b"two\n");
            assert_eq!(own(&lines), Own::Asleep, "it will rest");
            assert_eq!(there(&from), "");
            lines.rest();
            assert_eq!(there(&from), "two\n");
            assert_eq!(own(&lines), Own::Asleep);
        }
    }

    #[test]
    fn lines_that_come_one_after_the_other_are_written_together_and_the_last_ones_soon() {
        let (from, writer) = on_a_pipe();
        let lines = writer.lines();
        let mut expected = String::new();
        for n in 0..1000 {
            let line = format!("{n}\n");
            lines.push(line.as_bytes());
            lines.rest();
            expected.push_str(&line);
        }
        let (began, mut seen, mut reads) = (Instant::now(), String::new(), 0);
        while seen.len() < expected.len() {
            let more = there(&from);
            reads += u32::from(!more.is_empty());
            seen.push_str(&more);
            assert!(began.elapsed() < Duration::from_secs(10), "{} of {}", seen.len(), expected.len());
        }
        assert_eq!(seen, expected);
        assert!(reads < 100, "{reads} writes");
    }

    #[test]
    fn whoever_does_not_read_holds_nobody_up_and_what_does_not_fit_is_counted() {
        let (mut from, writer) = on_a_pipe();
        let lines = writer.lines();
        let line = |n: usize| format!("{n:0>99}\n");
        // More than a pipe, the batch that is being written and all that may wait can hold.
        let count = 3 * WAITING_MAX / 100;
        let mut slowest = Duration::ZERO;
        for n in 0..count {
            let began = Instant::now();
            lines.push(line(n).as_bytes());
            lines.rest();
            slowest = slowest.max(began.elapsed());
        }
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        let dropped = lines.dropped();
        assert!(dropped > 0);
        let reader = thread::spawn(move || {
            let mut all = String::new();
            from.read_to_string(&mut all).unwrap();
            all
        });
        drop((lines, writer));
        let all = reader.join().unwrap();
        let seen: Vec<usize> = all.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(seen.len() + dropped, count);
        assert!(seen.is_sorted_by(|a, b| a < b), "each once, in order");
    }

    /// Reads all of it, slower than it is written.
    fn slowly(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let (mut all, mut part) = (Vec::new(), vec![0; 50_000]);
            loop {
                match from.read(&mut part).unwrap() {
                    0 => return all,
                    read => all.extend_from_slice(&part[..read]),
                }
                thread::sleep(Duration::from_millis(1));
            }
        })
    }

    /// A pipe to a container's runtime, a socket to journald, a file: each is now full and now empty, or takes no such write.
    #[test]
    fn every_kind_of_stderr_gets_every_line_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let (from_pipe, pipe) = io::pipe().unwrap();
        let (from_socket, socket) = UnixStream::pair().unwrap();
        let readers = [slowly(from_pipe), slowly(from_socket)];
        let mut expected = Vec::new();
        for to in [OwnedFd::from(pipe), socket.into(), file.try_clone().unwrap().into()] {
            let writer = Writer::start(File::from(to)).unwrap();
            let lines = writer.lines();
            expected.clear();
            for n in 0..30_000_u32 {
                let line = format!("{n} {}\n", "x".repeat(usize::try_from(n % 97).unwrap()));
                lines.push(line.as_bytes());
                expected.extend_from_slice(line.as_bytes());
                if n % 7 == 0 {
                    lines.rest();
                }
                if n % 3000 == 0 {
                    thread::sleep(GATHER * 2);
                }
            }
            lines.no_more_rest();
            lines.push(b"the end\n");
            expected.extend_from_slice(b"the end\n");
        }
        for reader in readers {
            assert!(reader.join().unwrap() == expected, "a pipe or a socket");
        }
        file.rewind().unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert!(all == expected, "a file");
    }

    #[test]
    fn other_threads_need_nobody_to_rest() {
        let (mut from, writer) = on_a_pipe();
        let lines = writer.lines();
        lines.push(b"x\n");
        lines.rest();
        let other = lines.clone();
        thread::spawn(move || other.push(b"y\n")).join().unwrap();
        let mut two = [0; 4];
        // Without an end if nobody wrote it.
        from.read_exact(&mut two).unwrap();
        assert_eq!(&two, b"x\ny\n");
    }

    #[test]
    fn a_reader_that_is_gone_stops_nothing() {
        let (from, writer) = on_a_pipe();
        drop(from);
        let lines = writer.lines();
        for _ in 0..100 {
            lines.push(b"nobody reads this\n");
            lines.rest();
        }
        assert_eq!(lines.dropped(), 0);
    }
}
