//! What one stored value is: of a KMS v2 provider, of another encryption provider, in clear, damaged, or unknown.
//!
//! Guarantees: borrows from the value and copies none of it; any bytes have a class. A value of KMS v2 is whole by
//! the rules of kube-apiserver. Refuses to know keys: nothing is decrypted. SPEC:
//! k8s.io/apiserver encryptionconfig `config.go` (prefixes), envelope `ValidateEncryptedObject` (limits).

use kms_v2_api::stored::PREFIX;
use kube_kms_core::annotation::{KEK, RECOVERY_MAX, is_name};
use kube_kms_core::envelope::lp;
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::limit;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use sha2::{Digest, Sha256};

/// What every value of every encryption provider begins with.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Bytes of a wrapped DEK under KMS v1 at most, as far as the length field is believed to be one.
const KMS_V1_DEK_MAX: u8 = 0x20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An object of a KMS v2 provider.
    KmsV2(KmsV2<'a>),
    /// Anything else that kube-apiserver may have written.
    Other(Form<'a>),
    /// It begins as a value of KMS v2 and kube-apiserver would not read it.
    Damaged(Damage),
}

/// A value that is not of KMS v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form<'a> {
    /// KMS v1, with the provider's name.
    KmsV1(&'a str),
    /// AES-CBC, with the key's name.
    AesCbc(&'a str),
    /// AES-GCM, with the key's name.
    AesGcm(&'a str),
    /// XSalsa20 and Poly1305, with the key's name.
    Secretbox(&'a str),
    /// Encrypted by a provider that is not known here.
    UnknownProvider,
    /// Plain protobuf: built-in resources.
    Protobuf,
    /// Plain JSON: custom resources.
    Json,
    /// Plain CBOR.
    Cbor,
    /// No byte at all.
    Empty,
    /// In no form that is known here.
    Unknown,
}

/// Why kube-apiserver would not read a value of KMS v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Damage {
    /// No provider's name, or not as text.
    ProviderName,
    /// It ends within a field.
    CutShort,
    /// What follows the provider's name is not the message.
    NotAMessage,
    /// There is no data.
    NoData,
    /// key_id is empty or over its limit.
    KeyId,
    /// The wrapped DEK source is empty or over its limit.
    DekSource,
    /// The annotations are over their limit.
    Annotations,
    /// An annotation has a name that is no fully qualified domain name.
    AnnotationName,
    /// The type of the DEK source is neither a key nor a seed.
    DekSourceType,
}

/// What Decrypt returns for the wrapped DEK source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DekSourceType {
    /// Type 0: the key itself (Kubernetes 1.27, 1.28).
    Key,
    /// Type 1: a seed, from which the key of each write is expanded (since 1.29).
    Seed,
}

/// A whole object of a KMS v2 provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsV2<'a> {
    /// The provider's name in the EncryptionConfiguration.
    pub provider: &'a str,
    /// EncryptResponse.key_id.
    pub key_id: &'a str,
    /// EncryptResponse.ciphertext.
    pub dek_source: &'a [u8],
    /// What it holds.
    pub dek_source_type: DekSourceType,
    /// EncryptResponse.annotations, sorted by name.
    pub annotations: Vec<(&'a str, &'a [u8])>,
    /// The object under the DEK.
    pub encrypted_data: &'a [u8],
}

impl Form<'_> {
    /// The word for it in reports: stable.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::KmsV1(_) => "kms-v1",
            Self::AesCbc(_) => "aescbc",
            Self::AesGcm(_) => "aesgcm",
            Self::Secretbox(_) => "secretbox",
            Self::UnknownProvider => "unknown-provider",
            Self::Protobuf => "protobuf",
            Self::Json => "json",
            Self::Cbor => "cbor",
            Self::Empty => "empty",
            Self::Unknown => "unknown",
        }
    }

    /// The name of its provider or key; empty when it has none.
    #[must_use]
    pub const fn name(&self) -> &str {
        match self {
            Self::KmsV1(name) | Self::AesCbc(name) | Self::AesGcm(name) | Self::Secretbox(name) => name,
            _ => "",
        }
    }

    /// Whether anybody who reads etcd reads the object.
    #[must_use]
    pub const fn is_clear(&self) -> bool {
        matches!(self, Self::Protobuf | Self::Json | Self::Cbor)
    }
}

impl Damage {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ProviderName => "no provider's name",
            Self::CutShort => "cut short",
            Self::NotAMessage => "not an EncryptedObject",
            Self::NoData => "no encrypted data",
            Self::KeyId => "key_id empty or over 1,024 bytes",
            Self::DekSource => "wrapped DEK source empty or over 1,024 bytes",
            Self::Annotations => "annotations over 32,768 bytes",
            Self::AnnotationName => "an annotation's name is no fully qualified domain name",
            Self::DekSourceType => "unknown type of DEK source",
        }
    }
}

impl<'a> KmsV2<'a> {
    /// The fields of a value whose only damage is in the names of its annotations, for whoever explains them.
    #[must_use]
    pub fn with_any_names(value: &'a [u8]) -> Option<Self> {
        kms_v2(value.strip_prefix(PREFIX)?).ok()
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&'a [u8]> {
        let at = self.annotations.binary_search_by(|(other, _)| (*other).cmp(name)).ok()?;
        self.annotations.get(at).map(|(_, value)| *value)
    }

    /// The KEK that a value of this plugin names; `None` for another plugin's, or when it is no reference.
    #[must_use]
    pub fn kek(&self) -> Option<&'a str> {
        reference(self.annotation(KEK)?)
    }

    /// The recovery KEKs that a value of this plugin names, in order.
    #[must_use]
    pub fn recovery_keks(&self) -> Vec<&'a str> {
        if self.annotations.is_empty() {
            return Vec::new();
        }
        (1..=RECOVERY_MAX).filter_map(|n| reference(self.annotation(&format!("kek.r{n}.kube-kms"))?)).collect()
    }

    /// Names what one Decrypt opens: kube-apiserver asks once for each, after a cold start. SPEC: kmsv2 `generateCacheKey`
    /// over type, wrapped source, key_id and annotations; the caches of two providers are two.
    #[must_use]
    pub fn source_fingerprint(&self) -> u128 {
        let mut hash = Sha256::new();
        lp(&mut hash, self.provider.as_bytes());
        lp(&mut hash, &[u8::from(self.dek_source_type == DekSourceType::Seed)]);
        lp(&mut hash, self.dek_source);
        lp(&mut hash, self.key_id.as_bytes());
        for (name, value) in &self.annotations {
            lp(&mut hash, name.as_bytes());
            lp(&mut hash, value);
        }
        half(hash)
    }
}

/// The first 128 bits: enough that two different things have the same name never.
pub(super) fn half(hash: Sha256) -> u128 {
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk::<16>().map_or(0, |bytes| u128::from_be_bytes(*bytes))
}

fn reference(value: &[u8]) -> Option<&str> {
    KekRef::parse(value).ok()?;
    std::str::from_utf8(value).ok()
}

impl<'a> Value<'a> {
    /// Classifies a value.
    #[must_use]
    pub fn parse(value: &'a [u8]) -> Self {
        if let Some(rest) = value.strip_prefix(PREFIX) {
            return match kms_v2(rest) {
                Ok(object) if !object.annotations.iter().all(|(name, _)| is_name(name)) => {
                    Self::Damaged(Damage::AnnotationName)
                }
                Ok(object) => Self::KmsV2(object),
                Err(damage) => Self::Damaged(damage),
            };
        }
        Self::Other(form(value))
    }
}

fn form(value: &[u8]) -> Form<'_> {
    if let Some(rest) = value.strip_prefix(ENCRYPTED) {
        let of = |prefix: &[u8]| rest.strip_prefix(prefix);
        let named = of(b"kms:v1:")
            .and_then(|r| kms_v1_name(r).map(Form::KmsV1))
            .or_else(|| of(b"aescbc:v1:").and_then(|r| name(r).map(Form::AesCbc)))
            .or_else(|| of(b"aesgcm:v1:").and_then(|r| name(r).map(Form::AesGcm)))
            .or_else(|| of(b"secretbox:v1:").and_then(|r| name(r).map(Form::Secretbox)));
        return named.unwrap_or(Form::UnknownProvider);
    }
    match value {
        [] => Form::Empty,
        [b'k', b'8', b's', 0, ..] => Form::Protobuf,
        [b'{', ..] => Form::Json,
        // SPEC: RFC 8949 section 3.4.6, the self-described tag, which kube-apiserver writes first.
        [0xd9, 0xd9, 0xf7, ..] => Form::Cbor,
        _ => Form::Unknown,
    }
}

/// The name before the first colon.
fn name(rest: &[u8]) -> Option<&str> {
    let end = rest.iter().position(|b| *b == b':').filter(|end| *end > 0)?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

/// The name of a KMS v1 provider, which may contain colons. Two bytes of length follow it; the first of them is small for
/// any DEK that a KMS returns, and no byte of a name is. When no colon is followed by such a length, the first colon ends it.
fn kms_v1_name(rest: &[u8]) -> Option<&str> {
    let names = || {
        let ends = rest.iter().enumerate().filter(|(_, b)| **b == b':').map(|(at, _)| at);
        // A byte that no name has ends the search: everything after it is data.
        let names = ends.map_while(|end| Some((end, std::str::from_utf8(rest.get(..end)?).ok()?)));
        names.take_while(|(_, name)| !name.chars().any(char::is_control))
    };
    let followed_by_length =
        |(end, _): &(usize, &str)| rest.get(end.saturating_add(1)).is_some_and(|high| *high < KMS_V1_DEK_MAX);
    let name = names().find(followed_by_length).or_else(|| names().next()).map(|(_, name)| name);
    name.filter(|name| !name.is_empty())
}

/// The fields as they stand in the message; of repeated ones the last counts, as protobuf has it.
#[derive(Default)]
struct Fields<'a> {
    data: &'a [u8],
    key_id: &'a [u8],
    source: &'a [u8],
    kind: u64,
    annotations: Vec<(&'a str, &'a [u8])>,
}

/// By every rule but that on the names of annotations.
fn kms_v2(rest: &[u8]) -> Result<KmsV2<'_>, Damage> {
    let colon = rest.iter().position(|b| *b == b':').filter(|at| *at > 0).ok_or(Damage::ProviderName)?;
    let (provider, message) = rest.split_at_checked(colon).ok_or(Damage::ProviderName)?;
    let provider = std::str::from_utf8(provider).map_err(|_| Damage::ProviderName)?;
    let fields = fields(message.strip_prefix(b":").ok_or(Damage::ProviderName)?)?;
    if fields.data.is_empty() {
        return Err(Damage::NoData);
    }
    let key_id = std::str::from_utf8(fields.key_id).map_err(|_| Damage::NotAMessage)?;
    if key_id.is_empty() || key_id.len() > limit::KEY_ID_MAX {
        return Err(Damage::KeyId);
    }
    if fields.source.is_empty() || fields.source.len() > limit::CIPHERTEXT_MAX {
        return Err(Damage::DekSource);
    }
    let dek_source_type = match fields.kind {
        0 => DekSourceType::Key,
        1 => DekSourceType::Seed,
        _ => return Err(Damage::DekSourceType),
    };
    let annotations = one_of_each(fields.annotations);
    let size = annotations
        .iter()
        .fold(0_usize, |sum, (name, value)| sum.saturating_add(name.len()).saturating_add(value.len()));
    if size > limit::ANNOTATIONS_MAX {
        return Err(Damage::Annotations);
    }
    Ok(KmsV2 { provider, key_id, dek_source: fields.source, dek_source_type, annotations, encrypted_data: fields.data })
}

/// Sorted by name; of two with the same name the later.
fn one_of_each<'a>(mut all: Vec<(&'a str, &'a [u8])>) -> Vec<(&'a str, &'a [u8])> {
    all.sort_by_key(|(name, _)| *name);
    all.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1 = later.1;
        }
        same
    });
    all
}

fn fields(mut rest: &[u8]) -> Result<Fields<'_>, Damage> {
    let mut fields = Fields::default();
    while !rest.is_empty() {
        let (tag, wire) = decode_key(&mut rest).map_err(|_| Damage::NotAMessage)?;
        match (tag, wire) {
            (1, WireType::LengthDelimited) => fields.data = delimited(&mut rest)?,
            (2, WireType::LengthDelimited) => fields.key_id = delimited(&mut rest)?,
            (3, WireType::LengthDelimited) => fields.source = delimited(&mut rest)?,
            (4, WireType::LengthDelimited) => fields.annotations.push(annotation(delimited(&mut rest)?)?),
            (5, WireType::Varint) => fields.kind = decode_varint(&mut rest).map_err(|_| Damage::NotAMessage)?,
            (1..=5, _) => return Err(Damage::NotAMessage),
            _ => skip(&mut rest, tag, wire)?,
        }
    }
    Ok(fields)
}

fn annotation(mut entry: &[u8]) -> Result<(&str, &[u8]), Damage> {
    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
    while !entry.is_empty() {
        let (tag, wire) = decode_key(&mut entry).map_err(|_| Damage::NotAMessage)?;
        match (tag, wire) {
            (1, WireType::LengthDelimited) => name = delimited(&mut entry)?,
            (2, WireType::LengthDelimited) => value = delimited(&mut entry)?,
            (1 | 2, _) => return Err(Damage::NotAMessage),
            _ => skip(&mut entry, tag, wire)?,
        }
    }
    Ok((std::str::from_utf8(name).map_err(|_| Damage::NotAMessage)?, value))
}

/// Takes a field of bytes off the front, without a copy.
fn delimited<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Damage> {
    let length = decode_varint(rest).map_err(|_| Damage::NotAMessage)?;
    let length = usize::try_from(length).map_err(|_| Damage::NotAMessage)?;
    let whole: &'a [u8] = rest;
    let (field, after) = whole.split_at_checked(length).ok_or(Damage::CutShort)?;
    *rest = after;
    Ok(field)
}

fn skip(rest: &mut &[u8], tag: u32, wire: WireType) -> Result<(), Damage> {
    skip_field(wire, tag, rest, DecodeContext::default()).map_err(|_| Damage::NotAMessage)
}

#[cfg(test)]
mod tests;
