//! AWS KMS: an on-demand rotation of the key, or an alias that is pointed at another key.
//!
//! Guarantees: the key is named by its ARN, from the KMS's own answer. An alias and the state of a key are put back at the end.
//! SPEC: AWS KMS API Reference, RotateKeyOnDemand (asynchronous, at most ten for a key, never undone), UpdateAlias, DisableKey,
//! EnableKey.

use crate::admin::{AdminError, AdminFuture, KekAdmin};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// What the drill does to rotate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// New material for the same key.
    OnDemand,
    /// The alias is pointed at this key; the old key is disabled in step 8 only if that is allowed.
    Retarget { alias: String, to: String, may_disable: bool },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AwsAdmin {
    client: Client,
    /// The ARN of the key that wraps when the drill begins.
    key: String,
    rotation: Rotation,
    is_retargeted: bool,
    is_disabled: bool,
}

impl AwsAdmin {
    /// With the SDK's own chain of credentials; nothing goes over the network yet.
    pub(crate) async fn new(key: String, region: String, endpoint: Option<&str>, rotation: Rotation) -> Self {
        let sdk = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(region)).load().await;
        let mut config = aws_sdk_kms::config::Builder::from(&sdk);
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        let client = Client::from_conf(config.build());
        Self { client, key, rotation, is_retargeted: false, is_disabled: false }
    }

    async fn rotate_now(&mut self) -> Result<String, AdminError> {
        match self.rotation.clone() {
            Rotation::OnDemand => {
                within(self.client.rotate_key_on_demand().key_id(&self.key).send(), "kms:RotateKeyOnDemand").await?;
                Ok(format!("RotateKeyOnDemand of {}", self.key))
            }
            Rotation::Retarget { alias, to, .. } => {
                self.point(&alias, &to).await?;
                self.is_retargeted = true;
                Ok(format!("UpdateAlias of {alias} from {} to {to}", self.key))
            }
        }
    }

    async fn point(&self, alias: &str, to: &str) -> Result<(), AdminError> {
        let call = self.client.update_alias().alias_name(alias).target_key_id(to);
        within(call.send(), "kms:UpdateAlias").await.map(|_| ())
    }

    async fn disable(&mut self) -> Result<String, AdminError> {
        match &self.rotation {
            Rotation::OnDemand => Err(AdminError::NotPossible(
                "AWS KMS keeps every version of a key and retires none of them; a whole key can be retired after its alias was \
                 pointed at another (--rotate-to)"
                    .to_owned(),
            )),
            Rotation::Retarget { may_disable: false, .. } => Err(AdminError::NotPossible(
                "the old key is left alone without --disable-old".to_owned(),
            )),
            Rotation::Retarget { .. } => {
                within(self.client.disable_key().key_id(&self.key).send(), "kms:DisableKey").await?;
                self.is_disabled = true;
                Ok(format!("DisableKey of {}", self.key))
            }
        }
    }

    async fn enable(&mut self) -> Result<String, AdminError> {
        within(self.client.enable_key().key_id(&self.key).send(), "kms:EnableKey").await?;
        self.is_disabled = false;
        Ok(format!("EnableKey of {}", self.key))
    }

    async fn undo(&mut self) -> Result<String, AdminError> {
        let mut done = Vec::new();
        if self.is_disabled {
            done.push(self.enable().await?);
        }
        if let (true, Rotation::Retarget { alias, .. }) = (self.is_retargeted, self.rotation.clone()) {
            let key = self.key.clone();
            self.point(&alias, &key).await?;
            self.is_retargeted = false;
            done.push(format!("UpdateAlias of {alias} back to {key}"));
        }
        Ok(done.join(", "))
    }
}

/// One call, within its time.
async fn within<T, E>(call: impl Future<Output = Result<T, SdkError<E>>>, permission: &str) -> Result<T, AdminError>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let said =
                error.as_service_error().map(|e| (e.code().unwrap_or("error"), e.message().unwrap_or("no message")));
            let Some((code, message)) = said else {
                return Err(AdminError::Failed(format!("{permission}: {}", chain(&error))));
            };
            let text = format!("{permission}: {code}: {message}");
            Err(if code.starts_with("AccessDenied") { AdminError::Denied(text) } else { AdminError::Failed(text) })
        }
        Err(_) => Err(AdminError::Failed(format!("{permission}: no answer within {PATIENCE:?}"))),
    }
}

/// An error and its sources in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

impl KekAdmin for AwsAdmin {
    fn rotate(&mut self) -> AdminFuture<'_> {
        Box::pin(self.rotate_now())
    }

    fn instruction(&self) -> String {
        match &self.rotation {
            Rotation::OnDemand => format!("aws kms rotate-key-on-demand --key-id {}", self.key),
            Rotation::Retarget { alias, to, .. } => {
                format!("aws kms update-alias --alias-name {alias} --target-key-id {to}")
            }
        }
    }

    fn retire(&mut self) -> AdminFuture<'_> {
        Box::pin(self.disable())
    }

    fn reinstate(&mut self) -> AdminFuture<'_> {
        Box::pin(self.enable())
    }

    fn put_back(&mut self) -> AdminFuture<'_> {
        Box::pin(self.undo())
    }
}
