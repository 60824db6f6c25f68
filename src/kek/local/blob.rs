//! A DEK under one version of a keyring: 77 bytes, laid out in the module doc of [`crate`]. FROZEN.
//!
//! Guarantees: bound to the keyring, the version and the context; whatever is wrong with a blob is the one answer
//! `wrapped-dek-rejected`. SPEC: NIST SP 800-38D; random nonces allow 2^32 wraps per version (8.3), which a plugin that
//! makes a DEK every second reaches after 136 years.

use super::keyring::{Keyring, State, Version};
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::{DEK_LEN, DekBytes};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::port::{Entropy, Unwrapped, Wrapped};
use kube_kms_memory::Locked;
use uuid::Uuid;
use zeroize::Zeroizing;

const FORMAT: u8 = 0x01;
const DOMAIN: &[u8] = b"kube-kms/local/v1";
const ID_LEN: usize = 16;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// Bytes of a wrapped DEK.
pub(super) const BLOB_LEN: usize = 1 + ID_LEN + NONCE_LEN + DEK_LEN + TAG_LEN;

/// Wraps under the current version.
pub(super) fn wrap(
    keyring: &Keyring,
    dek: &DekBytes,
    context: &WrapContext,
    entropy: &dyn Entropy,
) -> Result<Wrapped, Fault> {
    let version = keyring.find(keyring.current_id()).ok_or(Reason::Invariant)?;
    let mut nonce = [0_u8; NONCE_LEN];
    entropy.fill(&mut nonce)?;
    let mut body = [0_u8; DEK_LEN];
    let buffer = InOutBuf::new(dek.expose_bytes().as_slice(), &mut body).map_err(|_| Reason::Invariant)?;
    let aad = additional_data(keyring.id(), version.id, context);
    let tag = cipher(version)?.encrypt_inout_detached(&nonce.into(), &aad, buffer).map_err(|_| Reason::Invariant)?;
    let tag: [u8; TAG_LEN] = tag.into();
    let blob = [&[FORMAT], version.id.as_bytes().as_slice(), &nonce, &body, &tag].concat();
    Ok(Wrapped { dek: WrappedDek::parse(blob)?, kek: keyring.kek()? })
}

/// Unwraps what any version of this keyring wrapped.
pub(super) fn unwrap(
    keyring: &Keyring,
    kek: &KekRef,
    blob: &WrappedDek,
    context: &WrapContext,
) -> Result<Unwrapped, Fault> {
    if *kek != keyring.kek()? {
        return Err(rejected("it names another keyring than the one in the file"));
    }
    let parts = Parts::split(blob.as_bytes())
        .ok_or_else(|| rejected("it is not 77 bytes long or not of a format that this version knows"))?;
    let version = keyring
        .find(parts.version)
        .ok_or_else(|| rejected("it names a version that is not in the keyring; is the file up to date?"))?;
    let mut dek = Zeroizing::new([0_u8; DEK_LEN]);
    let buffer = InOutBuf::new(parts.body.as_slice(), dek.as_mut_slice()).map_err(|_| Reason::Invariant)?;
    let aad = additional_data(keyring.id(), version.id, context);
    cipher(version)?
        .decrypt_inout_detached(parts.nonce.into(), &aad, buffer, parts.tag.into())
        .map_err(|_| rejected("it does not open: damaged, or bound to another context"))?;
    // SECURITY: after the tag, so that whoever can write to etcd cannot make up a blob that tells of a disabled KEK.
    if version.state == State::Retired {
        let why = format!("version {} is retired; `kube-kms keyring reinstate` undoes it", version.id);
        return Err(Fault::caused_by(Reason::KekDisabled, why));
    }
    Ok(Unwrapped { dek: DekBytes::copy_from(dek.as_slice())?, version: keyring.kek_version(version.id)? })
}

struct Parts<'a> {
    version: Uuid,
    nonce: &'a [u8; NONCE_LEN],
    body: &'a [u8; DEK_LEN],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> Parts<'a> {
    fn split(blob: &'a [u8]) -> Option<Self> {
        let blob: &[u8; BLOB_LEN] = blob.try_into().ok()?;
        let (format, rest) = blob.split_first()?;
        let (version, rest) = rest.split_first_chunk::<ID_LEN>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (body, rest) = rest.split_first_chunk::<DEK_LEN>()?;
        let tag = rest.try_into().ok()?;
        (*format == FORMAT).then_some(Self { version: Uuid::from_bytes(*version), nonce, body, tag })
    }
}

fn additional_data(keyring: Uuid, version: Uuid, context: &WrapContext) -> Vec<u8> {
    [DOMAIN, keyring.as_bytes(), version.as_bytes(), context.digest()].concat()
}

/// The key schedule, in locked memory for as long as one call needs it.
fn cipher(version: &Version) -> Result<Locked<Aes256Gcm>, Fault> {
    Locked::new(|| Aes256Gcm::new(version.material.expose_bytes().into()))
        .map_err(|e| Fault::caused_by(Reason::Memory, e))
}

fn rejected(why: &'static str) -> Fault {
    Fault::caused_by(Reason::WrappedDekRejected, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Counting, OTHER, VERSION, context, dek, known_file};
    use crate::json;
    use proptest::prelude::*;

    /// Made with another implementation of AES-GCM, from the layout in the module doc.
    const KNOWN: &str = "012f2b5a1e3f7f4c578a384f0f7a8d1c22404142434445464748494a4bd9cb034537e0b86d70f8db7233a315\
                         326072052dfe54dbbe2a52a04872f424940046f6f5b80e760a3faaaf0e28322aba";

    fn known() -> Keyring {
        json::parse(known_file().as_bytes()).ok().unwrap()
    }

    fn open(keyring: &Keyring, blob: &[u8], cluster: &str) -> Result<Unwrapped, Fault> {
        unwrap(keyring, &keyring.kek().unwrap(), &WrappedDek::parse(blob.to_vec()).unwrap(), &context(cluster))
    }

    fn reason(answer: Result<Unwrapped, Fault>) -> Reason {
        answer.unwrap_err().reason()
    }

    #[test]
    fn the_layout_is_the_frozen_one() {
        let wrapped = wrap(&known(), &dek(), &context("prod"), &Counting::from(0x40)).unwrap();
        assert_eq!(hex::encode(wrapped.dek.as_bytes()), KNOWN);
        assert_eq!(wrapped.dek.as_bytes().len(), 77);
        assert_eq!(wrapped.kek.as_str(), "local:6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11");
        let back = open(&known(), wrapped.dek.as_bytes(), "prod").unwrap();
        assert!(back.dek.same_as(&dek()));
        assert_eq!((back.version.kek, back.version.version.as_str()), (wrapped.kek, VERSION));
    }

    #[test]
    fn every_flipped_bit_is_rejected() {
        let blob = hex::decode(KNOWN).unwrap();
        for index in 0..blob.len() {
            for bit in 0..8 {
                let mut bad = blob.clone();
                bad[index] ^= 1 << bit;
                assert_eq!(reason(open(&known(), &bad, "prod")), Reason::WrappedDekRejected, "{index} {bit}");
            }
        }
    }

    #[test]
    fn every_other_length_is_rejected() {
        let blob = hex::decode(KNOWN).unwrap();
        for len in 1..blob.len() {
            assert_eq!(reason(open(&known(), &blob[..len], "prod")), Reason::WrappedDekRejected, "{len}");
            assert_eq!(reason(open(&known(), &blob[len..], "prod")), Reason::WrappedDekRejected, "from {len}");
        }
        assert_eq!(reason(open(&known(), &[blob, vec![0]].concat(), "prod")), Reason::WrappedDekRejected);
    }

    #[test]
    fn another_context_or_keyring_or_version_is_rejected() {
        // Wrapped here and now, so that the only thing that is wrong is the one that is meant.
        let wrapped = wrap(&known(), &dek(), &context("prod"), &Counting::from(1)).unwrap();
        let blob = wrapped.dek.as_bytes().to_vec();
        assert!(open(&known(), &blob, "prod").is_ok());
        assert_eq!(reason(open(&known(), &blob, "test")), Reason::WrappedDekRejected);
        // The same key in another keyring, and under the name of another version.
        let text = known_file();
        let moved = json::parse(text.replace("6f1c0c1e", "6f1c0c1f").as_bytes()).ok().unwrap();
        assert_eq!(reason(open(&moved, &blob, "prod")), Reason::WrappedDekRejected);
        let name = "2f2b5a1e-3f7f-4c57-8a38-4f0f7a8d1c23";
        let renamed = json::parse(text.replace(VERSION, name).as_bytes()).ok().unwrap();
        let mut bad = blob.clone();
        bad[16] = 0x23;
        assert_eq!(reason(open(&renamed, &bad, "prod")), Reason::WrappedDekRejected);
        // The annotation names another KEK.
        for kek in ["local:6f1c0c1f-8a51-4c7e-9a63-0f3f0f3a9b11", "aws:6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11"] {
            let kek = KekRef::parse(kek.as_bytes()).unwrap();
            let answer = unwrap(&known(), &kek, &WrappedDek::parse(blob.clone()).unwrap(), &context("prod"));
            assert_eq!(reason(answer), Reason::WrappedDekRejected);
        }
    }

    #[test]
    fn a_retired_version_says_so_and_only_of_blobs_that_are_its_own() {
        let mut keyring = known();
        keyring.promote(OTHER.parse().unwrap()).unwrap();
        let blob = hex::decode(KNOWN).unwrap();
        assert!(open(&keyring, &blob, "prod").is_ok());
        keyring.retire(VERSION.parse().unwrap()).unwrap();
        assert_eq!(reason(open(&keyring, &blob, "prod")), Reason::KekDisabled);
        let mut forged = blob.clone();
        forged[40] ^= 1;
        assert_eq!(reason(open(&keyring, &forged, "prod")), Reason::WrappedDekRejected);
        keyring.reinstate(VERSION.parse().unwrap()).unwrap();
        assert!(open(&keyring, &blob, "prod").is_ok());
    }

    proptest! {
        #[test]
        fn what_was_wrapped_comes_back(cluster in ".{0,20}", first in any::<u8>(), nonce in any::<u8>()) {
            let dek = DekBytes::generate(&Counting::from(first)).unwrap();
            let keyring = known();
            let wrapped = wrap(&keyring, &dek, &context(&cluster), &Counting::from(nonce)).unwrap();
            prop_assert!(open(&keyring, wrapped.dek.as_bytes(), &cluster).unwrap().dek.same_as(&dek));
        }

        #[test]
        fn noise_is_rejected(noise in proptest::collection::vec(any::<u8>(), 1..200)) {
            prop_assert_eq!(reason(open(&known(), &noise, "prod")), Reason::WrappedDekRejected);
        }
    }
}
