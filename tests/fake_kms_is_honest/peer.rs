//! One server under test, through AWS's own client, in few words.
//!
//! Guarantees: every failure comes back as AWS's error code, or as `no answer: …` when there was none.

use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::decrypt::DecryptOutput;
use aws_sdk_kms::operation::generate_data_key::GenerateDataKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeyMetadata};
use std::collections::HashMap;
use std::time::Duration;

/// What was answered, or the error's code.
pub type Said<T> = Result<T, String>;

/// An EncryptionContext, written short.
pub type Pairs<'a> = &'a [(&'a str, &'a str)];

#[derive(Clone)]
pub struct Peer {
    pub client: Client,
    pub region: String,
    pub account: String,
}

/// A key of the server's, as its ARN and its id.
pub struct Key {
    pub arn: String,
    pub id: String,
}

/// The code of a failure.
pub fn code<E: ProvideErrorMetadata, R>(error: SdkError<E, R>) -> String {
    let kind = match &error {
        SdkError::ConstructionFailure(_) => "no answer: not sent",
        SdkError::TimeoutError(_) => "no answer: timeout",
        SdkError::DispatchFailure(_) => "no answer: dispatch",
        SdkError::ResponseError(_) => "no answer: response",
        _ => "an answer without a code",
    };
    error.code().unwrap_or(kind).to_owned()
}

/// A client that tries once, for at most 20 seconds, with credentials of its own.
pub fn client(url: &str, region: &str) -> Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("AKIDTEST", "secret", None, None, "test"))
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(20)).build())
        .build();
    Client::from_conf(config)
}

fn map(pairs: Pairs<'_>) -> Option<HashMap<String, String>> {
    let map: HashMap<_, _> = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    (!map.is_empty()).then_some(map)
}

impl Peer {
    pub fn new(url: &str, region: &str, account: &str) -> Self {
        Self { client: client(url, region), region: region.to_owned(), account: account.to_owned() }
    }

    pub fn alias_arn(&self, alias: &str) -> String {
        format!("arn:aws:kms:{}:{}:{alias}", self.region, self.account)
    }

    pub fn unknown_key(&self) -> String {
        format!("arn:aws:kms:{}:{}:key/{}", self.region, self.account, uuid::Uuid::new_v4())
    }

    pub async fn key(&self) -> Said<Key> {
        let made = self.client.create_key().send().await.map_err(code)?.key_metadata.ok_or("no metadata")?;
        Ok(Key { arn: made.arn.ok_or("no ARN")?, id: made.key_id })
    }

    /// A key and an alias that nobody else has.
    pub async fn aliased(&self) -> Said<(Key, String)> {
        let key = self.key().await?;
        let alias = format!("alias/{}", uuid::Uuid::new_v4());
        self.create_alias(&alias, &key.id).await?;
        Ok((key, alias))
    }

    pub async fn create_alias(&self, alias: &str, key: &str) -> Said<()> {
        self.client.create_alias().alias_name(alias).target_key_id(key).send().await.map(|_| ()).map_err(code)
    }

    pub async fn describe(&self, key: &str) -> Said<KeyMetadata> {
        let described = self.client.describe_key().key_id(key).send().await.map_err(code)?;
        described.key_metadata.ok_or_else(|| "no metadata".to_owned())
    }

    /// The state, as AWS writes it.
    pub async fn state(&self, key: &str) -> Said<String> {
        Ok(self.describe(key).await?.key_state.ok_or("no state")?.as_str().to_owned())
    }

    pub async fn material(&self, key: &str) -> Said<String> {
        self.describe(key).await?.current_key_material_id.ok_or_else(|| "no material id".to_owned())
    }

    pub async fn encrypt(&self, key: &str, plaintext: &[u8], context: Pairs<'_>) -> Said<Vec<u8>> {
        let call = self.client.encrypt().key_id(key).plaintext(Blob::new(plaintext));
        let answer = call.set_encryption_context(map(context)).send().await.map_err(code)?;
        Ok(answer.ciphertext_blob.ok_or("no ciphertext")?.into_inner())
    }

    pub async fn decrypt_output(&self, key: Option<&str>, blob: &[u8], context: Pairs<'_>) -> Said<DecryptOutput> {
        let call = self.client.decrypt().set_key_id(key.map(str::to_owned)).ciphertext_blob(Blob::new(blob));
        call.set_encryption_context(map(context)).send().await.map_err(code)
    }

    /// The plaintext as text.
    pub async fn decrypt(&self, key: Option<&str>, blob: &[u8], context: Pairs<'_>) -> Said<String> {
        let answer = self.decrypt_output(key, blob, context).await?;
        let plaintext = answer.plaintext.ok_or("no plaintext")?.into_inner();
        String::from_utf8(plaintext).map_err(|_| "other bytes".to_owned())
    }

    /// Encrypts `hello` under `key` and decrypts it, naming `named`.
    pub async fn round_trip(&self, key: &str, named: Option<&str>) -> Said<String> {
        let blob = self.encrypt(key, b"hello", &[]).await?;
        self.decrypt(named, &blob, &[]).await
    }

    pub async fn data_key(&self, key: &str, context: Pairs<'_>) -> Said<GenerateDataKeyOutput> {
        let call = self.client.generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256);
        call.set_encryption_context(map(context)).send().await.map_err(code)
    }

    pub async fn disable(&self, key: &str) -> Said<()> {
        self.client.disable_key().key_id(key).send().await.map(|_| ()).map_err(code)
    }

    pub async fn enable(&self, key: &str) -> Said<()> {
        self.client.enable_key().key_id(key).send().await.map(|_| ()).map_err(code)
    }

    pub async fn schedule_deletion(&self, key: &str, days: i32) -> Said<()> {
        let call = self.client.schedule_key_deletion().key_id(key).pending_window_in_days(days);
        call.send().await.map(|_| ()).map_err(code)
    }

    pub async fn rotate(&self, key: &str) -> Said<()> {
        self.client.rotate_key_on_demand().key_id(key).send().await.map(|_| ()).map_err(code)
    }
}
