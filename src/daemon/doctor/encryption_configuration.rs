//! kube-apiserver's EncryptionConfiguration, as it is written: parsed strictly, judged elsewhere.
//!
//! Guarantees: an unknown field, a second document, a duplicate key is an error, as to kube-apiserver. SECURITY: the keys of
//! `aescbc`, `aesgcm` and `secretbox` are never kept, and no message shows a value. Refuses to know what is sensible.
//! SPEC: k8s.io/apiserver/pkg/apis/apiserver/v1 EncryptionConfiguration; strict decoding as in encryptionconfig.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Options};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The only `apiVersion`.
pub const API_VERSION: &str = "apiserver.config.k8s.io/v1";
/// The only `kind`.
pub const KIND: &str = "EncryptionConfiguration";
const SIZE_MAX: u64 = 1024 * 1024;

/// The document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EncryptionConfiguration {
    /// `apiVersion`.
    #[serde(default)]
    pub api_version: String,
    /// `kind`.
    #[serde(default)]
    pub kind: String,
    /// `resources`.
    #[serde(default)]
    pub resources: Vec<Stanza>,
}

/// Resources and who encrypts them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stanza {
    /// `resources`: names, `name.group`, `*.group`, `*.` or `*.*`.
    #[serde(default)]
    pub resources: Vec<String>,
    /// `providers`: the first one writes, all of them read.
    #[serde(default)]
    pub providers: Vec<Provider>,
}

/// One element of `providers`, of which exactly one field is to be set.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// A KMS plugin.
    pub kms: Option<Kms>,
    aesgcm: Option<IgnoredAny>,
    aescbc: Option<IgnoredAny>,
    secretbox: Option<IgnoredAny>,
    identity: Option<IgnoredAny>,
}

/// `kms`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Kms {
    /// `apiVersion`: `v1` when it is left out.
    pub api_version: Option<String>,
    /// `name`: becomes part of every stored value.
    #[serde(default)]
    pub name: String,
    /// `cachesize`: of v1 only.
    #[serde(rename = "cachesize")]
    pub cache_size: Option<i64>,
    /// `endpoint`.
    #[serde(default)]
    pub endpoint: String,
    /// `timeout`: a Go duration; 3 s when it is left out.
    pub timeout: Option<String>,
}

/// What a [`Provider`] is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A KMS plugin.
    Kms(&'a Kms),
    /// A key in the file itself: the field's name.
    Static(&'static str),
    /// In clear.
    Identity,
}

impl Provider {
    /// What it is, when exactly one field is set.
    #[must_use]
    pub fn kind(&self) -> Option<Kind<'_>> {
        let of = |set: &Option<IgnoredAny>, kind| set.as_ref().map(|_| kind);
        let all = [
            self.kms.as_ref().map(Kind::Kms),
            of(&self.aesgcm, Kind::Static("aesgcm")),
            of(&self.aescbc, Kind::Static("aescbc")),
            of(&self.secretbox, Kind::Static("secretbox")),
            of(&self.identity, Kind::Identity),
        ];
        let mut set = all.into_iter().flatten();
        set.next().filter(|_| set.next().is_none())
    }
}

/// Why the file is no EncryptionConfiguration.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The system said no.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Over 1 MiB.
    #[error("is larger than 1 MiB; is this the right file?")]
    TooLarge,
    /// Not UTF-8.
    #[error("is not UTF-8 text")]
    NotText,
    /// Not YAML, or not of this shape.
    #[error("{0}")]
    Shape(String),
}

/// Reads and parses the file.
///
/// # Errors
/// [`Unreadable`]; kube-apiserver would not start with it, or not take it over.
pub fn load(path: &Path) -> Result<EncryptionConfiguration, Unreadable> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SIZE_MAX.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SIZE_MAX {
        return Err(Unreadable::TooLarge);
    }
    // Not wiped by us: what is freed is wiped by the allocator.
    parse(&String::from_utf8(bytes).map_err(|_| Unreadable::NotText)?)
}

/// Parses the document.
///
/// # Errors
/// [`Unreadable::Shape`].
pub fn parse(text: &str) -> Result<EncryptionConfiguration, Unreadable> {
    if text.trim().is_empty() {
        return Err(Unreadable::Shape("is empty".to_owned()));
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| Unreadable::Shape(in_words(&error)))
}

fn options() -> Options {
    serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        // SECURITY: a snippet would show the lines around the mistake, and keys may stand there.
        with_snippet: false,
    }
}

/// Where and what, without a value of the file.
fn in_words(error: &Error) -> String {
    let error = error.without_snippet();
    let place = match error.location() {
        Some(at) if at.line() > 0 => format!("line {}, column {}: ", at.line(), at.column()),
        _ => String::new(),
    };
    let what = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            // SECURITY: a field's name is no secret, unless something was pasted in its place.
            let name = if field.len() <= 32 { field.as_str() } else { "a long name" };
            format!("unknown field {name:?}; known here: {}", expected.join(", "))
        }
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            format!("expected {expected}")
        }
        Error::DuplicateMappingKey { .. } => "the same key twice".to_owned(),
        Error::MultipleDocuments { .. } => "a second document".to_owned(),
        _ => "not an EncryptionConfiguration, or not valid YAML".to_owned(),
    };
    format!("{place}{what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_named_with_its_place_and_never_with_a_value() {
        for (text, words) in [
            (
                "resources:\n- providers:\n  - kms: {nam: SECRET}\n",
                "line 3, column 11: unknown field \"nam\"; known here: ",
            ),
            ("resources:\n- providers:\n  - kms: SECRET\n", "line 3, column 10: "),
            ("resources: SECRET\n", "line 1, column 12: "),
            ("resources: []\nresources: []\n", "the same key twice"),
            ("[SECRET\n", "not an EncryptionConfiguration, or not valid YAML"),
            ("kind: EncryptionConfiguration\n---\nkind: SECRET\n", "a second document"),
            ("", "is empty"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn keys_of_other_providers_are_not_kept() {
        let text = "resources:\n- resources: [secrets]\n  providers:\n  - aescbc: {keys: [{name: k, secret: U0VDUkVU}]}\n  - identity: {}\n";
        let parsed = parse(text).unwrap();
        assert!(!format!("{parsed:?}").contains("U0VDUkVU"));
        let kinds: Vec<_> = parsed.resources[0].providers.iter().map(|p| p.kind().unwrap()).collect();
        assert!(matches!(kinds[..], [Kind::Static("aescbc"), Kind::Identity]));
    }

    #[test]
    fn a_provider_is_exactly_one_thing() {
        for (text, is_one) in [("identity: {}", true), ("{}", false), ("{identity: {}, kms: {}}", false)] {
            let provider = format!("resources:\n- providers:\n  - {text}\n");
            assert_eq!(parse(&provider).unwrap().resources[0].providers[0].kind().is_some(), is_one, "{text}");
        }
    }
}
