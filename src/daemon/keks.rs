//! From the configuration to KEK providers. Nothing here touches the network; a KMS that is away is found by the first probe.

use super::StartError;
use crate::config::{AwsKekConfig, Config, KekConfig};
use crate::core::fault::Fault;
use crate::core::port::{Entropy, Kek};
use crate::kek::local::LocalKek;
use crate::service::kek_set::{KekEntry, KekSet};
use std::sync::Arc;

/// Builds every KEK of the configuration.
///
/// # Errors
/// [`StartError::Kek`], naming the key in the configuration, when one cannot work as it is configured.
pub async fn connect(config: &Config, entropy: &Arc<dyn Entropy>) -> Result<KekSet, StartError> {
    let write = entry(&config.kek, entropy).await.map_err(|fault| StartError::Kek { key: "kek".to_owned(), fault })?;
    let mut read = Vec::with_capacity(config.read.len());
    for (n, kek) in config.read.iter().enumerate() {
        let named = |fault| StartError::Kek { key: format!("read[{n}]"), fault };
        read.push(entry(kek, entropy).await.map_err(named)?);
    }
    let mut recovery = Vec::with_capacity(config.recovery.keks.len());
    for (n, kek) in config.recovery.keks.iter().enumerate() {
        let named = |fault| StartError::Kek { key: format!("recovery.keks[{n}]"), fault };
        recovery.push(entry(kek, entropy).await.map_err(named)?);
    }
    Ok(KekSet::new(write, read).with_recovery(recovery, config.recovery.break_glass))
}

async fn entry(config: &KekConfig, entropy: &Arc<dyn Entropy>) -> Result<KekEntry, Fault> {
    let kek: Arc<dyn Kek> = match config {
        KekConfig::Aws(aws) => connect_aws(aws).await?,
        KekConfig::Local(local) => Arc::new(LocalKek::new(local.keyring.clone(), Arc::clone(entropy))),
    };
    Ok(KekEntry { kek, context: config.context() })
}

#[cfg(feature = "aws")]
async fn connect_aws(config: &AwsKekConfig) -> Result<Arc<dyn Kek>, Fault> {
    use crate::core::fault::Reason;
    use crate::kek::aws::{AwsKek, settings::AwsSettings};

    let settings = AwsSettings::parse(&config.key, config.region.as_deref(), config.endpoint.as_deref())
        .map_err(|e| Fault::caused_by(Reason::KekUnusable, e))?;
    Ok(Arc::new(AwsKek::connect(settings).await?))
}

#[cfg(not(feature = "aws"))]
async fn connect_aws(_: &AwsKekConfig) -> Result<Arc<dyn Kek>, Fault> {
    use crate::core::fault::Reason;

    Err(Fault::caused_by(Reason::KekUnusable, "this kube-kms was built without the cargo feature `aws`"))
}
