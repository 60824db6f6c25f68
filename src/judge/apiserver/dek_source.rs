//! What the plugin wraps for kube-apiserver, and how objects are sealed with it.
//!
//! Guarantees: wiped on drop, never printed. A seed (type 1) gives a key of its own for every write: AES-256-GCM under
//! HKDF-Expand-SHA256(seed, 32 random bytes), without the extract step. A key (type 0) is from Kubernetes 1.27 and 1.28 and
//! is only read. The additional data is the full etcd key. SPEC: k8s.io/apiserver value/encrypt/aes
//! `NewHKDFExtendedNonceGCMTransformer`; RFC 5869 section 2.3.

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, AeadCore, Nonce, Payload};
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, KeyInit};
use hkdf::Hkdf;
use kms_v2_api::v2::EncryptedDekSourceType;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::port::Entropy;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of a seed. SPEC: `MinSeedSizeExtendedNonceGCM`.
pub const SEED_LEN: usize = 32;
/// Bytes of randomness from which the key of one write is expanded.
const INFO_LEN: usize = 32;
/// Bytes of an AES-GCM nonce.
const NONCE_LEN: usize = 12;

/// Decrypt returned a length that this type cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongLength(pub usize);

/// See the module.
pub enum DekSource {
    /// Type 1.
    Seed(Zeroizing<Vec<u8>>),
    /// Type 0, legacy.
    Key(Zeroizing<Vec<u8>>),
}

impl DekSource {
    /// Draws a new seed.
    ///
    /// # Errors
    /// `entropy`.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self, Fault> {
        let mut seed = Zeroizing::new(vec![0; SEED_LEN]);
        entropy.fill(&mut seed)?;
        Ok(Self::Seed(seed))
    }

    /// Takes what Decrypt returned.
    ///
    /// # Errors
    /// A seed has 32 bytes or more, a key 16, 24 or 32.
    pub fn parse(kind: EncryptedDekSourceType, bytes: &[u8]) -> Result<Self, WrongLength> {
        let secret = || Zeroizing::new(bytes.to_vec());
        match (kind, bytes.len()) {
            (EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed, n) if n >= SEED_LEN => Ok(Self::Seed(secret())),
            (EncryptedDekSourceType::AesGcmKey, 16 | 24 | 32) => Ok(Self::Key(secret())),
            (_, n) => Err(WrongLength(n)),
        }
    }

    /// The secret itself. SECURITY: for the Encrypt that wraps it, and for nothing else.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8] {
        match self {
            Self::Seed(secret) | Self::Key(secret) => secret,
        }
    }

    /// By which the same secret is known again. It has as much entropy as the secret, so it tells nothing of it.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(self.expose_bytes()).into()
    }

    /// Seals one object: `EncryptedObject.encryptedData`.
    ///
    /// # Errors
    /// `entropy`; `invariant` for a key, which nothing writes with any more.
    pub fn seal(&self, entropy: &dyn Entropy, etcd_key: &str, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut info = [0; INFO_LEN];
        let mut nonce = [0; NONCE_LEN];
        entropy.fill(&mut info)?;
        entropy.fill(&mut nonce)?;
        self.seal_with(&info, &nonce, etcd_key, plaintext)
    }

    fn seal_with(
        &self,
        info: &[u8; INFO_LEN],
        nonce: &[u8; NONCE_LEN],
        etcd_key: &str,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let broken = || Fault::new(Reason::Invariant);
        let Self::Seed(seed) = self else { return Err(broken()) };
        let key = expand(seed, info).ok_or_else(broken)?;
        let cipher = Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| broken())?;
        let payload = Payload { msg: plaintext, aad: etcd_key.as_bytes() };
        let body = cipher.encrypt(&Nonce::<Aes256Gcm>::from(*nonce), payload).map_err(|_| broken())?;
        Ok([info.as_slice(), nonce, &body].concat())
    }

    /// Opens one object; `None` whatever was wrong with it.
    #[must_use]
    pub fn open(&self, etcd_key: &str, data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::Seed(seed) => {
                let (info, data) = data.split_first_chunk::<INFO_LEN>()?;
                let key = expand(seed, info)?;
                open_with::<Aes256Gcm>(key.as_slice(), etcd_key, data)
            }
            Self::Key(key) if key.len() == 16 => open_with::<Aes128Gcm>(key, etcd_key, data),
            Self::Key(key) if key.len() == 24 => open_with::<AesGcm<Aes192, U12>>(key, etcd_key, data),
            Self::Key(key) => open_with::<Aes256Gcm>(key, etcd_key, data),
        }
    }
}

impl fmt::Debug for DekSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DekSource(secret)")
    }
}

fn expand(seed: &[u8], info: &[u8; INFO_LEN]) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::from_prk(seed).ok()?.expand(info, key.as_mut_slice()).ok()?;
    Some(key)
}

fn open_with<C: KeyInit + Aead + AeadCore<NonceSize = U12>>(
    key: &[u8],
    etcd_key: &str,
    data: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, body) = data.split_first_chunk::<NONCE_LEN>()?;
    let cipher = C::new_from_slice(key).ok()?;
    let payload = Payload { msg: body, aad: etcd_key.as_bytes() };
    cipher.decrypt(&Nonce::<C>::from(*nonce), payload).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_v2_api::stored;
    use kms_v2_api::v2::EncryptedObject;
    use kube_kms_os::OsEntropy;
    use std::collections::BTreeMap;

    const SEED: EncryptedDekSourceType = EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed;
    const KEY: EncryptedDekSourceType = EncryptedDekSourceType::AesGcmKey;

    #[test]
    fn upstreams_own_vector_opens_and_only_with_its_additional_data() {
        // SPEC: k8s.io/apiserver aes_test.go, TestExtendedNonceGCMLegacyDataCompatibility.
        let seed = hex::decode("5d40323a820ff95561675e3b95e81867c5fdd561d35a88a2d08b08aa9d4fcf5c").unwrap();
        let data = hex::decode(
            "2442759e33945fbad709db577a0f037fd8a709fc76979b8942209debcecb9d57efe3d6ff6a1ef6ee9a5003b9833b3043cec1e47b\
             35175b151107a8d2416b0e296bbf66b5d102fcefdf9a78f293d271",
        )
        .unwrap();
        let source = DekSource::parse(SEED, &seed).unwrap();
        assert_eq!(source.open("bamboo", &data).unwrap().as_slice(), b"pandas are the best");
        assert!(source.open("bambu", &data).is_none());
    }

    #[test]
    fn a_whole_value_for_etcd_comes_out_byte_for_byte() {
        let range = |from: u8| -> Vec<u8> { (from..from + 32).collect() };
        let source = DekSource::parse(SEED, &range(0)).unwrap();
        let info: [u8; 32] = range(0x20).try_into().unwrap();
        let nonce: [u8; 12] = range(0x40)[..12].try_into().unwrap();
        let key = "/registry/secrets/default/s1";
        let object = EncryptedObject {
            encrypted_data: source.seal_with(&info, &nonce, key, b"hello etcd").unwrap(),
            key_id: "key-1".to_owned(),
            encrypted_dek_source: vec![0xaa, 0xbb, 0xcc],
            annotations: BTreeMap::from([("a.example.com".to_owned(), vec![1])]),
            encrypted_dek_source_type: SEED.into(),
        };
        let value = hex::decode(
            "6b38733a656e633a6b6d733a76323a64656d6f3a0a46202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d\
             3e3f404142434445464748494a4b6f6547cdc02b1b1dcdef04ede2852daefb4aad95d2634d3d1ef212056b65792d311a03aabbcc\
             22120a0d612e6578616d706c652e636f6d1201012801",
        )
        .unwrap();
        assert_eq!(hex::encode(stored::encode("demo", &object)), hex::encode(&value));
        let (name, read) = stored::decode(&value).unwrap();
        assert_eq!((name, &read), ("demo", &object));
        assert_eq!(source.open(key, &read.encrypted_data).unwrap().as_slice(), b"hello etcd");
        assert_eq!(
            hex::encode(expand(&range(0), &info).unwrap().as_slice()),
            "ccb4f05e673c90bd153935b11d0dabfc00537bc35cf92953deac178dd081ef8d"
        );
    }

    #[test]
    fn legacy_keys_of_every_length_open_what_aes_gcm_sealed() {
        let seal = |key: &[u8]| -> Vec<u8> {
            let nonce = [9_u8; 12];
            let payload = Payload { msg: b"old", aad: b"/k" };
            let body = match key.len() {
                16 => Aes128Gcm::new_from_slice(key).unwrap().encrypt(&nonce.into(), payload),
                24 => AesGcm::<Aes192, U12>::new_from_slice(key).unwrap().encrypt(&nonce.into(), payload),
                _ => Aes256Gcm::new_from_slice(key).unwrap().encrypt(&nonce.into(), payload),
            };
            [nonce.as_slice(), &body.unwrap()].concat()
        };
        for length in [16, 24, 32] {
            let key = vec![7; length];
            let source = DekSource::parse(KEY, &key).unwrap();
            assert_eq!(source.open("/k", &seal(&key)).unwrap().as_slice(), b"old");
            assert!(source.open("/other", &seal(&key)).is_none());
            assert!(source.seal(&OsEntropy, "/k", b"new").is_err(), "nothing writes type 0");
        }
    }

    #[test]
    fn lengths_are_taken_as_kube_apiserver_takes_them() {
        for (kind, length, taken) in
            [(SEED, 31, false), (SEED, 32, true), (SEED, 48, true), (KEY, 0, false), (KEY, 17, false), (KEY, 48, false)]
        {
            assert_eq!(DekSource::parse(kind, &vec![1; length]).is_ok(), taken, "{kind:?} {length}");
        }
    }

    #[test]
    fn a_seed_is_fresh_seals_differently_every_time_and_is_never_printed() {
        let source = DekSource::generate(&OsEntropy).unwrap();
        assert_ne!(source.fingerprint(), DekSource::generate(&OsEntropy).unwrap().fingerprint());
        let (a, b) = (source.seal(&OsEntropy, "/k", b"x").unwrap(), source.seal(&OsEntropy, "/k", b"x").unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 32 + 12 + 1 + 16);
        assert!(source.open("/k", &a[..40]).is_none() && source.open("/k", &[]).is_none());
        assert_eq!(format!("{source:?}"), "DekSource(secret)");
    }
}
