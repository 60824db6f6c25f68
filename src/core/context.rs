//! What every wrap is bound to: `kube-kms`=`v1` and the operator's pairs. FROZEN (stored format 1).
//!
//! For AWS it is the EncryptionContext; where a KMS takes bytes it is [`WrapContext::digest`]. Identity-bearing: a DEK
//! that was wrapped under one context does not unwrap under another.

use crate::envelope::lp;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const DOMAIN: &[u8] = b"kube-kms/context/v1";
/// The pair that every context has; configurations cannot set it.
pub const OWN_PAIR: (&str, &str) = ("kube-kms", "v1");

/// Pairs sorted by key, ours included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrapContext {
    pairs: BTreeMap<String, String>,
    digest: [u8; 32],
}

impl WrapContext {
    /// The operator's pairs and our own, which wins.
    #[must_use]
    pub fn new(operator: BTreeMap<String, String>) -> Self {
        let mut pairs = operator;
        pairs.insert(OWN_PAIR.0.to_owned(), OWN_PAIR.1.to_owned());
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        for (key, value) in &pairs {
            lp(&mut hash, key.as_bytes());
            lp(&mut hash, value.as_bytes());
        }
        let digest = hash.finalize().into();
        Self { pairs, digest }
    }

    /// All pairs, sorted by key.
    #[must_use]
    pub const fn pairs(&self) -> &BTreeMap<String, String> {
        &self.pairs
    }

    /// SHA-256 over all pairs, for a KMS that binds bytes.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}
