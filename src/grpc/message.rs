//! One gRPC message in, one out: the framing of a unary call over an HTTP/2 stream.
//!
//! Guarantees: a request is exactly one uncompressed message of at most 64 KiB, or a status says what is wrong with it, without
//! the rest being read; an answer is one message and a status. Usually a message is one DATA frame and is not copied.
//! SPEC: gRPC over HTTP/2, "Requests" and "Responses"; the codes are those of tonic, but what no caller of KMS v2 sends is
//! INVALID_ARGUMENT.

use bytes::{BufMut, Bytes};
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::limit::MESSAGE_MAX;
use kube_kms_service::waiting_room::{Place, WaitingRoom};
use prost::Message;
use std::future::poll_fn;
use std::sync::Arc;
use tonic::Status;

/// Bytes before a message: one of flags, four of length.
pub(super) const HEAD: usize = 5;
/// Bytes that a message in pieces has room for at first.
const PIECE: usize = 512;
/// Bytes of an unfinished message, with its headers, from which on it takes a place among the large ones: what kube-apiserver sends
/// is mostly smaller.
const SMALL: usize = 1024;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const OK: HeaderValue = HeaderValue::from_static("0");

/// What is answered instead of a message.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not one message as gRPC frames it.
    Status(Status),
    /// Its message is not one that we take. To be counted and logged.
    Fault(Fault),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The status of HTTP for what is not gRPC. SPEC: gRPC over HTTP/2, "Requests": POST, and a content-type that begins with `application/grpc`, or 415.
pub(super) fn refuse_foreign(head: &Parts) -> Result<(), StatusCode> {
    if head.method != Method::POST {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let content_type = head.headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    match content_type.strip_prefix(GRPC.as_bytes()) {
        Some([] | [b'+' | b';', ..]) => Ok(()),
        _ => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

/// Reads the request's message.
///
/// # Errors
/// What the caller is told.
///
/// # Cancel safety
/// What was read is lost; the stream is good for an answer only.
pub(super) async fn read(
    body: &mut RecvStream,
    headers: &HeaderMap,
    incomplete: &Arc<WaitingRoom>,
) -> Result<Bytes, Refusal> {
    refuse_compression(headers)?;
    let mut pieces = Vec::new();
    // SECURITY: headers wait with the message that they are of, and somebody may send many of them and no message.
    let of_headers = memory_of(headers);
    let mut place: Option<Place> = (of_headers > SMALL).then(|| incomplete.enter());
    loop {
        let next = poll_fn(|cx| body.poll_data(cx));
        let chunk = match &mut place {
            None => next.await,
            Some(place) => tokio::select! {
                biased;
                chunk = next => chunk,
                // SECURITY: large messages that never end would fill the memory.
                () = place.is_needed() => return Err(Fault::new(Reason::Overloaded).into()),
            },
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| Status::internal(format!("the request broke off: {error}")))?;
        if body.is_end_stream() && pieces.is_empty() {
            return message_of(chunk);
        }
        // SECURITY: a copy, because a byte that is kept keeps the whole of the buffer that it was read into.
        add(&mut pieces, &chunk)?;
        if pieces.len().saturating_add(of_headers) > SMALL && place.is_none() {
            place = Some(incomplete.enter());
        }
        // The window is given back for what is within our own bound; at the end of a stream h2 gives back the rest by itself.
        body.flow_control().release_capacity(chunk.len()).ok();
    }
    message_of(pieces.into())
}

/// What a map of headers takes, about: twice their size as HTTP/2 counts it (RFC 9113, 6.5.2).
fn memory_of(headers: &HeaderMap) -> usize {
    let sizes = headers.iter().map(|(name, value)| name.as_str().len().saturating_add(value.len()).saturating_add(32));
    sizes.fold(0, usize::saturating_add).saturating_mul(2)
}

/// Puts a piece behind the others, with no more memory than twice theirs.
fn add(pieces: &mut Vec<u8>, chunk: &[u8]) -> Result<(), Refusal> {
    let whole = pieces.len().saturating_add(chunk.len());
    if whole > pieces.capacity() {
        let room = whole.saturating_mul(2).clamp(PIECE, MESSAGE_MAX.saturating_add(HEAD)).max(whole);
        pieces.reserve_exact(room.saturating_sub(pieces.len()));
    }
    pieces.extend_from_slice(chunk);
    missing(pieces).map(|_| ())
}

fn message_of(mut whole: Bytes) -> Result<Bytes, Refusal> {
    match missing(&whole)? {
        0 => Ok(whole.split_off(HEAD)),
        _ if whole.is_empty() => Err(Status::internal("the request has no message").into()),
        _ => Err(Status::internal("the request ends before its message does").into()),
    }
}

/// How many bytes of the message and its head are still to come.
fn missing(received: &[u8]) -> Result<usize, Refusal> {
    let Some((&[flags, a, b, c, d], message)) = received.split_first_chunk::<HEAD>() else {
        return Ok(HEAD.saturating_sub(received.len()));
    };
    if flags != 0 {
        return Err(
            Status::internal("the message is compressed, or its flags are unknown; neither was agreed on").into()
        );
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX {
        return Err(Fault::caused_by(Reason::MessageInvalid, format!("it has {length} bytes")).into());
    }
    length.checked_sub(message.len()).ok_or_else(|| Status::internal("the request has more than one message").into())
}

/// Decodes a message.
pub(super) fn decoded<M: Message + Default>(message: Bytes) -> Result<M, Fault> {
    M::decode(message).map_err(|error| Fault::caused_by(Reason::MessageInvalid, error))
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

/// What is sent back.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A message, with its head.
    Message(Bytes),
    /// Why there is none.
    Status(Status),
    /// It was not gRPC.
    Http(StatusCode),
}

/// Sends an answer: headers, the message and the status OK, or the status alone.
///
/// # Errors
/// When the caller or its connection is gone: nobody waits for the answer then.
pub(super) fn send(respond: &mut SendResponse<Bytes>, answer: Outcome) -> Result<(), h2::Error> {
    match answer {
        Outcome::Message(message) => {
            let mut head = Response::new(());
            head.headers_mut().insert(CONTENT_TYPE, GRPC);
            let mut stream = respond.send_response(head, false)?;
            stream.send_data(message, false)?;
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(GRPC_STATUS, OK);
            stream.send_trailers(trailers)
        }
        Outcome::Status(status) => respond.send_response(status.into_http(), true).map(|_| ()),
        Outcome::Http(status) => {
            let mut head = Response::new(());
            *head.status_mut() = status;
            if status == StatusCode::METHOD_NOT_ALLOWED {
                head.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            }
            respond.send_response(head, true).map(|_| ())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_core::limit;
    use tonic::Code;

    fn judged(received: &[u8]) -> Result<usize, Code> {
        missing(received).map_err(|refusal| match refusal {
            Refusal::Status(status) => status.code(),
            Refusal::Fault(fault) => crate::status::code(fault.class().code()),
        })
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
        assert_eq!(judged(&[0, 0, 1, 0, 0]), Ok(65_536));
        assert_eq!(judged(&[0, 0, 1, 0, 1]), Err(Code::InvalidArgument), "before a byte of it is there");
    }

    #[test]
    fn the_largest_decrypt_that_the_protocol_allows_fits() {
        let request = kms_v2_api::v2::DecryptRequest {
            ciphertext: vec![1; limit::CIPHERTEXT_MAX],
            uid: "u".repeat(1024),
            key_id: "k".repeat(limit::KEY_ID_MAX),
            annotations: [("a.example".to_owned(), vec![2; limit::ANNOTATIONS_MAX])].into(),
        };
        assert!((35_000..MESSAGE_MAX).contains(&request.encoded_len()), "{}", request.encoded_len());
    }

    #[test]
    fn pieces_take_at_most_twice_their_bytes_and_never_more_than_a_message() {
        let mut pieces = vec![0, 0, 1, 0, 0];
        for size in [1, 600, 30_000, 34_000, 935] {
            add(&mut pieces, &vec![0; size]).unwrap();
            assert!(pieces.capacity() <= (2 * pieces.len()).clamp(PIECE, MESSAGE_MAX + HEAD), "{}", pieces.len());
        }
        assert_eq!(pieces.len(), MESSAGE_MAX + HEAD);
        assert!(add(&mut pieces, &[0]).is_err(), "more than the message");
    }

    #[test]
    fn what_is_not_grpc_is_refused_in_the_words_of_http() {
        let judged = |method: &str, content_type: Option<&str>| {
            let mut request = http::Request::builder().method(method);
            if let Some(content_type) = content_type {
                request = request.header(CONTENT_TYPE, content_type);
            }
            refuse_foreign(&request.body(()).unwrap().into_parts().0).map_or_else(|status| status.as_u16(), |()| 200)
        };
        for taken in ["application/grpc", "application/grpc+proto", "application/grpc;charset=x"] {
            assert_eq!(judged("POST", Some(taken)), 200, "{taken}");
        }
        for foreign in [None, Some("text/html"), Some("application/grpcx"), Some("application/json")] {
            assert_eq!(judged("POST", foreign), 415, "{foreign:?}");
        }
        assert_eq!(judged("GET", Some("application/grpc")), 405);
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
        let message = kms_v2_api::v2::DecryptResponse { plaintext: vec![1, 2] };
        assert_eq!(framed(&message, &[9])[..], [0, 0, 0, 0, 5, 0x0a, 2, 1, 2, 9]);
    }

    #[test]
    fn a_message_is_what_its_head_says_and_what_is_cut_short_or_missing_is_told_apart() {
        let said = |received: &'static [u8]| match message_of(Bytes::from_static(received)) {
            Ok(message) => Ok(message.to_vec()),
            Err(Refusal::Status(status)) => Err(status.message().to_owned()),
            Err(Refusal::Fault(fault)) => Err(fault.causes()),
        };
        assert_eq!(said(&[0, 0, 0, 0, 2, 8, 9]), Ok(vec![8, 9]));
        assert_eq!(said(&[]), Err("the request has no message".to_owned()));
        for cut in [&[0, 0][..], &[0, 0, 0, 0, 2, 8]] {
            assert_eq!(said(cut), Err("the request ends before its message does".to_owned()));
        }
    }

    #[test]
    fn headers_count_for_twice_what_http2_counts_of_them() {
        let mut headers = HeaderMap::new();
        assert_eq!(memory_of(&headers), 0);
        headers.insert("abc", HeaderValue::from_static("12345"));
        headers.append("abc", HeaderValue::from_static("1"));
        assert_eq!(memory_of(&headers), 2 * (3 + 5 + 32 + 3 + 1 + 32));
    }

    #[test]
    fn what_is_not_the_message_is_malformed() {
        let message = kms_v2_api::v2::DecryptResponse { plaintext: vec![1, 2] };
        let encoded = Bytes::from(message.encode_to_vec());
        assert_eq!(decoded::<kms_v2_api::v2::DecryptResponse>(encoded).unwrap(), message);
        let fault = decoded::<kms_v2_api::v2::DecryptResponse>(Bytes::from_static(&[0xff])).unwrap_err();
        assert_eq!(fault.reason(), Reason::MessageInvalid);
    }
}
