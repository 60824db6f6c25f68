//! The floor of the machine: a unix socket, so many bytes there and so many back, blocking, no protocol.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Bytes of a request; those of an Encrypt with its frames.
pub const REQUEST: usize = 112;
/// Bytes of an answer; those of an EncryptResponse with its frames.
pub const ANSWER: usize = 330;

/// Serves one connection after the other until it is killed.
pub fn serve(socket: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let (mut request, answer) = ([0; REQUEST], [1; ANSWER]);
    loop {
        let (mut stream, _) = listener.accept()?;
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&answer).is_ok() {}
    }
}

/// The other end.
pub struct Ping(UnixStream);

impl Ping {
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self(UnixStream::connect(socket)?))
    }

    /// There and back.
    pub fn round_trip(&mut self) -> io::Result<()> {
        self.0.write_all(&[2; REQUEST])?;
        self.0.read_exact(&mut [0; ANSWER])
    }
}
