//! The annotations of stored format 1. FROZEN.
//!
//! They are repeated in clear in every object in etcd, so nothing is here without need: the wrapped DEK and the KEK that
//! can unwrap it, and the same again for each recovery KEK. Every annotation, known or not, is bound by the additional
//! data. SPEC: kube-apiserver takes names that are FQDNs without a slash, and 32 KiB in total.

use crate::envelope::lp;
use crate::fault::{Fault, Reason};
use crate::kek_ref::KekRef;
use crate::key_id::KeyId;
use crate::limit;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Holds the wrapped DEK as the provider returned it.
pub const DEK: &str = "dek.kube-kms";
/// Holds the [`KekRef`] of the KEK that can unwrap it.
pub const KEK: &str = "kek.kube-kms";

const AAD_DOMAIN: &[u8] = b"kube-kms/v1";

/// A DEK as a KEK wrapped it: opaque bytes, public.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WrappedDek(Vec<u8>);

impl WrappedDek {
    /// Takes what a provider returned, or what an annotation holds.
    ///
    /// # Errors
    /// `annotation-invalid` when it is empty or over 8 KiB.
    pub fn parse(blob: Vec<u8>) -> Result<Self, Fault> {
        if blob.is_empty() || blob.len() > limit::WRAPPED_DEK_MAX {
            return Err(Reason::AnnotationInvalid.into());
        }
        Ok(Self(blob))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whether kube-apiserver takes this name. SPEC: apimachinery `IsFullyQualifiedDomainName`: one trailing dot is cut off,
/// then an RFC 1123 subdomain of at least two labels of at most 63, 253 in all. A slash is not allowed, although some of
/// upstream's documentation shows one.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_ok = |label: &str| {
        let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        label.len() <= 63
            && alphanumeric(label.chars().next())
            && alphanumeric(label.chars().last())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(label_ok)
}

/// Recovery KEKs that a DEK can be wrapped under as well.
pub const RECOVERY_MAX: usize = 3;

/// Names an unwrapped DEK: which KEK, and the wrapped form. Two DEKs never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekName<'a> {
    /// The KEK that can unwrap it.
    pub kek: &'a KekRef,
    /// The DEK as that KEK wrapped it.
    pub wrapped: &'a [u8],
}

impl<'a> From<&'a Annotations> for DekName<'a> {
    fn from(annotations: &'a Annotations) -> Self {
        Self { kek: annotations.kek(), wrapped: annotations.wrapped_dek() }
    }
}

/// The same DEK under a recovery KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryWrap {
    /// The recovery KEK that can unwrap it.
    pub kek: KekRef,
    /// The DEK as that KEK wrapped it.
    pub dek: WrappedDek,
}

impl<'a> From<&'a RecoveryWrap> for DekName<'a> {
    fn from(wrap: &'a RecoveryWrap) -> Self {
        Self { kek: &wrap.kek, wrapped: wrap.dek.as_bytes() }
    }
}

/// The annotations of one write state or of one request, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotations {
    all: BTreeMap<String, Vec<u8>>,
    kek: KekRef,
}

impl Annotations {
    /// Those that go with a DEK wrapped under this KEK.
    #[must_use]
    pub fn new(kek: &KekRef, dek: &WrappedDek) -> Self {
        let all = BTreeMap::from([
            (DEK.to_owned(), dek.as_bytes().to_vec()),
            (KEK.to_owned(), kek.as_str().as_bytes().to_vec()),
        ]);
        Self { all, kek: kek.clone() }
    }

    /// Adds the same DEK under recovery KEK `number` (1 to [`RECOVERY_MAX`], as in the configuration).
    #[must_use]
    pub fn and_recovery(mut self, number: usize, wrap: &RecoveryWrap) -> Self {
        self.all.insert(format!("dek.r{number}.kube-kms"), wrap.dek.as_bytes().to_vec());
        self.all.insert(format!("kek.r{number}.kube-kms"), wrap.kek.as_str().as_bytes().to_vec());
        self
    }

    /// The same DEK under recovery KEKs, as far as they are there and well-formed. What is not is bound by the additional
    /// data all the same.
    #[must_use]
    pub fn recovery(&self) -> Vec<RecoveryWrap> {
        let wrap = |number: usize| {
            let dek = self.all.get(&format!("dek.r{number}.kube-kms"))?;
            let kek = self.all.get(&format!("kek.r{number}.kube-kms"))?;
            Some(RecoveryWrap { kek: KekRef::parse(kek).ok()?, dek: WrappedDek::parse(dek.clone()).ok()? })
        };
        (1..=RECOVERY_MAX).filter_map(wrap).collect()
    }

    /// Reads those of a DecryptRequest. Unknown names are kept: they take part in the additional data.
    ///
    /// # Errors
    /// `annotation-missing`, `annotation-invalid`, `annotations-too-large`.
    pub fn parse(all: BTreeMap<String, Vec<u8>>) -> Result<Self, Fault> {
        let size = all.iter().fold(0_usize, |sum, (k, v)| sum.saturating_add(k.len()).saturating_add(v.len()));
        if size > limit::ANNOTATIONS_MAX {
            return Err(Reason::AnnotationsTooLarge.into());
        }
        let dek = all.get(DEK).ok_or(Reason::AnnotationMissing)?;
        if dek.is_empty() || dek.len() > limit::WRAPPED_DEK_MAX {
            return Err(Reason::AnnotationInvalid.into());
        }
        let kek = KekRef::parse(all.get(KEK).ok_or(Reason::AnnotationMissing)?)?;
        Ok(Self { all, kek })
    }

    /// Which KEK can unwrap the DEK.
    #[must_use]
    pub const fn kek(&self) -> &KekRef {
        &self.kek
    }

    /// The wrapped DEK's bytes.
    #[must_use]
    pub fn wrapped_dek(&self) -> &[u8] {
        self.all.get(DEK).map_or(&[], Vec::as_slice)
    }

    /// All of them, sorted by name.
    #[must_use]
    pub const fn all(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.all
    }
}

/// The additional data of the seal: binds key_id and every annotation. FROZEN.
///
/// Constant for a write state and for a keyring entry, so that it is computed once and not per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdditionalData([u8; 32]);

impl AdditionalData {
    /// SHA-256(`kube-kms/v1` ‖ lp(key_id) ‖ lp(name) ‖ lp(value) for every annotation, sorted by name).
    #[must_use]
    pub fn bind(key_id: &KeyId, annotations: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut hash = Sha256::new();
        hash.update(AAD_DOMAIN);
        lp(&mut hash, key_id.as_str().as_bytes());
        for (name, value) in annotations {
            lp(&mut hash, name.as_bytes());
            lp(&mut hash, value);
        }
        Self(hash.finalize().into())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrapped DEK of so many bytes, and annotations of so many more than are needed.
    fn parsed(dek: usize, more: usize) -> Result<(), Reason> {
        let mut all = BTreeMap::from([(DEK.to_owned(), vec![1; dek]), (KEK.to_owned(), b"local:x".to_vec())]);
        if more > 0 {
            all.insert("m".to_owned(), vec![0; more - 1]);
        }
        Annotations::parse(all).map(drop).map_err(|fault| fault.reason())
    }

    #[test]
    fn each_limit_is_the_last_size_that_is_taken() {
        for (bytes, taken) in
            [(0, false), (1, true), (limit::WRAPPED_DEK_MAX, true), (limit::WRAPPED_DEK_MAX + 1, false)]
        {
            let expected = if taken { Ok(()) } else { Err(Reason::AnnotationInvalid) };
            assert_eq!(parsed(bytes, 0), expected, "{bytes}");
            let blob = WrappedDek::parse(vec![1; bytes]).map(drop).map_err(|fault| fault.reason());
            assert_eq!(blob, expected, "{bytes}");
        }
        let needed = DEK.len() + 1 + KEK.len() + b"local:x".len();
        assert_eq!(parsed(1, limit::ANNOTATIONS_MAX - needed), Ok(()));
        assert_eq!(parsed(1, limit::ANNOTATIONS_MAX - needed + 1), Err(Reason::AnnotationsTooLarge));
    }

    #[test]
    fn the_recovery_wraps_come_back_in_their_order() {
        let kek = |name: &str| KekRef::parse(name.as_bytes()).unwrap();
        let dek = |byte| WrappedDek::parse(vec![byte]).unwrap();
        let mut annotations = Annotations::new(&kek("local:x"), &dek(0));
        assert!(annotations.recovery().is_empty());
        for number in [1, 3] {
            let byte = u8::try_from(number).unwrap();
            annotations = annotations.and_recovery(number, &RecoveryWrap { kek: kek("local:r"), dek: dek(byte) });
        }
        let found: Vec<_> = annotations.recovery().into_iter().map(|wrap| (wrap.kek, wrap.dek)).collect();
        assert_eq!(found, [(kek("local:r"), dek(1)), (kek("local:r"), dek(3))]);
    }
}
