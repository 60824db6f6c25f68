//! Whether a stored value opens: its DEK source, by a plugin that runs or one that is started for it; then the object.
//!
//! SECURITY: the DEK source and the object are in memory that is wiped on drop, and only yes or no leaves this file.

use crate::plugin::Started;
use kms_v2_api::v2::{EncryptResponse, EncryptedDekSourceType};
use kms_v2_client::kms::{KmsClient, Target};
use kms_v2_judge::apiserver::DekSource;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::socket;
use kube_kms_etcd::value::{DekSourceType, KmsV2};
use serde::Serialize;
use std::path::{Path, PathBuf};
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
                (format!("the KEKs of {}", path.display()), with_config(path, object, timeout).await?)
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
    let mut client = connected(target, &address.to_string(), timeout).await?;
    match client.decrypt(sealed(object), uuid::Uuid::new_v4().to_string()).await {
        // The answer wipes itself; so does the copy.
        Ok(answer) => Ok(Ok(Zeroizing::new(answer.plaintext.clone()))),
        Err(status) if could_not_try(&status) => Err(Failure::new(Exit::Unreachable, "the plugin could not try it")
            .cause(said(&status))
            .hint("the plugin's log and its /readyz say more")),
        Err(status) if status.code() == tonic::Code::PermissionDenied => {
            Err(Failure::new(Exit::Refused, "the plugin does not answer this user")
                .cause(said(&status))
                .hint("run this as a user that `listen.allowUids` names"))
        }
        Err(status) => Ok(Err(said(&status))),
    }
}

async fn with_config(path: &Path, object: &KmsV2<'_>, timeout: Duration) -> Result<Seed, Failure> {
    let plugin = Started::with(path, timeout).await?;
    let mut client = connected(plugin.target(), "the plugin that was started for this", timeout).await?;
    Ok(match client.decrypt(sealed(object), uuid::Uuid::new_v4().to_string()).await {
        Ok(answer) => Ok(Zeroizing::new(answer.plaintext.clone())),
        Err(status) if could_not_try(&status) => {
            return Err(Failure::new(Exit::Unreachable, "the KEK could not be asked")
                .cause(said(&status))
                .cause(plugin.last_words())
                .hint("see whether this host reaches the KMS, and kek.*.endpoint and region"));
        }
        Err(status) => Err(format!("{}; {}", said(&status), plugin.last_words())),
    })
}

fn sealed(object: &KmsV2<'_>) -> EncryptResponse {
    EncryptResponse {
        ciphertext: object.dek_source.to_vec(),
        key_id: object.key_id.to_owned(),
        annotations: object.annotations.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
    }
}

fn could_not_try(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled)
}

fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

async fn connected(target: Target, whom: &str, timeout: Duration) -> Result<KmsClient, Failure> {
    KmsClient::connect(target, timeout).await.map_err(|e| {
        Failure::new(Exit::Unreachable, format!("nobody answers: {whom}"))
            .because(&e)
            .hint("is the plugin running, and may this user open its socket?")
    })
}
