//! A gRPC client with as little of it as possible, so that what is measured is the server: HTTP/2 frames by hand on a blocking
//! socket, the same request every time, its headers in the server's HPACK table after the first.
//!
//! Guarantees: a call is served only when its stream had a message and ended with trailers; an error (trailers only) is told
//! from it; RST_STREAM and GOAWAY end the run. Refuses to know what the message says, but for the first. SPEC: RFC 9113, RFC 7541.

#![allow(dead_code, reason = "two programs share this file, and each has its own use for it")]

use hashbrown::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME: usize = 9;
/// An answer that takes longer ends the run.
const PATIENCE: Duration = Duration::from_secs(10);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What we let the server send before it must wait, and when we let it go on.
const WINDOW: u32 = 1 << 30;

/// One connection.
pub struct Wire {
    stream: UnixStream,
    /// Read and not yet understood.
    unread: Vec<u8>,
    /// Understood up to here.
    at: usize,
    out: Vec<u8>,
    /// Header block of the first request, and of all others.
    first: Option<Vec<u8>>,
    again: Vec<u8>,
    /// The gRPC message with its prefix.
    body: Vec<u8>,
    next: u32,
    /// What the server lets us send.
    window: i64,
    /// What it has sent since we last let it go on.
    taken: u32,
    open: HashMap<u32, Open>,
    /// The message of the answer that ended last.
    pub last: Vec<u8>,
}

struct Open {
    since: Instant,
    tag: usize,
    answered: bool,
}

/// A call that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub since: Instant,
    /// What the caller named it.
    pub tag: usize,
    /// Whether there was a message, and trailers after it.
    pub served: bool,
}

/// An error unless the call was served.
pub fn served(done: Done) -> io::Result<()> {
    if done.served { Ok(()) } else { Err(io::Error::other("a call failed")) }
}

fn frame(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// A message with the five bytes that gRPC puts before it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(message);
    body
}

/// A literal with incremental indexing; the name is an index of the static table, or spelled out.
fn literal(block: &mut Vec<u8>, name: Result<u8, &str>, value: &str) {
    let text = |block: &mut Vec<u8>, text: &str| {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend_from_slice(text.as_bytes());
    };
    match name {
        Ok(index) => block.push(0x40 | index),
        Err(name) => {
            block.push(0x40);
            text(block, name);
        }
    }
    text(block, value);
}

impl Wire {
    /// Connects for calls of `path` with this message.
    pub fn connect(socket: &Path, path: &str, message: &[u8]) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut hello = PREFACE.to_vec();
        // INITIAL_WINDOW_SIZE, then the connection's own window.
        frame(&mut hello, 6, SETTINGS, 0, 0);
        hello.extend_from_slice(&[0, 4]);
        hello.extend_from_slice(&WINDOW.to_be_bytes());
        frame(&mut hello, 4, WINDOW_UPDATE, 0, 0);
        hello.extend_from_slice(&(WINDOW - 65_535).to_be_bytes());
        stream.write_all(&hello)?;

        // What grpc-go sends: POST and http of the static table, the rest spelled out once.
        let mut first = vec![0x83, 0x86];
        literal(&mut first, Ok(4), path);
        literal(&mut first, Ok(1), "localhost");
        literal(&mut first, Ok(31), "application/grpc");
        literal(&mut first, Ok(58), "grpc-go/1.82.1");
        literal(&mut first, Err("te"), "trailers");
        literal(&mut first, Err("grpc-timeout"), "2999900u");
        // The newest entry of the dynamic table is number 62.
        let again = vec![0x83, 0x86, 0x80 | 67, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        let body = framed(message);
        Ok(Self {
            stream,
            unread: Vec::with_capacity(1 << 17),
            at: 0,
            out: Vec::with_capacity(1 << 15),
            first: Some(first),
            again,
            body,
            next: 1,
            window: 65_535,
            taken: 0,
            open: HashMap::new(),
            last: Vec::new(),
        })
    }

    /// Whether the server lets us send this much now.
    pub fn has_room(&self, body: &[u8]) -> bool {
        self.window >= i64::try_from(body.len()).unwrap()
    }

    /// Prepares a call whose time counts from `since`. [`Wire::flush`] sends it.
    pub fn call(&mut self, since: Instant) -> io::Result<()> {
        let body = std::mem::take(&mut self.body);
        let called = self.call_with(since, 0, &body);
        self.body = body;
        called
    }

    /// As [`Wire::call`], with another message (and its prefix) and a name for the call.
    pub fn call_with(&mut self, since: Instant, tag: usize, body: &[u8]) -> io::Result<()> {
        let size = i64::try_from(body.len()).unwrap();
        if self.window < size {
            return Err(io::Error::other("the server gives no window"));
        }
        self.window -= size;
        let first = self.first.take();
        let block = first.as_deref().unwrap_or(&self.again);
        frame(&mut self.out, block.len(), HEADERS, END_HEADERS, self.next);
        self.out.extend_from_slice(block);
        frame(&mut self.out, body.len(), DATA, END_STREAM, self.next);
        self.out.extend_from_slice(body);
        self.open.insert(self.next, Open { since, tag, answered: false });
        self.next += 2;
        Ok(())
    }

    /// Sends what is prepared, in one write.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    /// Waits for all answers, which must be good.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut failed = Ok(());
        while self.in_flight() > 0 {
            self.read(&mut |done| {
                if failed.is_ok() {
                    failed = served(done);
                }
            })?;
            self.flush()?;
        }
        failed
    }

    /// Calls that have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Waits for answers, one read at a time; `done` gets each call that has ended.
    pub fn read(&mut self, done: &mut impl FnMut(Done)) -> io::Result<()> {
        if self.at == self.unread.len() {
            self.unread.clear();
        } else {
            self.unread.drain(..self.at);
        }
        self.at = 0;
        let had = self.unread.len();
        self.unread.resize(had + (1 << 16), 0);
        let got = self.stream.read(&mut self.unread[had..])?;
        self.unread.truncate(had + got);
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        while let Some(head) = self.unread.get(self.at..self.at + FRAME) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            let (begin, end) = (self.at + FRAME, self.at + FRAME + length);
            if end > self.unread.len() {
                break;
            }
            self.at = end;
            self.frame(kind, flags, stream, begin..end, done)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: std::ops::Range<usize>,
        done: &mut impl FnMut(Done),
    ) -> io::Result<()> {
        let payload = &self.unread[payload];
        match kind {
            DATA => {
                self.taken += u32::try_from(payload.len()).unwrap();
                if self.taken > WINDOW / 2 {
                    frame(&mut self.out, 4, WINDOW_UPDATE, 0, 0);
                    self.out.extend_from_slice(&self.taken.to_be_bytes());
                    self.taken = 0;
                }
                let call = self.open.get_mut(&stream).ok_or_else(|| io::Error::other("an answer to nothing"))?;
                call.answered = payload.len() > 5 || call.answered;
                self.last.clear();
                self.last.extend_from_slice(payload.get(5..).unwrap_or_default());
            }
            HEADERS | CONTINUATION => {}
            SETTINGS if flags & ACK == 0 => frame(&mut self.out, 0, SETTINGS, ACK, 0),
            PING if flags & ACK == 0 => {
                frame(&mut self.out, payload.len(), PING, ACK, 0);
                self.out.extend_from_slice(payload);
            }
            WINDOW_UPDATE if stream == 0 => {
                let more: [u8; 4] = payload.try_into().map_err(io::Error::other)?;
                self.window += i64::from(u32::from_be_bytes(more));
            }
            RST_STREAM | GOAWAY => return Err(io::Error::other(format!("frame {kind}: {payload:?}"))),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            let call = self.open.remove(&stream).ok_or_else(|| io::Error::other("the end of nothing"))?;
            let Open { since, tag, answered } = call;
            done(Done { since, tag, served: answered && kind == HEADERS });
        }
        Ok(())
    }
}
