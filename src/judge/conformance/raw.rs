//! HTTP/2 by the byte: one Status with a header that no library would send, and what the server says to it.
//!
//! SPEC: RFC 9113, 4.1 (frames), 6.8 (GOAWAY), RFC 7541, 6.2.2 (a literal header without Huffman coding). Refuses to know
//! more of either.

use super::wire::framed;
use kms_v2_api::v2::StatusRequest;
use kms_v2_client::kms::Target;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the server did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// It answered.
    Accepted,
    /// It reset the stream or the connection, or hung up.
    Refused,
    /// Neither, in time.
    Silent,
}

/// Calls Status with this `:authority`.
pub(super) async fn status_with_authority(
    target: &Target,
    authority: &str,
    limit: Duration,
) -> std::io::Result<Reaction> {
    let mut stream = target.connect()?;
    let headers = header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", super::wire::STATUS),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    let bytes = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, &headers),
        frame(DATA, END_STREAM, 1, &framed(&StatusRequest {})),
    ]
    .concat();
    // It may hang up before we are done.
    let _ = stream.write_all(&bytes).await;
    let mut seen = Vec::new();
    let reaction = async {
        loop {
            let read = stream.read_buf(&mut seen).await.unwrap_or(0);
            match reaction(&seen) {
                Some(reaction) => return reaction,
                None if read == 0 => return Reaction::Refused,
                None => {}
            }
        }
    };
    Ok(tokio::time::timeout(limit, reaction).await.unwrap_or(Reaction::Silent))
}

/// What the first frame says that is about our call.
fn reaction(mut bytes: &[u8]) -> Option<Reaction> {
    while let Some(([a, b, c, kind, ..], rest)) = bytes.split_first_chunk::<9>() {
        match *kind {
            HEADERS => return Some(Reaction::Accepted),
            RST_STREAM | GOAWAY => return Some(Reaction::Refused),
            _ => {}
        }
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
        bytes = rest.get(length..)?;
    }
    None
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = length.to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Names and values of less than 127 bytes.
fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap_or(0) & 0x7f);
            block.extend(text.as_bytes());
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_about_the_call_decides() {
        let settings = frame(SETTINGS, 0, 0, &[0; 6]);
        let of = |kind| reaction(&[settings.clone(), frame(kind, 0, 1, &[0; 4])].concat());
        assert_eq!(of(HEADERS), Some(Reaction::Accepted));
        assert_eq!(of(RST_STREAM), Some(Reaction::Refused));
        assert_eq!(of(GOAWAY), Some(Reaction::Refused));
        assert_eq!(reaction(&settings), None);
        assert_eq!(reaction(settings.split_at(12).0), None);
    }
}
