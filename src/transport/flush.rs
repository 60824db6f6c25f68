//! Keeps what a peer has sent from staying in the buffer that h2 reads into.
//!
//! h2 reads behind what it has read already, in one buffer of 8 KiB after the other: the seeds of the last hundred Encrypts stood
//! there for as long as the connection. When everything that came has been read, h2 is given a frame that fills the rest of the
//! buffer, of a type that it has to ignore. So it takes another, and the old one is freed, which wipes it ([`kube_kms_memory`]).
//!
//! Guarantees: the frame comes between two frames of the peer, never within one or within a block of headers. Refuses to know what
//! the frames say. SPEC: RFC 9113, 3.4 (preface), 4.1 (frames), 4.3 (blocks of headers), 5.5 (unknown types are ignored).

/// Bytes before the first frame.
const PREFACE: usize = 24;
/// Bytes of a frame before its payload.
const HEAD: usize = 9;
/// Bytes of a payload at most, as long as we have not said otherwise.
const PAYLOAD_MAX: usize = 16_384;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// A type that no RFC has given a meaning.
const IGNORED: u8 = 0xfa;

/// Where in the peer's frames its last byte was.
#[derive(Debug)]
pub(super) struct Flush {
    /// Bytes until the next frame.
    ahead: usize,
    head: [u8; HEAD],
    /// Bytes of `head` that are there.
    have: usize,
    is_in_headers: bool,
    /// Whether DATA has come since the buffer was changed.
    is_due: bool,
}

impl Default for Flush {
    fn default() -> Self {
        Self { ahead: PREFACE, head: [0; HEAD], have: 0, is_in_headers: false, is_due: false }
    }
}

impl Flush {
    /// Takes note of what has come.
    pub(super) fn follow(&mut self, mut came: &[u8]) {
        loop {
            let within = self.ahead.min(came.len());
            self.ahead = self.ahead.saturating_sub(within);
            came = came.get(within..).unwrap_or_default();
            let Some((first, rest)) = came.split_first() else { return };
            if let Some(place) = self.head.get_mut(self.have) {
                *place = *first;
            }
            self.have = self.have.saturating_add(1);
            came = rest;
            if self.have == HEAD {
                self.have = 0;
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.ahead = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        match kind {
            DATA => self.is_due = true,
            HEADERS | CONTINUATION => self.is_in_headers = flags & END_HEADERS == 0,
            _ => {}
        }
    }

    /// The head of a frame that fills so many bytes, when it is time for one; its payload is zeroes.
    pub(super) fn filler(&mut self, room: usize) -> Option<([u8; HEAD], usize)> {
        let payload = room.checked_sub(HEAD)?.min(PAYLOAD_MAX);
        if !self.is_due || self.ahead > 0 || self.have > 0 || self.is_in_headers {
            return None;
        }
        // A larger buffer takes more than one.
        self.is_due = room > PAYLOAD_MAX.saturating_add(HEAD);
        let [_, a, b, c] = u32::try_from(payload).ok()?.to_be_bytes();
        Some(([a, b, c, IGNORED, 0, 0, 0, 0, 0], payload.saturating_add(HEAD)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn it_is_time_between_two_frames_once_data_has_come_and_never_within_headers() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // What comes, and whether it is time after it.
        let come = [
            (preface, false),
            (frame(4, 0, &[0; 12]), false),
            (frame(HEADERS, END_HEADERS, b"abc"), false),
            (frame(DATA, 1, b"seed"), true),
            (frame(HEADERS, 0, b"abc"), false),
            (frame(CONTINUATION, 0, b"def"), false),
            (frame(CONTINUATION, END_HEADERS, b"ghi"), true),
            (frame(DATA, 0, b""), true),
        ];
        for step in [1, 5, 1000] {
            let mut flush = Flush::default();
            for (bytes, is_time) in &come {
                for (at, piece) in bytes.chunks(step).enumerate() {
                    flush.follow(piece);
                    let is_whole = (at + 1) * step >= bytes.len();
                    let due = flush.is_due;
                    assert_eq!(flush.filler(100).is_some(), *is_time && is_whole, "{bytes:?} {step}");
                    flush.is_due = due;
                }
            }
        }
    }

    #[test]
    fn it_fills_what_there_is_in_frames_that_are_allowed_and_once() {
        let mut flush = Flush { ahead: 0, is_due: true, ..Flush::default() };
        assert_eq!(flush.filler(8), None, "no room for a head");
        assert_eq!(flush.filler(20_000), Some(([0, 0x40, 0, IGNORED, 0, 0, 0, 0, 0], 16_393)));
        assert_eq!(flush.filler(3_607), Some(([0, 0x0e, 0x0e, IGNORED, 0, 0, 0, 0, 0], 3_607)));
        assert_eq!(flush.filler(8_192), None);
    }
}
