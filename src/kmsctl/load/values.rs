//! The messages of a run: made before the clock starts, so that a call costs a copy and no more.
//!
//! Guarantees: each Encrypt has a uid of its own; Decrypts go round the values that this plugin sealed at the start, and must
//! give back the bytes that were sealed. The seed is random and of no use to anybody.

use super::LoadError;
use super::mix::Mix;
use super::wire::{Outcome, Wire};
use bytes::{BufMut, Bytes, BytesMut};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse};
use kms_v2_client::plugin::Rpc;
use prost::Message;
use std::cell::Cell;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Values that Decrypts go round.
const VALUES: usize = 64;
/// Digits at the end of a uid that count.
const COUNTED: usize = 12;

pub(super) struct Values {
    seed: Vec<u8>,
    status: Bytes,
    /// Up to the counted digits of its uid, which end the message.
    encrypt: Bytes,
    decrypts: Vec<Bytes>,
    count: Cell<u64>,
}

impl Values {
    /// Asks for one Status, and for the values when there are Decrypts to come.
    pub(super) async fn prepare(wires: &[Wire], mix: &Mix, timeout: Duration) -> Result<Self, LoadError> {
        let seed = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
        let uid = uuid::Uuid::new_v4().to_string();
        let encrypt = framed(&EncryptRequest { plaintext: seed.clone(), uid: uid.clone() });
        let cut = encrypt.len().saturating_sub(COUNTED);
        let status = Bytes::from_static(&[0; 5]);
        let mut values =
            Self { seed, status, encrypt: encrypt.slice(..cut), decrypts: Vec::new(), count: Cell::new(0) };
        let Some(wire) = wires.first() else { return Ok(values) };
        values.first(wire, Rpc::Status, timeout).await?;
        if mix.share(Rpc::Decrypt) > 0 {
            for _ in 0..VALUES {
                let answer = values.first(wire, Rpc::Encrypt, timeout).await?;
                let failed = |e: prost::DecodeError| LoadError::First { rpc: Rpc::Encrypt, code: e.to_string() };
                let EncryptResponse { ciphertext, key_id, annotations } =
                    EncryptResponse::decode(answer).map_err(failed)?;
                values.decrypts.push(framed(&DecryptRequest { ciphertext, uid: uid.clone(), key_id, annotations }));
            }
        }
        Ok(values)
    }

    async fn first(&self, wire: &Wire, rpc: Rpc, timeout: Duration) -> Result<Bytes, LoadError> {
        let answer = tokio::time::timeout(timeout, wire.call(rpc, self.request(rpc))).await;
        let failed = |outcome: Outcome| {
            let code = outcome.failure().unwrap_or("no answer").to_owned();
            LoadError::First { rpc, code }
        };
        answer.map_err(|_| failed(Outcome::LATE))?.map_err(failed)
    }

    /// The next message of this RPC, with gRPC's own five bytes before it.
    pub(super) fn request(&self, rpc: Rpc) -> Bytes {
        let count = self.count.get();
        self.count.set(count.wrapping_add(1));
        match rpc {
            Rpc::Status => self.status.clone(),
            Rpc::Encrypt => {
                let mut body = BytesMut::with_capacity(self.encrypt.len().saturating_add(COUNTED));
                body.put_slice(&self.encrypt);
                for place in (0..COUNTED).rev() {
                    let digit =
                        count.checked_shr(u32::try_from(place.saturating_mul(4)).unwrap_or(0)).unwrap_or(0) & 15;
                    body.put_u8(b"0123456789abcdef".get(usize::try_from(digit).unwrap_or(0)).copied().unwrap_or(b'0'));
                }
                body.freeze()
            }
            Rpc::Decrypt => {
                let len = u64::try_from(self.decrypts.len()).unwrap_or(1);
                let turn = count.checked_rem(len).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                self.decrypts.get(turn).cloned().unwrap_or_default()
            }
        }
    }

    /// Whether this is the answer that was asked for.
    pub(super) fn judge(&self, rpc: Rpc, message: &Bytes) -> Outcome {
        let right = match rpc {
            Rpc::Status | Rpc::Encrypt => !message.is_empty(),
            Rpc::Decrypt => {
                DecryptResponse::decode(message.clone()).is_ok_and(|a| a.plaintext.ct_eq(&self.seed).into())
            }
        };
        if right { Outcome::Served } else { Outcome::WRONG }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.encoded_len().saturating_add(5));
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    // A BytesMut grows, so there is always room.
    let _ = message.encode(&mut framed);
    framed.freeze()
}
