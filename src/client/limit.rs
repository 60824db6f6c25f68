//! What kube-apiserver takes from a plugin and what it refuses: version, key_id, ciphertext, annotations.
//!
//! Guarantees: the boundaries are exactly kube-apiserver's, to the byte. Refuses to know what a refusal leads to.
//! SPEC: k8s.io/apiserver kmsv2 `ValidateKeyID`, `ValidateEncryptedObject`, `validateAnnotations`; apimachinery
//! `IsFullyQualifiedDomainName`.

use kube_kms_core::annotation::is_name;
use kube_kms_core::limit;
use std::collections::BTreeMap;

/// The versions that Status may name.
pub const VERSIONS: [&str; 2] = ["v2", "v2beta1"];
/// The only healthz text that counts as healthy.
pub const HEALTHY: &str = "ok";

/// One rule that an answer breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A key_id without a byte.
    KeyIdEmpty,
    /// A key_id of this many bytes, over 1,024.
    KeyIdTooLong(usize),
    /// A ciphertext without a byte.
    CiphertextEmpty,
    /// A ciphertext of this many bytes, over 1,024.
    CiphertextTooLong(usize),
    /// An annotation whose name is no fully qualified domain name.
    AnnotationName(String),
    /// Annotation names and values of this many bytes in all, over 32,768.
    AnnotationsTooLarge(usize),
}

impl Violation {
    /// In words, for an answer to this RPC.
    #[must_use]
    pub fn describe(&self, rpc: &str) -> String {
        match self {
            Self::KeyIdEmpty => format!("{rpc}.key_id has 0 bytes; kube-apiserver takes 1 to 1024"),
            Self::KeyIdTooLong(n) => format!("{rpc}.key_id has {n} bytes; kube-apiserver takes 1 to 1024"),
            Self::CiphertextEmpty => format!("{rpc}.ciphertext has 0 bytes; kube-apiserver takes 1 to 1024"),
            Self::CiphertextTooLong(n) => format!("{rpc}.ciphertext has {n} bytes; kube-apiserver takes 1 to 1024"),
            Self::AnnotationName(name) => format!("annotation name {name:?} is not a fully qualified domain name"),
            Self::AnnotationsTooLarge(n) => format!("{rpc}.annotations have {n} bytes; kube-apiserver takes 32768"),
        }
    }
}

/// Whether Status may name this version.
#[must_use]
pub fn is_accepted_version(version: &str) -> bool {
    VERSIONS.contains(&version)
}

/// The rule on key_id.
///
/// # Errors
/// The rule that it breaks.
pub const fn check_key_id(key_id: &str) -> Result<(), Violation> {
    match key_id.len() {
        0 => Err(Violation::KeyIdEmpty),
        n if n > limit::KEY_ID_MAX => Err(Violation::KeyIdTooLong(n)),
        _ => Ok(()),
    }
}

/// Every rule on what Encrypt returns, and again on what etcd holds: all that are broken.
#[must_use]
pub fn check_sealed(key_id: &str, ciphertext: &[u8], annotations: &BTreeMap<String, Vec<u8>>) -> Vec<Violation> {
    let mut broken = Vec::new();
    match ciphertext.len() {
        0 => broken.push(Violation::CiphertextEmpty),
        n if n > limit::CIPHERTEXT_MAX => broken.push(Violation::CiphertextTooLong(n)),
        _ => {}
    }
    broken.extend(check_key_id(key_id).err());
    broken.extend(annotations.keys().filter(|name| !is_name(name)).cloned().map(Violation::AnnotationName));
    let size = annotations_size(annotations);
    if size > limit::ANNOTATIONS_MAX {
        broken.push(Violation::AnnotationsTooLarge(size));
    }
    broken
}

/// Bytes of all names and values.
#[must_use]
pub fn annotations_size(annotations: &BTreeMap<String, Vec<u8>>) -> usize {
    annotations.iter().fold(0, |sum: usize, (k, v)| sum.saturating_add(k.len()).saturating_add(v.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotation_names_are_judged_as_kube_apiserver_judges_them() {
        // SPEC: the lists of TestValidateAnnotations and of apimachinery's own tests.
        for good in [
            "a.com",
            "k8s.io",
            "dev.k8s.io.",
            "10.0.0.1",
            &format!("{}.io", "a".repeat(63)),
            "dek.kube-kms",
            "dek.r1.kube-kms",
        ] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "com",
            ".com",
            ".",
            "",
            "Dev.k8s.io",
            "*.bar.com",
            "underscores_are_bad.k8s.io",
            "foo@bar.example.com",
            "http://foo.example.com",
            "kms.example.io/x",
            "-a.com",
            "a-.com",
            &format!("{}.io", "a".repeat(64)),
            &format!("{}.io", "a.".repeat(126)),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn every_boundary_is_the_last_byte_that_is_taken() {
        let none = BTreeMap::new();
        let of = |n: usize| BTreeMap::from([("a.io".to_owned(), vec![0; n])]);
        assert_eq!(check_sealed("k", &[1], &none), []);
        assert_eq!(check_sealed(&"k".repeat(1024), &[1; 1024], &of(32 * 1024 - 4)), []);
        assert_eq!(
            check_sealed(&"k".repeat(1025), &[1; 1025], &of(32 * 1024 - 3)),
            [Violation::CiphertextTooLong(1025), Violation::KeyIdTooLong(1025), Violation::AnnotationsTooLarge(32769)]
        );
        assert_eq!(check_sealed("", &[], &none), [Violation::CiphertextEmpty, Violation::KeyIdEmpty]);
        assert!(is_accepted_version("v2") && is_accepted_version("v2beta1"));
        assert!(!is_accepted_version("v2alpha1") && !is_accepted_version("V2") && !is_accepted_version(""));
    }
}
