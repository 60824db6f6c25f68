//! Which KEK, and which version of it.
//!
//! [`KekRef`] is what stands in the annotation `kek.kube-kms`: provider kind, `:`, the provider's stable reference.
//! [`KekVersion`] adds one generation of key material. Both are public, and neither is ever a name from a
//! configuration file, so that renaming things in a configuration cannot lose data.

use crate::fault::{Fault, Reason};
use std::fmt;

/// Bytes of a reference at most; a key ARN has about 75.
const REFERENCE_MAX: usize = 1024;

/// The kind of a KEK provider: the word before the colon, lower-case letters and digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KekKind(&'static str);

impl KekKind {
    /// AWS KMS.
    pub const AWS: Self = Self("aws");
    /// A keyring file on this host.
    pub const LOCAL: Self = Self("local");

    /// The word as it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for KekKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Names a KEK for good: `aws:arn:aws:kms:…` or `local:<uuid>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KekRef {
    whole: String,
    kind_len: usize,
}

impl KekRef {
    /// The reference of a KEK of this kind, from the provider's own answer.
    ///
    /// # Errors
    /// `annotation-invalid` when the identity is empty, over 1,024 bytes, or has blanks or control characters.
    pub fn new(kind: KekKind, identity: &str) -> Result<Self, Fault> {
        Self::parse(format!("{kind}:{identity}").as_bytes())
    }

    /// Reads the value of the annotation `kek.kube-kms`.
    ///
    /// # Errors
    /// `annotation-invalid` when it is not `kind:identity` in printable ASCII, or is too long.
    pub fn parse(value: &[u8]) -> Result<Self, Fault> {
        let invalid = || Fault::new(Reason::AnnotationInvalid);
        if value.len() > REFERENCE_MAX || !value.iter().all(u8::is_ascii_graphic) {
            return Err(invalid());
        }
        let whole = std::str::from_utf8(value).map_err(|_| invalid())?.to_owned();
        let (kind, identity) = whole.split_once(':').ok_or_else(invalid)?;
        let kind_ok = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !kind_ok || identity.is_empty() {
            return Err(invalid());
        }
        let kind_len = kind.len();
        Ok(Self { whole, kind_len })
    }

    /// The kind, which may be one that this build does not have.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.whole.get(..self.kind_len).unwrap_or_default()
    }

    /// The provider's stable reference: a key ARN, a keyring's uuid.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.whole.get(self.kind_len.saturating_add(1)..).unwrap_or_default()
    }

    /// The annotation's value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for KekRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

/// One generation of key material of a KEK. The version is empty where a KMS does not name its generations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KekVersion {
    /// Which KEK.
    pub kek: KekRef,
    /// AWS key material id, local version uuid; may be empty.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_split_at_its_first_colon() {
        let aws = KekRef::parse(b"aws:arn:aws:kms:eu-central-1:111122223333:key/1").unwrap();
        assert_eq!((aws.kind(), aws.identity()), ("aws", "arn:aws:kms:eu-central-1:111122223333:key/1"));
        assert_eq!(KekRef::new(KekKind::LOCAL, "x").unwrap().as_str(), "local:x");
    }

    #[test]
    fn a_reference_that_no_provider_writes_is_refused() {
        for bad in ["", "aws", ":x", "aws:", "AWS:x", "a-b:x", "aws:x y", "aws:x\n", "aws:ü"] {
            assert_eq!(KekRef::parse(bad.as_bytes()).unwrap_err().reason(), Reason::AnnotationInvalid, "{bad:?}");
        }
        assert!(KekRef::parse(format!("aws:{}", "x".repeat(1021)).as_bytes()).is_err());
        let longest = format!("aws:{}", "x".repeat(1020));
        assert_eq!(KekRef::parse(longest.as_bytes()).unwrap().to_string(), longest);
    }
}
