//! One gRPC message in, one out: the framing of a unary call over an HTTP/2 stream.
//!
//! Guarantees: a request is exactly one uncompressed message of at most 4 MiB, or a status says what is wrong with it, without
//! the rest being read; an answer is one message and a status. Usually a message is one DATA frame and is not copied.
//! SPEC: gRPC over HTTP/2, "Requests" and "Responses"; the codes are those of tonic.

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use prost::Message;
use std::future::poll_fn;
use tonic::Status;

/// Bytes before a message: one of flags, four of length.
const HEAD: usize = 5;
/// Bytes of a request's message at most, as in every gRPC library.
const MESSAGE_MAX: usize = 4 << 20;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const OK: HeaderValue = HeaderValue::from_static("0");

/// Reads the request's message.
///
/// # Errors
/// The status for the caller.
///
/// # Cancel safety
/// What was read is lost; the stream is good for an answer only.
pub(super) async fn read(body: &mut RecvStream, headers: &HeaderMap) -> Result<Bytes, Status> {
    refuse_compression(headers)?;
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(chunk) = poll_fn(|cx| body.poll_data(cx)).await {
        let chunk = chunk.map_err(|error| Status::internal(format!("the request broke off: {error}")))?;
        if !body.is_end_stream() {
            // At the end of a stream h2 gives all of it back by itself.
            body.flow_control().release_capacity(chunk.len()).ok();
        }
        if first.is_empty() && rest.is_empty() {
            first = chunk;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&chunk);
        }
        missing(if rest.is_empty() { &first } else { &rest })?;
    }
    let mut whole = if rest.is_empty() { first } else { rest.freeze() };
    match missing(&whole)? {
        0 => Ok(whole.split_off(HEAD)),
        _ if whole.is_empty() => Err(Status::internal("the request has no message")),
        _ => Err(Status::internal("the request ends before its message does")),
    }
}

/// How many bytes of the message and its head are still to come.
fn missing(received: &[u8]) -> Result<usize, Status> {
    let Some((&[flags, a, b, c, d], message)) = received.split_first_chunk::<HEAD>() else {
        return Ok(HEAD.saturating_sub(received.len()));
    };
    if flags != 0 {
        return Err(Status::internal("the message is compressed, or its flags are unknown; neither was agreed on"));
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX {
        return Err(Status::out_of_range(format!("the message has {length} bytes; {MESSAGE_MAX} are the limit")));
    }
    length.checked_sub(message.len()).ok_or_else(|| Status::internal("the request has more than one message"))
}

fn refuse_compression(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get(GRPC_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let mut status = Status::unimplemented("the message is compressed; this plugin takes `identity` only");
            status
                .metadata_mut()
                .insert("grpc-accept-encoding", tonic::metadata::MetadataValue::from_static("identity"));
            Err(status)
        }
        _ => Ok(()),
    }
}

/// A message with its head; `tail` is the rest of its fields, encoded already.
pub(super) fn framed(message: &impl Message, tail: &[u8]) -> Bytes {
    let length = message.encoded_len().saturating_add(tail.len());
    let mut frame = Vec::with_capacity(length.saturating_add(HEAD));
    frame.put_u8(0);
    // INVARIANT: no answer comes near 4 GiB: annotations have 32 KiB at most, a ciphertext 1 KiB.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut frame);
    frame.extend_from_slice(tail);
    frame.into()
}

/// Sends an answer: headers, the message and the status OK, or the status alone.
///
/// # Errors
/// When the caller or its connection is gone: nobody waits for the answer then.
pub(super) fn send(respond: &mut SendResponse<Bytes>, answer: Result<Bytes, Status>) -> Result<(), h2::Error> {
    match answer {
        Ok(message) => {
            let mut head = Response::new(());
            head.headers_mut().insert(CONTENT_TYPE, GRPC);
            let mut stream = respond.send_response(head, false)?;
            stream.send_data(message, false)?;
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(GRPC_STATUS, OK);
            stream.send_trailers(trailers)
        }
        Err(status) => respond.send_response(status.into_http(), true).map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn judged(received: &[u8]) -> Result<usize, Code> {
        missing(received).map_err(|status| status.code())
    }

    #[test]
    fn a_message_is_missing_what_its_head_says_and_refused_as_soon_as_that_is_wrong() {
        assert_eq!(judged(&[]), Ok(5));
        assert_eq!(judged(&[0, 0]), Ok(3));
        assert_eq!(judged(&[0, 0, 0, 0, 0]), Ok(0));
        assert_eq!(judged(&[0, 0, 0, 0, 3, 9]), Ok(2));
        assert_eq!(judged(&[0, 0, 0, 0, 1, 9]), Ok(0));
        assert_eq!(judged(&[0, 0, 0, 0, 1, 9, 0]), Err(Code::Internal), "two messages");
        assert_eq!(judged(&[1, 0, 0, 0, 0]), Err(Code::Internal));
        assert_eq!(judged(&[0, 0, 0x40, 0, 0]), Ok(MESSAGE_MAX));
        assert_eq!(judged(&[0, 0, 0x40, 0, 1]), Err(Code::OutOfRange), "before a byte of it is there");
    }

    #[test]
    fn compression_that_was_announced_is_unimplemented_and_says_what_is_taken() {
        let mut headers = HeaderMap::new();
        assert!(refuse_compression(&headers).is_ok());
        headers.insert(GRPC_ENCODING, HeaderValue::from_static("identity"));
        assert!(refuse_compression(&headers).is_ok());
        headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
        let status = refuse_compression(&headers).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    }

    #[test]
    fn a_frame_is_its_head_the_message_and_the_tail() {
        let message = crate::api::v2::DecryptResponse { plaintext: vec![1, 2] };
        assert_eq!(framed(&message, &[9])[..], [0, 0, 0, 0, 5, 0x0a, 2, 1, 2, 9]);
    }
}
