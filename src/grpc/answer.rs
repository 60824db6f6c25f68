//! The three answers as bytes: what is the same for every request under one write state is encoded once.
//!
//! Guarantees: an answer is exactly what prost makes of the whole message; key_id and annotations come from the write state that
//! sealed. Refuses to know how an answer is sent. SPEC: protobuf encoding: a message may be given in pieces, one after the other.

use crate::message::framed;
use bytes::Bytes;
use kms_v2_api::v2::{DecryptResponse, EncryptResponse, StatusResponse};
use kube_kms_service::plugin::{Encrypted, StatusAnswer};
use kube_kms_service::write_state::WriteState;
use prost::Message;

/// The API version that Status reports. SPEC: kube-apiserver pins the first answer for its life.
pub const API_VERSION: &str = "v2";

/// A StatusResponse.
pub(super) fn status(answer: &StatusAnswer) -> Bytes {
    let key_id = answer.key_id.as_str().to_owned();
    framed(&StatusResponse { version: API_VERSION.to_owned(), healthz: answer.healthz.clone(), key_id }, &[])
}

/// An EncryptResponse.
pub(super) fn encrypted(encrypted: Encrypted) -> Bytes {
    let Encrypted { ciphertext, write } = encrypted;
    framed(&EncryptResponse { ciphertext, ..EncryptResponse::default() }, write.encoded(key_id_and_annotations))
}

/// A DecryptResponse. SECURITY: the message is wiped when it is dropped, its encoded form when it has been sent and is freed.
pub(super) fn decrypted(plaintext: Vec<u8>) -> Bytes {
    framed(&DecryptResponse { plaintext }, &[])
}

/// All of an EncryptResponse but its first field, the ciphertext.
fn key_id_and_annotations(write: &WriteState) -> Vec<u8> {
    let (key_id, annotations) = (write.key_id().as_str().to_owned(), write.annotations().all().clone());
    EncryptResponse { ciphertext: Vec::new(), key_id, annotations }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_service::fixture::{settings, write_state};
    use std::sync::Arc;

    fn message(frame: &[u8]) -> &[u8] {
        assert_eq!(frame[..5], [&[0], &u32::try_from(frame.len() - 5).unwrap().to_be_bytes()[..]].concat());
        &frame[5..]
    }

    #[test]
    fn an_encrypt_response_in_two_pieces_is_the_whole_one_to_the_byte() {
        let write = Arc::new(write_state(&settings()));
        for size in [1, 61, 1024] {
            let ciphertext = vec![7; size];
            let whole = EncryptResponse {
                ciphertext: ciphertext.clone(),
                key_id: write.key_id().as_str().to_owned(),
                annotations: write.annotations().all().clone(),
            };
            let frame = encrypted(Encrypted { ciphertext, write: Arc::clone(&write) });
            assert_eq!(message(&frame), whole.encode_to_vec());
        }
    }

    #[test]
    fn a_status_and_a_decrypt_response_are_what_their_messages_say() {
        let key_id = write_state(&settings()).key_id().clone();
        let frame = status(&StatusAnswer { healthz: "ok".to_owned(), key_id: key_id.clone() });
        let decoded = StatusResponse::decode(message(&frame)).unwrap();
        assert_eq!((&*decoded.version, &*decoded.healthz, &*decoded.key_id), ("v2", "ok", key_id.as_str()));
        assert!(DecryptResponse::decode(message(&decrypted(b"seed".to_vec()))).unwrap().plaintext == b"seed");
    }
}
