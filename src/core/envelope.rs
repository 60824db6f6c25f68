//! `EncryptResponse.ciphertext`, stored format 1: `0x01` ‖ nonce (12) ‖ AES-256-GCM ciphertext ‖ tag (16). FROZEN.
//!
//! This file knows the layout only; the cipher is in [`crate::dek`]. SPEC: docs/format.md, tests/vectors.

use crate::fault::{Fault, Reason};
use crate::limit;
use sha2::{Digest, Sha256};

/// The first byte of every ciphertext.
pub const VERSION: u8 = 0x01;
/// Bytes of nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of authentication tag.
pub const TAG_LEN: usize = 16;
/// Bytes that a ciphertext has more than its plaintext: 61 for a seed of 32.
pub const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

/// The parts of one ciphertext, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The nonce.
    pub nonce: &'a [u8; NONCE_LEN],
    /// As long as the plaintext.
    pub body: &'a [u8],
    /// The tag.
    pub tag: &'a [u8; TAG_LEN],
}

impl<'a> Envelope<'a> {
    /// Splits a ciphertext.
    ///
    /// # Errors
    /// `ciphertext-empty`, `ciphertext-too-long` over 1,024 bytes, `format-unknown` for another first byte,
    /// `ciphertext-too-short` under 30 bytes.
    pub fn parse(ciphertext: &'a [u8]) -> Result<Self, Fault> {
        let (version, rest) = ciphertext.split_first().ok_or(Reason::CiphertextEmpty)?;
        if ciphertext.len() > limit::CIPHERTEXT_MAX {
            return Err(Reason::CiphertextTooLong.into());
        }
        if *version != VERSION {
            return Err(Reason::FormatUnknown.into());
        }
        let (nonce, rest) = rest.split_first_chunk().ok_or(Reason::CiphertextTooShort)?;
        let (body, tag) = rest.split_last_chunk().ok_or(Reason::CiphertextTooShort)?;
        if body.is_empty() {
            return Err(Reason::CiphertextTooShort.into());
        }
        Ok(Self { nonce, body, tag })
    }
}

/// Hashes `lp(x)`: the length of x as 4 bytes big-endian, then x. What makes the hashed text of several parts
/// unambiguous.
pub fn lp(hash: &mut Sha256, x: &[u8]) {
    // INVARIANT: nothing longer than 4 GiB gets here: every input is bounded by core::limit or by gRPC's 4 MiB.
    hash.update(u32::try_from(x.len()).unwrap_or(u32::MAX).to_be_bytes());
    hash.update(x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_taken_or_refused_with_its_own_reason() {
        for len in 0..=limit::CIPHERTEXT_MAX + 2 {
            let mut bytes = vec![0_u8; len];
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let expected = match len {
                0 => Some(Reason::CiphertextEmpty),
                1..30 => Some(Reason::CiphertextTooShort),
                30..=1024 => None,
                _ => Some(Reason::CiphertextTooLong),
            };
            assert_eq!(Envelope::parse(&bytes).err().map(|f| f.reason()), expected, "{len}");
        }
    }

    #[test]
    fn another_first_byte_is_an_unknown_format() {
        for version in (0..=255_u8).filter(|v| *v != VERSION) {
            assert_eq!(Envelope::parse(&[version; 61]).unwrap_err().reason(), Reason::FormatUnknown);
        }
    }
}
