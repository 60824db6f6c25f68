//! Answers that AWS would not give: whoever stands in its place might.
//!
//! Guarantees: a lie is told of an answer that was true; a flood takes no memory here. Refuses to know which call is lied to.

use super::fault::{Flood, Lie};
use super::server::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

const FLOOD: usize = 400 << 20;
const CHUNK: Bytes = Bytes::from_static(&[b'['; 64 << 10]);

/// A true answer, made into another.
pub(super) fn told(lie: Lie, truth: &Bytes) -> Bytes {
    let mut answer: Value = serde_json::from_slice(truth).unwrap();
    let plaintext = |answer: &Value| STANDARD.decode(answer["Plaintext"].as_str().unwrap_or_default()).unwrap();
    match lie {
        Lie::Empty => answer = json!({}),
        Lie::Short => {
            let mut bytes = plaintext(&answer);
            bytes.pop();
            answer["Plaintext"] = json!(STANDARD.encode(bytes));
        }
        Lie::Long => answer["Plaintext"] = json!(STANDARD.encode([plaintext(&answer), vec![0]].concat())),
        Lie::OtherKey => {
            answer["KeyId"] = json!("arn:aws:kms:eu-central-1:999999999999:key/00000000-0000-0000-0000-000000000000");
        }
        Lie::Material => answer["KeyMaterialId"] = json!(uuid::Uuid::new_v4().simple().to_string().repeat(313)),
        Lie::Large => answer["Padding"] = json!("x".repeat(1 << 20)),
        Lie::Html => return Bytes::from_static(b"<html><body>Sign in to this network</body></html>"),
    }
    Bytes::from(answer.to_string())
}

/// An answer with the head of `head` and no end to speak of.
pub(super) fn flooded(flood: Flood, mut head: Response<Body>) -> Response<Body> {
    let frames = |pieces: usize, piece: Bytes, pause: Option<Duration>| {
        let stream = futures_util::stream::unfold(pieces, move |left| {
            let piece = piece.clone();
            async move {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                (left > 0).then(|| (Ok::<_, io::Error>(Frame::data(piece)), left - 1))
            }
        });
        StreamBody::new(stream).boxed_unsync()
    };
    match flood {
        Flood::Body => {
            head.headers_mut().insert(header::CONTENT_LENGTH, FLOOD.into());
            *head.body_mut() = frames(FLOOD / CHUNK.len(), CHUNK, None);
        }
        Flood::Chunks => *head.body_mut() = frames(usize::MAX, CHUNK, None),
        Flood::Drip => {
            *head.body_mut() = frames(usize::MAX, Bytes::from_static(b" "), Some(Duration::from_millis(1)));
        }
        Flood::Head => {
            for n in 0..64 {
                let name = header::HeaderName::from_bytes(format!("x-flood-{n}").as_bytes()).unwrap();
                head.headers_mut().insert(name, HeaderValue::from_bytes(&[b'a'; 64 << 10]).unwrap());
            }
        }
    }
    head
}
