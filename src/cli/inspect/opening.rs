//! Whether a stored value opens: its DEK source, by the plugin's KEKs or by a plugin that runs; then the object.
//!
//! SECURITY: the DEK source and the object are in memory that is wiped on drop, and only yes or no leaves this file.

use crate::api::v2::{EncryptResponse, EncryptedDekSourceType};
use crate::cli::exit::{Exit, Failure};
use crate::cli::{CONFIGURATION_HINT, configuration_failure, socket};
use crate::client::apiserver::DekSource;
use crate::client::kms::KmsClient;
use crate::config;
use crate::core::annotation::{AdditionalData, Annotations, DekName, WrappedDek};
use crate::core::dek::Dek;
use crate::core::envelope::Envelope;
use crate::core::fault::{Class, Fault, Reason};
use crate::core::key_id::KeyId;
use crate::core::port::{Entropy, KekCall};
use crate::daemon::{self, keks};
use crate::etcd::value::{DekSourceType, KmsV2};
use crate::os::OsEntropy;
use crate::service::kek_set::{KekEntry, KekSet};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Who opens it.
#[derive(Debug)]
pub(super) enum Opener {
    /// The KEKs of this configuration.
    Config(PathBuf),
    /// The plugin that listens there.
    Socket(String),
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Opened {
    /// Who was asked.
    pub(super) by: String,
    pub(super) dek_source_opens: bool,
    /// `None` when the object's etcd key is not known, or the DEK source did not open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object_opens: Option<bool>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

impl Opener {
    /// # Errors
    /// When nobody could be asked; that it does not open is a result.
    pub(super) async fn check(
        &self,
        object: &KmsV2<'_>,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<Opened, Failure> {
        let (by, opened) = match self {
            Self::Config(path) => {
                let path = daemon::absolute(path);
                (format!("the KEKs of {}", path.display()), with_config(&path, object, timeout).await?)
            }
            Self::Socket(text) => (format!("the plugin on {text}"), with_plugin(text, object, timeout).await?),
        };
        Ok(match opened {
            Ok(seed) => with_object(by, object, key, &seed),
            Err(why) => Opened { by, dek_source_opens: false, object_opens: None, why: Some(why) },
        })
    }
}

fn with_object(by: String, object: &KmsV2<'_>, key: Option<&str>, seed: &[u8]) -> Opened {
    let kind = match object.dek_source_type {
        DekSourceType::Key => EncryptedDekSourceType::AesGcmKey,
        DekSourceType::Seed => EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed,
    };
    let source = match DekSource::parse(kind, seed) {
        Ok(source) => source,
        Err(wrong) => {
            let why = format!("it opens to {} bytes, which cannot be such a DEK source", wrong.0);
            return Opened { by, dek_source_opens: true, object_opens: Some(false), why: Some(why) };
        }
    };
    let object_opens = key.map(|key| source.open(key, object.encrypted_data).is_some());
    let why = (object_opens == Some(false)).then(|| {
        "the object is damaged, or was written under another etcd key or prefix than the one that is given".to_owned()
    });
    Opened { by, dek_source_opens: true, object_opens, why }
}

/// A seed, or why there is none.
type Seed = Result<Zeroizing<Vec<u8>>, String>;

async fn with_plugin(text: &str, object: &KmsV2<'_>, timeout: Duration) -> Result<Seed, Failure> {
    let (address, target) = socket(text)?;
    let mut client = KmsClient::connect(target, timeout).await.map_err(|e| {
        Failure::new(Exit::Unreachable, format!("nobody answers on {address}"))
            .because(&e)
            .hint("is the plugin running, and may this user open its socket?")
    })?;
    let sealed = EncryptResponse {
        ciphertext: object.dek_source.to_vec(),
        key_id: object.key_id.to_owned(),
        annotations: object.annotations.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
    };
    match client.decrypt(sealed, uuid::Uuid::new_v4().to_string()).await {
        // The answer wipes itself; so does the copy.
        Ok(answer) => Ok(Ok(Zeroizing::new(answer.plaintext.clone()))),
        Err(status) => {
            let text = format!("{:?}: {}", status.code(), status.message());
            match status.code() {
                tonic::Code::Unavailable
                | tonic::Code::DeadlineExceeded
                | tonic::Code::ResourceExhausted
                | tonic::Code::Cancelled => Err(Failure::new(Exit::Unreachable, "the plugin could not try it")
                    .cause(text)
                    .hint("the plugin's log and its /readyz say more")),
                tonic::Code::PermissionDenied => {
                    Err(Failure::new(Exit::Refused, "the plugin does not answer this user")
                        .cause(text)
                        .hint("run this as a user that `listen.allowUids` names"))
                }
                _ => Ok(Err(text)),
            }
        }
    }
}

async fn with_config(path: &std::path::Path, object: &KmsV2<'_>, timeout: Duration) -> Result<Seed, Failure> {
    let config = config::load(path).map_err(|problems| configuration_failure(&problems))?;
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let keks = keks::connect(&config, &entropy, None).await.map_err(|error| {
        Failure::new(Exit::Configuration, "the KEKs cannot be set up").because(&error).hint(CONFIGURATION_HINT)
    })?;
    match open(&keks, object, timeout).await {
        Ok(seed) => Ok(Ok(seed)),
        Err(fault) if matches!(fault.class(), Class::Unreachable | Class::Throttled | Class::TooSlow) => {
            Err(Failure::of_fault("the KEK could not be asked", &fault)
                .hint("see whether this host reaches the KMS, and kek.*.endpoint and region"))
        }
        Err(fault) => Ok(Err(format!("{fault} {}", fault.causes()).trim_end().to_owned())),
    }
}

/// As `service::decrypt` does it, without its caches: the primary wrap with each KEK that may, then the recovery wraps.
async fn open(keks: &KekSet, object: &KmsV2<'_>, timeout: Duration) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let envelope = Envelope::parse(object.dek_source)?;
    let key_id = KeyId::parse(object.key_id.to_owned())?;
    let all = object.annotations.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    let annotations = Annotations::parse(all)?;
    let aad = AdditionalData::bind(&key_id, annotations.all());
    let mut last = Fault::from(Reason::KekNotConfigured);
    let primary = keks.readers(annotations.kek()).map(|entry| (entry, DekName::from(&annotations)));
    for (entry, name) in primary {
        match unwrap(entry, name, timeout).await {
            Ok(dek) => return dek.open(envelope, &aad),
            Err(fault) => last = fault,
        }
    }
    for wrap in &annotations.recovery() {
        for entry in keks.recovery_readers(&wrap.kek) {
            if let Ok(dek) = unwrap(entry, DekName::from(wrap), timeout).await {
                return dek.open(envelope, &aad);
            }
        }
    }
    Err(last)
}

async fn unwrap(entry: &KekEntry, name: DekName<'_>, timeout: Duration) -> Result<Dek, Fault> {
    let call = KekCall { timeout, uid: None };
    let wrapped = WrappedDek::parse(name.wrapped.to_vec())?;
    let unwrapped = entry.kek.unwrap_dek(name.kek, &wrapped, &entry.context, &call).await?;
    Dek::new(&unwrapped.dek)
}
