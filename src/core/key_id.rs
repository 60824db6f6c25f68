//! `key_id`: the public name of one KEK version, as reported to kube-apiserver. FROZEN (stored format 1).
//!
//! Guarantees: deterministic from remote facts, so equal on every replica; a hash, so it shows nothing; short, because
//! it is repeated in every object in etcd. SPEC: KEP-3299 "key_id and rotation"; docs/format.md.

use crate::envelope::lp;
use crate::fault::{Fault, Reason};
use crate::kek_ref::KekVersion;
use crate::limit;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;

/// Separates this hash from every other use of SHA-256 in the format.
const DOMAIN: &[u8] = b"kube-kms/key-id/v1";
/// Hex digits of the hash that are kept: 128 bits.
const DIGITS: usize = 32;

/// 1 to 1,024 bytes of UTF-8 that name a KEK version. Those that we derive are `k1-` and 32 hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// The id of this KEK version under the operator's `epoch`.
    #[must_use]
    pub fn derive(version: &KekVersion, epoch: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        lp(&mut hash, version.kek.kind().as_bytes());
        lp(&mut hash, version.kek.identity().as_bytes());
        lp(&mut hash, version.version.as_bytes());
        hash.update(epoch.to_be_bytes());
        let digest = hex::encode(hash.finalize());
        Self(format!("k1-{}", digest.get(..DIGITS).unwrap_or_default()))
    }

    /// Takes a key_id that kube-apiserver passes back, ours or another plugin's.
    ///
    /// # Errors
    /// `key-id-empty`; `key-id-too-long` over 1,024 bytes.
    pub fn parse(text: String) -> Result<Self, Fault> {
        match text.len() {
            0 => Err(Reason::KeyIdEmpty.into()),
            n if n > limit::KEY_ID_MAX => Err(Reason::KeyIdTooLong.into()),
            _ => Ok(Self(text)),
        }
    }

    /// The id as it goes over the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256:` and the hex digest of the id: exactly kube-apiserver's metric label `key_id_hash`.
    #[must_use]
    pub fn metric_hash(&self) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(self.0.as_bytes())))
    }

    /// Safe in a log line: our own ids as they are, anything else as its hash.
    #[must_use]
    pub fn loggable(&self) -> Cow<'_, str> {
        if self.is_ours() { Cow::Borrowed(&self.0) } else { Cow::Owned(self.metric_hash()) }
    }

    /// Whether the id has the shape of those that [`KeyId::derive`] makes.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.0.strip_prefix("k1-").is_some_and(|rest| {
            let is_digit = |b: u8| b.is_ascii_digit() | (b'a'..=b'f').contains(&b);
            rest.len() == DIGITS && rest.bytes().fold(true, |all, b| all & is_digit(b))
        })
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.loggable())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> KeyId {
        KeyId::parse(text.to_owned()).unwrap()
    }

    #[test]
    fn a_key_id_has_1_to_1024_bytes() {
        let parsed = |bytes: usize| KeyId::parse("x".repeat(bytes)).map(drop).map_err(|fault| fault.reason());
        assert_eq!(
            [0, 1, 1024, 1025].map(parsed),
            [Err(Reason::KeyIdEmpty), Ok(()), Ok(()), Err(Reason::KeyIdTooLong)]
        );
    }

    #[test]
    fn our_own_ids_are_shown_and_what_somebody_else_has_sent_is_its_hash() {
        let ours = format!("k1-{}", "0123456789abcdef".repeat(2));
        assert!(id(&ours).is_ours());
        assert_eq!((id(&ours).to_string(), format!("{:?}", id(&ours))), (ours.clone(), ours.clone()));
        // SPEC: kube-apiserver's key_id_hash: printf 'a\n' | sha256sum.
        let hash = "sha256:87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7";
        assert_eq!((id("a\n").metric_hash().as_str(), id("a\n").to_string().as_str()), (hash, hash));
        for other in
            ["x", "k1-", &ours[1..], &ours[..34], &format!("{ours}0"), &ours.replace('f', "g"), &ours.replace('a', "A")]
        {
            assert!(!id(other).is_ours() && id(other).to_string().starts_with("sha256:"), "{other}");
        }
    }
}
