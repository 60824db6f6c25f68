//! One stored value, field by field, for a person or a program. Never what is inside the encryption.

use crate::inspect::opening::Opened;
use kms_v2_client::limit;
use kube_kms_core::annotation::{DEK, KEK};
use kube_kms_core::envelope::Envelope;
use kube_kms_core::printable::printable;
use kube_kms_etcd::value::{DekSourceType, Form, KmsV2, Value};
use kube_kms_etcd::verdict::key_id_hash;
use serde::Serialize;

/// Bytes that a type 1 object has before its ciphertext: info and nonce.
const SEED_HEAD: usize = 32 + 12;
const NONCE: usize = 12;
const TAG: usize = 16;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mod_revision: Option<i64>,
    pub(super) bytes: usize,
    /// What it is, in words.
    pub(super) what: String,
    /// `kms-v2`, `damaged`, or as `scan` names it.
    pub(super) form: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kms_v2: Option<Fields>,
    /// Why kube-apiserver would not read it.
    pub(super) problems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decrypt_check: Option<Opened>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fields {
    provider: String,
    key_id: String,
    key_id_hash: String,
    dek_source_type: u8,
    dek_source_meaning: &'static str,
    wrapped_dek_source_bytes: usize,
    /// As this plugin writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    envelope: Option<Sealed>,
    annotations: Vec<Annotation>,
    encrypted_data_bytes: usize,
    /// Of the object itself, when the data is as long as it must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    object_bytes: Option<usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sealed {
    version: u8,
    nonce: String,
    sealed_bytes: usize,
    tag: String,
}

#[derive(Debug, Serialize)]
struct Annotation {
    name: String,
    bytes: usize,
    /// The value, when it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The value in hex, when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    meaning: &'static str,
}

impl Report {
    pub(super) fn of(key: Option<&str>, value: &[u8], mod_revision: Option<i64>) -> Self {
        let mut problems = Vec::new();
        let (what, form, kms_v2) = match Value::parse(value) {
            Value::KmsV2(object) => {
                let what = format!("an object of the KMS v2 provider {}", printable(object.provider.as_bytes()));
                (what, "kms-v2", Some(Fields::of(&object)))
            }
            Value::Damaged(damage) => {
                problems.push(format!("it begins as a value of KMS v2, and is damaged: {}", damage.reason()));
                let object = KmsV2::with_any_names(value);
                problems.extend(object.iter().flat_map(broken));
                ("a damaged value of KMS v2".to_owned(), "damaged", object.as_ref().map(Fields::of))
            }
            Value::Other(form) => (describe(&form), form.label(), None),
        };
        let key = key.map(|key| printable(key.as_bytes()).into_owned());
        Self { key, mod_revision, bytes: value.len(), what, form, kms_v2, problems, decrypt_check: None }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.key.iter().map(|key| format!("key         {key}")));
        lines.extend(self.mod_revision.map(|revision| format!("revision    {revision}")));
        lines.push(format!("value       {} bytes: {}", self.bytes, self.what));
        lines.extend(self.kms_v2.iter().flat_map(Fields::lines));
        lines.extend(self.problems.iter().map(|problem| format!("PROBLEM     {problem}")));
        if let Some(check) = &self.decrypt_check {
            let yes = |opens: bool| if opens { "opens" } else { "DOES NOT OPEN" };
            lines.push(format!("DEK source  {} with {}", yes(check.dek_source_opens), check.by));
            lines.push(match check.object_opens {
                Some(opens) => format!("object      {} under its etcd key", yes(opens)),
                None if check.dek_source_opens => "object      not tried: its etcd key is not given".to_owned(),
                None => "object      not tried".to_owned(),
            });
            lines.extend(check.why.iter().map(|why| format!("            {}", printable(why.as_bytes()))));
        }
        lines
    }
}

/// Every rule of kube-apiserver that it breaks, in words.
fn broken(object: &KmsV2<'_>) -> Vec<String> {
    let all = object.annotations.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    let broken = limit::check_sealed(object.key_id, object.dek_source, &all);
    broken.iter().map(|violation| violation.describe("the object")).collect()
}

impl Fields {
    fn of(object: &KmsV2<'_>) -> Self {
        let (dek_source_type, dek_source_meaning, head) = match object.dek_source_type {
            DekSourceType::Key => (0, "the AES-256 key itself, as Kubernetes 1.27 and 1.28 wrote", NONCE),
            DekSourceType::Seed => (1, "a seed, from which the key of each write is expanded, since 1.29", SEED_HEAD),
        };
        let ours = object.annotation(DEK).is_some() && object.annotation(KEK).is_some();
        let envelope = ours.then(|| Envelope::parse(object.dek_source).ok()).flatten().map(|envelope| Sealed {
            version: kube_kms_core::envelope::VERSION,
            nonce: hex::encode(envelope.nonce),
            sealed_bytes: envelope.body.len(),
            tag: hex::encode(envelope.tag),
        });
        Self {
            provider: object.provider.to_owned(),
            key_id: object.key_id.to_owned(),
            key_id_hash: key_id_hash(object.key_id),
            dek_source_type,
            dek_source_meaning,
            wrapped_dek_source_bytes: object.dek_source.len(),
            envelope,
            annotations: object.annotations.iter().map(|(name, value)| annotation(name, value)).collect(),
            encrypted_data_bytes: object.encrypted_data.len(),
            object_bytes: object.encrypted_data.len().checked_sub(head.saturating_add(TAG)),
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("provider    {}", printable(self.provider.as_bytes())),
            format!("key_id      {}", printable(self.key_id.as_bytes())),
            format!("            {}  (key_id_hash in metrics)", self.key_id_hash),
            format!("DEK source  type {}: {}", self.dek_source_type, self.dek_source_meaning),
            format!("            {} bytes as the plugin wrapped it", self.wrapped_dek_source_bytes),
        ];
        lines.push(match &self.envelope {
            Some(e) => format!(
                "            format {}: version (1), nonce (12) {}, sealed ({}), tag (16) {}",
                e.version, e.nonce, e.sealed_bytes, e.tag
            ),
            None => "            not a format of kube-kms: opaque here, its own plugin knows".to_owned(),
        });
        for a in &self.annotations {
            let value = a.text.as_deref().or(a.hex.as_deref()).unwrap_or_default();
            lines.push(format!(
                "annotation  {} ({} bytes) {}",
                printable(a.name.as_bytes()),
                a.bytes,
                shortened(value)
            ));
            if !a.meaning.is_empty() {
                lines.push(format!("            {}", a.meaning));
            }
        }
        lines.push(match (self.object_bytes, self.dek_source_type) {
            (Some(n), 0) => {
                format!("data        {} bytes: nonce (12), object ({n}), tag (16)", self.encrypted_data_bytes)
            }
            (Some(n), _) => {
                format!(
                    "data        {} bytes: info (32), nonce (12), object ({n}), tag (16)",
                    self.encrypted_data_bytes
                )
            }
            (None, _) => format!("data        {} bytes: too short to be an object", self.encrypted_data_bytes),
        });
        lines
    }
}

fn annotation(name: &str, value: &[u8]) -> Annotation {
    let text = std::str::from_utf8(value).ok().filter(|t| t.chars().all(|c| c.is_ascii_graphic() || c == ' '));
    let recovery = |rest: &str| rest.strip_suffix(".kube-kms").is_some_and(|n| matches!(n, "r1" | "r2" | "r3"));
    let meaning = match name {
        DEK => "the DEK of this process of kube-kms, wrapped by the KEK",
        KEK => "the KEK that can unwrap it",
        _ if name.strip_prefix("dek.").is_some_and(recovery) => "the same DEK, wrapped by a recovery KEK",
        _ if name.strip_prefix("kek.").is_some_and(recovery) => "the recovery KEK that can unwrap it",
        _ => "",
    };
    Annotation {
        name: name.to_owned(),
        bytes: value.len(),
        text: text.map(str::to_owned),
        hex: text.is_none().then(|| hex::encode(value)),
        meaning,
    }
}

fn shortened(value: &str) -> String {
    match value.get(..60) {
        Some(head) if value.len() > 120 => format!("{head}…"),
        _ => value.to_owned(),
    }
}

fn describe(form: &Form<'_>) -> String {
    let name = printable(form.name().as_bytes());
    match form {
        Form::KmsV1(_) => format!("an object of the KMS v1 provider {name}; a KMS v2 plugin cannot open it"),
        Form::AesCbc(_) | Form::AesGcm(_) | Form::Secretbox(_) => {
            format!("encrypted by {} under the key {name} of the EncryptionConfiguration", form.label())
        }
        Form::UnknownProvider => "encrypted, by a provider that is not known here".to_owned(),
        Form::Protobuf => "not encrypted: protobuf, in clear".to_owned(),
        Form::Json => "not encrypted: JSON, in clear".to_owned(),
        Form::Cbor => "not encrypted: CBOR, in clear".to_owned(),
        Form::Empty => "empty".to_owned(),
        Form::Unknown => "in no form that kube-apiserver writes".to_owned(),
    }
}
