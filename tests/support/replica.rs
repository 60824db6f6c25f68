//! What other replicas have sealed: any number of values under any number of distinct wrapped DEKs, in one go.
//!
//! Guarantees: made by the same code as the plugin's (KEK provider, stored format 1), against the KEK of a [`Site`], so
//! that a Decrypt cannot tell them from what an Encrypt of another node returned. A plugin makes one DEK a day; a test of a
//! thousand DEKs cannot wait for it. Refuses to know processes and sockets.

use super::site::{ALIAS, KekKind, Site};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use kms_v2_api::v2::EncryptResponse;
use kube_kms_core::annotation::{AdditionalData, Annotations};
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Kek, KekCall};
use kube_kms_kek_aws::AwsKek;
use kube_kms_kek_aws::settings::AwsSettings;
use kube_kms_kek_local::LocalKek;
use kube_kms_os::OsEntropy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Another node, reduced to what it seals.
pub struct Replica {
    kek: Box<dyn Kek>,
    context: WrapContext,
}

/// One DEK of it.
pub struct ReplicaDek {
    dek: Dek,
    key_id: KeyId,
    annotations: Annotations,
    aad: AdditionalData,
}

impl Replica {
    /// A node with the KEK of this site and its default context.
    pub fn of(site: &Site) -> Self {
        let kek: Box<dyn Kek> = match site.kek() {
            KekKind::Local(path) => Box::new(LocalKek::new(path.clone(), Arc::new(OsEntropy))),
            KekKind::Aws(kms) => {
                let settings = AwsSettings::parse(ALIAS, Some(kms.region()), Some(&kms.url())).unwrap();
                let credentials = Credentials::new("AKIDTEST", "not-a-secret", None, None, "test");
                let sdk = SdkConfig::builder()
                    .behavior_version(BehaviorVersion::latest())
                    .credentials_provider(SharedCredentialsProvider::new(credentials))
                    .build();
                Box::new(AwsKek::connect_with(settings, &sdk).unwrap())
            }
        };
        Self { kek, context: WrapContext::new(BTreeMap::new()) }
    }

    /// A new DEK, wrapped under the KEK's current version.
    pub async fn dek(&self) -> ReplicaDek {
        let call = KekCall { timeout: Duration::from_secs(10), uid: None };
        let bytes = DekBytes::generate(&OsEntropy).unwrap();
        let wrapped = self.kek.wrap_dek(&bytes, &self.context, &call).await.unwrap();
        let unwrapped = self.kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &self.context, &call).await.unwrap();
        let key_id = KeyId::derive(&unwrapped.version, 0);
        let annotations = Annotations::new(&wrapped.kek, &wrapped.dek);
        let aad = AdditionalData::bind(&key_id, annotations.all());
        ReplicaDek { dek: Dek::new(&bytes).unwrap(), key_id, annotations, aad }
    }

    /// So many new DEKs.
    pub async fn deks(&self, count: usize) -> Vec<ReplicaDek> {
        let mut deks = Vec::with_capacity(count);
        for _ in 0..count {
            deks.push(self.dek().await);
        }
        deks
    }

    /// A value under a DEK of its own.
    pub async fn sealed(&self, plaintext: &[u8]) -> EncryptResponse {
        self.dek().await.seal(plaintext)
    }
}

impl ReplicaDek {
    /// What Encrypt of that node returned.
    pub fn seal(&self, plaintext: &[u8]) -> EncryptResponse {
        EncryptResponse {
            ciphertext: self.dek.seal(&OsEntropy, &self.aad, plaintext).unwrap(),
            key_id: self.key_id.as_str().to_owned(),
            annotations: self.annotations.all().clone(),
        }
    }
}
