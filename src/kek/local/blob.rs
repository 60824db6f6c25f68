//! A DEK under one version of a keyring: 77 bytes, laid out in the module doc of [`crate::kek::local`]. FROZEN.
//!
//! Guarantees: bound to the keyring, the version and the context; whatever is wrong with a blob is the one answer
//! `wrapped-dek-rejected`. SPEC: NIST SP 800-38D; random nonces allow 2^32 wraps per version (8.3), which a plugin that
//! makes a DEK every second reaches after 136 years.

use super::keyring::{Keyring, State, Version};
use crate::core::annotation::WrappedDek;
use crate::core::context::WrapContext;
use crate::core::dek::{DEK_LEN, DekBytes};
use crate::core::fault::{Fault, Reason};
use crate::core::kek_ref::KekRef;
use crate::core::port::{Entropy, Unwrapped, Wrapped};
use crate::memory::Locked;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
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
