//! Lines between whoever logs and the thread that writes them.
//!
//! Guarantees: whoever logs never waits for whoever reads; at most [`LINES_WAITING`] lines wait, more are dropped and
//! counted; lines keep their order and are written whole; what waits takes memory, what could wait takes none. Dropping
//! [`Flush`] writes what still waits, for [`LAST_LINES`] at most. Refuses to know what a line says.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written at most: about 10 MiB, and a Decrypt storm of a whole API server start.
const LINES_WAITING: usize = 32_768;
/// How long a line may wait for others to be written with.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes that are written at once at most.
const GATHERED_MAX: usize = 64 * 1024;
/// How long the end of the process may wait for whoever reads.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A line, or that there will be no more.
type Step = Option<Box<[u8]>>;

/// Where lines are put.
#[derive(Debug)]
pub(super) struct Backlog {
    steps: Sender<Step>,
    waiting: Arc<AtomicUsize>,
    dropped: DroppedLines,
}

/// How many lines were dropped because whoever reads stderr did not keep up.
#[derive(Clone, Debug, Default)]
pub struct DroppedLines(Arc<AtomicUsize>);

impl DroppedLines {
    /// So far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Writes what still waits when it is dropped.
#[derive(Debug)]
pub(super) struct Flush {
    steps: Sender<Step>,
    ended: Receiver<()>,
}

impl Drop for Flush {
    fn drop(&mut self) {
        if self.steps.send(None).is_ok() {
            // An error is the end of the thread, or a reader that does not read: either way there is nothing more to wait for.
            let _ = self.ended.recv_timeout(LAST_LINES);
        }
    }
}

impl Backlog {
    /// Starts the thread. Without one (the process may have no more) every line is dropped and counted.
    pub(super) fn start(to: impl Write + Send + 'static) -> (Self, Flush) {
        let (steps, waiting_steps) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let mut writing = Writing { steps: waiting_steps, waiting: Arc::clone(&waiting), to: gathered(to), _end: end };
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || writing.run());
        drop(thread);
        (Self { steps: steps.clone(), waiting, dropped: DroppedLines::default() }, Flush { steps, ended })
    }

    pub(super) fn dropped(&self) -> DroppedLines {
        self.dropped.clone()
    }
}

impl Write for &Backlog {
    /// Each call is one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let has_room = self.waiting.fetch_add(1, Ordering::Relaxed) < LINES_WAITING;
        if !has_room || self.steps.send(Some(line.into())).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Backlog {
    type Writer = &'w Self;

    fn make_writer(&'w self) -> Self::Writer {
        self
    }
}

fn gathered<W: Write>(to: W) -> BufWriter<W> {
    BufWriter::with_capacity(GATHERED_MAX, to)
}

/// The thread's part.
struct Writing<W: Write> {
    steps: Receiver<Step>,
    waiting: Arc<AtomicUsize>,
    to: BufWriter<W>,
    /// Dropped with the thread: whoever waits for its end is told by that.
    _end: Sender<()>,
}

impl<W: Write> Writing<W> {
    /// Lets a moment pass after the first line of a batch, so that the lines of other requests come along: waking this thread
    /// and a write(2) for every line would cost a request more than all the rest of its logging.
    #[expect(clippy::disallowed_methods, reason = "the log's own thread; no request waits for it")]
    fn run(&mut self) {
        while let Ok(Some(line)) = self.steps.recv() {
            std::thread::sleep(GATHER);
            self.write(&line);
            while let Ok(step) = self.steps.try_recv() {
                let Some(line) = step else { return self.flush() };
                self.write(&line);
            }
            self.flush();
        }
    }

    fn write(&mut self, line: &[u8]) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        // A log that cannot be written has nobody to tell; later lines are tried again.
        let _ = self.to.write_all(line);
    }

    fn flush(&mut self) {
        let _ = self.to.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{SyncSender, sync_channel};

    #[derive(Clone, Default)]
    struct Counting(Arc<Mutex<(Vec<u8>, u32)>>);

    impl Write for Counting {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.0.lock().unwrap();
            written.0.extend_from_slice(bytes);
            written.1 += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_come_together_are_written_together_in_order_and_none_is_lost() {
        let to = Counting::default();
        let (backlog, flush) = Backlog::start(to.clone());
        for n in 0..1000 {
            writeln!(&mut &backlog, "line {n}").unwrap_or_default();
        }
        drop(flush);
        let written = to.0.lock().unwrap();
        let text = String::from_utf8(written.0.clone()).unwrap();
        let wanted: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(text, wanted);
        assert!(written.1 < 100, "{} writes", written.1);
        assert_eq!((backlog.dropped().count(), backlog.waiting.load(Ordering::Relaxed)), (0, 0));
    }

    /// A reader that takes nothing until it is told to.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stuck() -> (SyncSender<()>, Stuck) {
        let (go, wait) = sync_channel(0);
        (go, Stuck(wait))
    }

    #[test]
    fn with_a_reader_that_reads_nothing_so_many_lines_wait_and_the_others_are_counted() {
        let (go, to) = stuck();
        let (backlog, flush) = Backlog::start(to);
        // Over what is gathered, so that the thread hangs in a write and takes no more.
        let long = vec![b'x'; GATHERED_MAX * 2];
        (&mut &backlog).write_all(&long).unwrap();
        while backlog.waiting.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        for _ in 0..LINES_WAITING + 5 {
            (&mut &backlog).write_all(b"line\n").unwrap();
        }
        assert_eq!(backlog.dropped().count(), 5);
        drop(go);
        drop(flush);
        assert_eq!(backlog.waiting.load(Ordering::Relaxed), 0, "all were written once somebody read");
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_reads_nothing() {
        let (_go, to) = stuck();
        let (backlog, flush) = Backlog::start(to);
        (&mut &backlog).write_all(b"line\n").unwrap();
        let began = crate::os::Stopwatch::start();
        drop(flush);
        assert!((LAST_LINES..LAST_LINES * 5).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[test]
    fn without_its_thread_every_line_is_dropped_and_counted() {
        let (backlog, flush) = Backlog::start(io::sink());
        drop(flush);
        // The thread has ended, and its end of the channel with it.
        while backlog.steps.send(None).is_ok() {
            std::thread::yield_now();
        }
        (&mut &backlog).write_all(b"line\n").unwrap();
        assert_eq!((backlog.dropped().count(), backlog.waiting.load(Ordering::Relaxed)), (1, 0));
    }
}
