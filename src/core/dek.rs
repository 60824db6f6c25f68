//! The data key: 32 random bytes in locked memory, and AES-256-GCM under it.
//!
//! Guarantees: a nonce is used once (random, from the port, drawn for every seal); nothing unauthenticated is ever
//! returned; the raw key cannot be printed, cloned or serialized. SPEC: NIST SP 800-38D; crate `aes-gcm`.

use crate::annotation::AdditionalData;
use crate::envelope::{Envelope, NONCE_LEN, OVERHEAD, TAG_LEN, VERSION};
use crate::fault::{Fault, Reason};
use crate::limit;
use crate::port::Entropy;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use kube_kms_memory::Locked;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of a DEK.
pub const DEK_LEN: usize = 32;

/// The raw key, on its way between entropy, cipher and KEK provider. Wiped on drop.
pub struct DekBytes(Locked<[u8; DEK_LEN]>);

impl DekBytes {
    /// Draws a new key, in place.
    ///
    /// # Errors
    /// `entropy`, `memory`.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self, Fault> {
        let mut bytes = Self::zeroed()?;
        entropy.fill(&mut *bytes.0)?;
        Ok(bytes)
    }

    /// Takes a key that a provider unwrapped; the caller wipes its own copy.
    ///
    /// # Errors
    /// `wrapped-dek-rejected` when it is not 32 bytes, `memory`.
    pub fn copy_from(raw: &[u8]) -> Result<Self, Fault> {
        let raw: &[u8; DEK_LEN] = raw
            .try_into()
            .map_err(|_| Fault::caused_by(Reason::WrappedDekRejected, "the unwrapped key is not 32 bytes"))?;
        let mut bytes = Self::zeroed()?;
        bytes.0.copy_from_slice(raw);
        Ok(bytes)
    }

    fn zeroed() -> Result<Self, Fault> {
        Locked::new(|| [0; DEK_LEN]).map(Self).map_err(|e| Fault::caused_by(Reason::Memory, e))
    }

    /// The key itself. SECURITY: for the call that wraps it and for nothing else.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8; DEK_LEN] {
        &self.0
    }

    /// Whether both are the same key, in constant time.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl fmt::Debug for DekBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DekBytes(secret)")
    }
}

/// Whether this is a plaintext that can be sealed: 1 to 995 bytes.
///
/// # Errors
/// `plaintext-empty`, `plaintext-too-long`.
pub fn check_plaintext(plaintext: &[u8]) -> Result<(), Fault> {
    match plaintext.len() {
        0 => Err(Reason::PlaintextEmpty.into()),
        1..=limit::PLAINTEXT_MAX => Ok(()),
        _ => Err(Reason::PlaintextTooLong.into()),
    }
}

/// A DEK made ready to seal and open: its key schedule in locked memory.
pub struct Dek(Locked<Aes256Gcm>);

impl Dek {
    /// Expands the key.
    ///
    /// # Errors
    /// `memory`.
    pub fn new(bytes: &DekBytes) -> Result<Self, Fault> {
        Locked::new(|| Aes256Gcm::new(bytes.expose_bytes().into()))
            .map(Self)
            .map_err(|e| Fault::caused_by(Reason::Memory, e))
    }

    /// Seals under a fresh random nonce: one `EncryptResponse.ciphertext`, stored format 1.
    ///
    /// # Errors
    /// `plaintext-empty`, `plaintext-too-long` over 995 bytes, `entropy`.
    // Out of line, so that a profile names it (`make counts`).
    #[inline(never)]
    pub fn seal(&self, entropy: &dyn Entropy, aad: &AdditionalData, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        check_plaintext(plaintext)?;
        let mut nonce = [0_u8; NONCE_LEN];
        entropy.fill(&mut nonce)?;
        let mut out = vec![0_u8; plaintext.len().saturating_add(OVERHEAD)];
        let broken = || Fault::new(Reason::Invariant);
        let (version, rest) = out.split_first_mut().ok_or_else(broken)?;
        let (nonce_out, rest) = rest.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(broken)?;
        let (body, tag_out) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or_else(broken)?;
        *version = VERSION;
        *nonce_out = nonce;
        let buffer = InOutBuf::new(plaintext, body).map_err(|_| broken())?;
        let tag = self.0.encrypt_inout_detached(&nonce.into(), aad.as_bytes(), buffer).map_err(|_| broken())?;
        *tag_out = tag.into();
        Ok(out)
    }

    /// Opens what [`Dek::seal`] made. The plaintext is wiped when it is dropped.
    ///
    /// # Errors
    /// `open-failed`, whatever was wrong: key, nonce, body, tag and additional data cannot be told apart.
    // Out of line, so that a profile names it (`make counts`).
    #[inline(never)]
    pub fn open(&self, envelope: Envelope<'_>, aad: &AdditionalData) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let mut out = Zeroizing::new(vec![0_u8; envelope.body.len()]);
        let buffer = InOutBuf::new(envelope.body, out.as_mut_slice()).map_err(|_| Fault::new(Reason::Invariant))?;
        // SECURITY: on failure `out` is dropped (and wiped) here, so no unauthenticated byte can be used by mistake.
        self.0
            .decrypt_inout_detached(envelope.nonce.into(), aad.as_bytes(), buffer, envelope.tag.into())
            .map_err(|_| Fault::new(Reason::OpenFailed))?;
        Ok(out)
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Sevens;

    impl Entropy for Sevens {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
            bytes.fill(7);
            Ok(())
        }
    }

    #[test]
    fn debug_says_what_it_is_and_nothing_of_it() {
        let bytes = DekBytes::generate(&Sevens).unwrap();
        assert_eq!(
            (format!("{bytes:?}"), format!("{:?}", Dek::new(&bytes).unwrap())),
            ("DekBytes(secret)".into(), "Dek(secret)".into())
        );
    }

    #[test]
    fn a_dek_takes_as_little_locked_memory_as_the_documents_say() {
        // In whole cache lines. deploy/README.md and `doctor::host` count on three to a page, and on 56 to sixteen pages.
        let each = size_of::<Aes256Gcm>().next_multiple_of(64);
        assert!(each * 3 <= 4096 && each * 56 <= 65_536, "{each}");
    }
}
