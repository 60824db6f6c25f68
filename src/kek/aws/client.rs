//! The three calls that this provider makes of the SDK, and nothing else of it.
//!
//! Guarantees: no retries and no timeouts of the SDK's own (the caller has both). An answer that is not as AWS documents it is
//! `kms-answer-unusable`, which is transient: it tells of whoever answered, never of the blob or the key that was asked about.
//! Refuses to know: which KEK may be used for what.
//! SECURITY, what stays on the heap: our copy of an unwrapped DEK is wiped, and the DEK to wrap is copied out of locked
//! memory once, into the SDK's request. That copy, the request and answer bodies (the DEK in base64) and TLS buffers are
//! freed by the SDK as they are, and wiped then by the allocator of `memory`. At trace level the SDK logs requests; that
//! their bodies stay out of it is the test `nothing_secret_is_logged_at_trace_level`'s to hold.
//! SPEC: AWS KMS API Reference, Encrypt, Decrypt, DescribeKey.

use super::credential::Persistent;
use super::date::DateHeader;
use super::error::{KmsError, Op, plain_id};
use super::http;
use super::key_name::KeyArn;
use super::settings::AwsSettings;
use super::user_agent::with_uid;
use arc_swap::ArcSwap;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::{IdentityCache, StalledStreamProtectionConfig};
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyMetadata, KeyState, OriginType};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::port::KekCall;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zeroize::Zeroizing;

/// Bytes of a CiphertextBlob at most. SPEC: AWS KMS API Reference, Encrypt and Decrypt.
const CIPHERTEXT_MAX: usize = 6144;
/// Characters of a KeyMaterialId, `^[a-f0-9]+$`. SPEC: AWS KMS API Reference, Decrypt.
const MATERIAL_LEN: usize = 64;

/// What a call returned, with AWS's id of the request.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) request_id: Option<String>,
}

/// What Encrypt returned.
#[derive(Debug)]
pub(super) struct Encrypted {
    pub(super) dek: WrappedDek,
    pub(super) key: KeyArn,
}

/// What Decrypt returned.
#[derive(Debug)]
pub(super) struct Decrypted {
    pub(super) dek: DekBytes,
    /// Empty where a key has none.
    pub(super) material: String,
}

/// What DescribeKey returned.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) state: KeyState,
    /// Whether it is in a custom key store (external or CloudHSM), which can be away while the KMS answers.
    pub(super) in_key_store: bool,
    /// Since the Unix epoch, for a key that is pending deletion.
    pub(super) deletion: Option<Duration>,
}

/// A client of AWS KMS in one region.
#[derive(Debug)]
pub(super) struct KmsClient {
    config: aws_sdk_kms::Config,
    pool: ArcSwap<Pool>,
}

/// Connections, and the SDK's client around them.
#[derive(Debug)]
struct Pool {
    sdk: aws_sdk_kms::Client,
    /// Whether somebody answered, so that there may be connections to use again.
    answered: AtomicBool,
}

impl Pool {
    fn empty(config: &aws_sdk_kms::Config) -> Arc<Self> {
        // The HTTP client has the connections.
        let config = config.to_builder().http_client(http::client()).build();
        Arc::new(Self { sdk: aws_sdk_kms::Client::from_conf(config), answered: AtomicBool::new(false) })
    }

    /// Takes note of an answer.
    fn note<T, E>(&self, outcome: &Result<T, SdkError<E, HttpResponse>>) {
        if !matches!(outcome, Err(SdkError::DispatchFailure(_) | SdkError::TimeoutError(_))) {
            self.answered.store(true, Ordering::Relaxed);
        }
    }
}

impl KmsClient {
    /// Builds it; nothing goes over the network before the first call.
    pub(super) fn new(settings: &AwsSettings, region: &str, sdk: &SdkConfig) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(settings.connect_timeout())
            .disable_read_timeout()
            .disable_operation_timeout()
            .disable_operation_attempt_timeout()
            .build();
        let mut config = aws_sdk_kms::config::Builder::from(sdk)
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(timeouts)
            // Of all pools: credentials need not be fetched again with new connections.
            .identity_cache(IdentityCache::lazy().build());
        if let Some(endpoint) = settings.endpoint() {
            config = config.endpoint_url(endpoint);
        }
        if let Some(provider) = sdk.credentials_provider() {
            config = config.credentials_provider(Persistent::new(provider));
        }
        let config = config.build();
        Self { pool: ArcSwap::new(Pool::empty(&config)), config }
    }

    /// For after a call that had no answer in time: connections that were used before are not used again.
    ///
    /// A failover behind a NAT or a firewall that lost its state kills connections without telling anybody. Each of them would
    /// cost one call its whole time, probes included; with sixteen that is minutes (test
    /// `a_pool_full_of_dead_connections_is_left_behind_within_ten_seconds`). Calls on their way are not disturbed.
    pub(super) fn leave_connections(&self) {
        if self.pool.load().answered.swap(false, Ordering::Relaxed) {
            self.pool.store(Pool::empty(&self.config));
        }
    }

    /// Encrypts a DEK under this key (any form of name).
    pub(super) async fn encrypt(
        &self,
        key: &str,
        dek: &DekBytes,
        context: &WrapContext,
        made_for: &KekCall,
    ) -> Result<Answer<Encrypted>, KmsError> {
        let pool = self.pool.load_full();
        let call = pool
            .sdk
            .encrypt()
            .key_id(key)
            .plaintext(Blob::new(dek.expose_bytes().to_vec()))
            .set_encryption_context(Some(pairs(context)));
        let sent = call.customize().mutate_request(with_uid(made_for.uid.as_ref())).send().await;
        pool.note(&sent);
        let answer = sent.map_err(|error| KmsError::from_sdk(Op::Encrypt, &error))?;
        let request_id = request_id_of(&answer);
        let unusable = |what: &str| KmsError::unusable(Op::Encrypt, what, request_id.as_deref());
        let key = answer.key_id.as_deref().and_then(KeyArn::parse).ok_or_else(|| unusable("no key ARN"))?;
        let blob = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        if blob.is_empty() || blob.len() > CIPHERTEXT_MAX {
            return Err(unusable(&format!("{} bytes of ciphertext", blob.len())));
        }
        let dek = WrappedDek::parse(blob).map_err(|_| unusable("no ciphertext"))?;
        Ok(Answer { value: Encrypted { dek, key }, request_id })
    }

    /// Decrypts a DEK that was encrypted under exactly this key.
    pub(super) async fn decrypt(
        &self,
        key: &KeyArn,
        dek: &WrappedDek,
        context: &WrapContext,
        made_for: &KekCall,
    ) -> Result<Answer<Decrypted>, KmsError> {
        let pool = self.pool.load_full();
        let call = pool
            .sdk
            .decrypt()
            // SECURITY: without KeyId the KMS would use whatever key the blob names, any account's.
            .key_id(key.as_str())
            .ciphertext_blob(Blob::new(dek.as_bytes()))
            .set_encryption_context(Some(pairs(context)));
        let sent = call.customize().mutate_request(with_uid(made_for.uid.as_ref())).send().await;
        pool.note(&sent);
        let mut answer = sent.map_err(|error| KmsError::from_sdk(Op::Decrypt, &error))?;
        let plaintext = answer.plaintext.take().map(|blob| Zeroizing::new(blob.into_inner()));
        let request_id = request_id_of(&answer);
        let unusable = |what: &str| KmsError::unusable(Op::Decrypt, what, request_id.as_deref());
        if answer.key_id.as_deref() != Some(key.as_str()) {
            return Err(unusable("it is not from the key that was asked for"));
        }
        // A wrap of another length can only be one that somebody else made with our key and context; it is no verdict either.
        let plaintext = plaintext.ok_or_else(|| unusable("no plaintext"))?;
        let dek = DekBytes::copy_from(&plaintext)
            .map_err(|_| unusable(&format!("{} bytes of plaintext", plaintext.len())))?;
        // It becomes part of the key_id: an invented one would make this node leave the true one for good.
        if answer.key_material_id.as_deref().is_some_and(|id| !is_material_id(id)) {
            return Err(unusable("a key material id that is none"));
        }
        let material = answer.key_material_id.unwrap_or_default();
        Ok(Answer { value: Decrypted { dek, material }, request_id })
    }

    /// Asks for the state of a key.
    pub(super) async fn key_state(&self, key: &str, made_for: &KekCall) -> Result<Answer<Described>, KmsError> {
        self.key_state_and_date(key, made_for, DateHeader::default()).await
    }

    /// As [`KmsClient::key_state`]; whatever the answer is, its time is in `date`.
    pub(super) async fn key_state_and_date(
        &self,
        key: &str,
        made_for: &KekCall,
        date: DateHeader,
    ) -> Result<Answer<Described>, KmsError> {
        let pool = self.pool.load_full();
        let call = pool.sdk.describe_key().key_id(key).customize().interceptor(date);
        let sent = call.mutate_request(with_uid(made_for.uid.as_ref())).send().await;
        pool.note(&sent);
        let answer = sent.map_err(|error| KmsError::from_sdk(Op::DescribeKey, &error))?;
        let request_id = request_id_of(&answer);
        let unusable = |what: &str| KmsError::unusable(Op::DescribeKey, what, request_id.as_deref());
        let metadata = answer.key_metadata.ok_or_else(|| unusable("no metadata of a key"))?;
        if KeyArn::parse(key).is_some() && metadata.arn().is_some_and(|of| of != key) {
            return Err(unusable("it is of another key than the one asked for"));
        }
        let described = described(&metadata).ok_or_else(|| unusable("no key state"))?;
        Ok(Answer { value: described, request_id })
    }
}

fn described(metadata: &KeyMetadata) -> Option<Described> {
    let deletion = metadata.deletion_date().and_then(|date| u64::try_from(date.secs()).ok());
    let is_store = matches!(metadata.origin(), Some(OriginType::ExternalKeyStore | OriginType::AwsCloudhsm));
    Some(Described {
        state: metadata.key_state()?.clone(),
        in_key_store: is_store || metadata.custom_key_store_id().is_some(),
        deletion: deletion.map(Duration::from_secs),
    })
}

/// For the log, so on one line and not of any length.
fn request_id_of(answer: &impl RequestId) -> Option<String> {
    answer.request_id().map(plain_id)
}

fn is_material_id(text: &str) -> bool {
    text.len() == MATERIAL_LEN && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

fn pairs(context: &WrapContext) -> HashMap<String, String> {
    context.pairs().iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
