//! The value that kube-apiserver stores in etcd for one object of a KMS v2 provider: prefix, provider name, message.
//!
//! A leaf, because the API server simulator writes it and the etcd scanner reads it. Refuses to know what the message
//! means. SPEC: k8s.io/apiserver `kmsTransformerPrefixV2`; provider names cannot contain a colon, so the split is exact.

use crate::v2::EncryptedObject;
use prost::Message;
use std::fmt;

/// What every value of every KMS v2 provider begins with; the provider's name and a colon follow.
pub const PREFIX: &[u8] = b"k8s:enc:kms:v2:";

/// Why a value is not one of a KMS v2 provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// It does not begin with [`PREFIX`].
    Prefix,
    /// No colon ends the provider's name, or the name is empty or no UTF-8.
    ProviderName,
    /// What follows is not the message.
    Message,
}

impl fmt::Display for NotStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "the value is not of a KMS v2 provider",
            Self::ProviderName => "the value names no provider",
            Self::Message => "the value is not an EncryptedObject",
        })
    }
}

impl std::error::Error for NotStored {}

/// The bytes for etcd.
#[must_use]
pub fn encode(provider: &str, object: &EncryptedObject) -> Vec<u8> {
    let mut value = [PREFIX, provider.as_bytes(), b":"].concat();
    value.extend_from_slice(&object.encode_to_vec());
    value
}

/// The provider's name and the message.
///
/// # Errors
/// When it is not such a value. The limits on the fields are not checked here.
pub fn decode(value: &[u8]) -> Result<(&str, EncryptedObject), NotStored> {
    let rest = value.strip_prefix(PREFIX).ok_or(NotStored::Prefix)?;
    let colon = rest.iter().position(|b| *b == b':').filter(|at| *at > 0).ok_or(NotStored::ProviderName)?;
    let (name, message) = rest.split_at_checked(colon).ok_or(NotStored::ProviderName)?;
    let name = std::str::from_utf8(name).map_err(|_| NotStored::ProviderName)?;
    let message = message.strip_prefix(b":").ok_or(NotStored::ProviderName)?;
    EncryptedObject::decode(message).map(|object| (name, object)).map_err(|_| NotStored::Message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_round_and_what_is_not_one_is_refused() {
        let object = EncryptedObject { key_id: "k".to_owned(), encrypted_data: vec![1], ..Default::default() };
        let value = encode("demo", &object);
        assert!(value.starts_with(b"k8s:enc:kms:v2:demo:"));
        assert_eq!(decode(&value), Ok(("demo", object)));
        assert_eq!(decode(b"k8s:enc:kms:v1:demo:x"), Err(NotStored::Prefix));
        assert_eq!(decode(b"k8s:enc:kms:v2:demo"), Err(NotStored::ProviderName));
        assert_eq!(decode(b"k8s:enc:kms:v2::x"), Err(NotStored::ProviderName));
        assert_eq!(decode(b"k8s:enc:kms:v2:\xff:x"), Err(NotStored::ProviderName));
        assert_eq!(decode(b"k8s:enc:kms:v2:demo:\xff\xff"), Err(NotStored::Message));
    }
}
