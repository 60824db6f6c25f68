//! The ciphertext blob: real AES-256-GCM, as long as AWS's, opaque.
//!
//! Guarantees: every byte of a blob is authenticated, so no changed, cut or grafted blob opens; a blob opens only under
//! the key, the material and the encryption context that it was made with; key and material stand inside, masked, so that
//! no client can lean on finding them. Refuses to know keys by name and whether one may be used.

use super::key::Material;
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, Payload};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use uuid::Uuid;

/// EncryptionContext: sorted, so its encoding is canonical.
pub type Context = BTreeMap<String, String>;

/// AWS's blobs begin with these bytes today.
const MAGIC: [u8; 5] = [1, 2, 3, 0, 0x78];
const NONCE: usize = 12;
const LOCATOR: usize = 16 + 32;
const FILLER: usize = 55;
const CHECK: usize = 16;
const HEADER: usize = MAGIC.len() + NONCE + LOCATOR + FILLER;
/// What comes before ciphertext and tag. With the tag that is 152 bytes over the plaintext, as AWS's blobs are.
const PREFIX: usize = HEADER + CHECK;

/// What the service knows and no client does.
pub(super) struct BlobSecret([u8; 32]);

/// A blob whose outside is this service's own.
pub(super) struct Opened<'a> {
    pub(super) key: Uuid,
    pub(super) material: [u8; 32],
    header: &'a [u8],
    body: &'a [u8],
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    use rand::TryRng as _;
    let mut bytes = [0; N];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the operating system has random bytes");
    bytes
}

impl BlobSecret {
    pub(super) fn new() -> Self {
        Self(random())
    }

    fn digest(&self, purpose: &[u8], over: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(self.0).chain_update(purpose).chain_update(over).finalize().into()
    }

    /// XOR, its own inverse.
    fn mask(&self, nonce: &[u8], locator: &mut [u8]) {
        let stream = [self.digest(b"mask 0", nonce), self.digest(b"mask 1", nonce)].concat();
        for (byte, mask) in locator.iter_mut().zip(stream) {
            *byte ^= mask;
        }
    }

    pub(super) fn seal(&self, key: Uuid, material: &Material, context: &Context, plaintext: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE] = random();
        let mut locator = [key.as_bytes().as_slice(), material.id_bytes.as_slice()].concat();
        self.mask(&nonce, &mut locator);
        let mut blob = [MAGIC.as_slice(), &nonce, &locator, &random::<FILLER>()].concat();
        let body = material
            .cipher
            .encrypt(&nonce.into(), Payload { msg: plaintext, aad: &additional_data(&blob, context) })
            .expect("AES-GCM takes any plaintext that KMS takes");
        let check = self.digest(b"check", &blob);
        blob.extend_from_slice(&check[..CHECK]);
        blob.extend_from_slice(&body);
        blob
    }

    /// None for what this service did not make, or what was changed outside the encrypted part.
    pub(super) fn open<'a>(&self, blob: &'a [u8]) -> Option<Opened<'a>> {
        let (prefix, body) = blob.split_at_checked(PREFIX)?;
        let (header, check) = prefix.split_at_checked(HEADER)?;
        if check != &self.digest(b"check", header)[..CHECK] {
            return None;
        }
        let mut locator = header[MAGIC.len() + NONCE..][..LOCATOR].to_vec();
        self.mask(nonce_of(header), &mut locator);
        let key = Uuid::from_slice(&locator[..16]).ok()?;
        Some(Opened { key, material: locator[16..].try_into().ok()?, header, body })
    }
}

impl Opened<'_> {
    /// The plaintext, or None for another material, another context or a changed body.
    pub(super) fn plaintext(&self, cipher: &Aes256Gcm, context: &Context) -> Option<Vec<u8>> {
        let nonce: [u8; NONCE] = nonce_of(self.header).try_into().ok()?;
        cipher.decrypt(&nonce.into(), Payload { msg: self.body, aad: &additional_data(self.header, context) }).ok()
    }
}

fn nonce_of(header: &[u8]) -> &[u8] {
    &header[MAGIC.len()..][..NONCE]
}

fn additional_data(header: &[u8], context: &Context) -> Vec<u8> {
    let mut data = header.to_vec();
    for text in context.iter().flat_map(|(name, value)| [name, value]) {
        data.extend_from_slice(&(text.len() as u64).to_be_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    data
}
