//! From the configuration to KEK providers. Nothing here touches the network; a KMS that is away is found by the first probe.

use super::StartError;
use kube_kms_config::{AwsKekConfig, Config, KekConfig};
use kube_kms_core::fault::Fault;
use kube_kms_core::kek_ref::{KekKind, KekRef};
use kube_kms_core::port::{Entropy, Kek};
use kube_kms_kek_local::LocalKek;
use kube_kms_service::kek_set::{KekEntry, KekSet};
use kube_kms_service::state_file::Under;
use std::sync::Arc;

/// Builds every KEK of the configuration. `before`: what this node has written under last, where that is known.
///
/// A local keyring that is another than that one is refused by each of its calls, unless the old one is under `read` or `epoch`
/// has been raised: nothing else tells a keyring that is meant from a lost file that somebody has made anew.
///
/// # Errors
/// [`StartError::Kek`], naming the key in the configuration, when one cannot work as it is configured.
pub async fn connect(
    config: &Config,
    entropy: &Arc<dyn Entropy>,
    before: Option<&Under>,
) -> Result<KekSet, StartError> {
    let expected = before
        .filter(|before| before.kek.kind() == KekKind::LOCAL.as_str() && before.epoch == config.settings.epoch)
        .map(|before| &before.kek)
        .filter(|kek| !is_read(config, entropy, kek));
    let write = entry(&config.kek, entropy, expected).await;
    let write = write.map_err(|fault| StartError::Kek { key: "kek".to_owned(), fault })?;
    let mut read = Vec::with_capacity(config.read.len());
    for (n, kek) in config.read.iter().enumerate() {
        let named = |fault| StartError::Kek { key: format!("read[{n}]"), fault };
        read.push(entry(kek, entropy, None).await.map_err(named)?);
    }
    let mut recovery = Vec::with_capacity(config.recovery.keks.len());
    for (n, kek) in config.recovery.keks.iter().enumerate() {
        let named = |fault| StartError::Kek { key: format!("recovery.keks[{n}]"), fault };
        recovery.push(entry(kek, entropy, None).await.map_err(named)?);
    }
    Ok(KekSet::new(write, read).with_recovery(recovery, config.recovery.break_glass))
}

/// Whether a keyring under `read` is that one: its file is there and says so.
fn is_read(config: &Config, entropy: &Arc<dyn Entropy>, kek: &KekRef) -> bool {
    config.read.iter().any(|read| match read {
        KekConfig::Local(local) => LocalKek::new(local.keyring.clone(), Arc::clone(entropy)).known() == Some(kek),
        KekConfig::Aws(_) => false,
    })
}

async fn entry(config: &KekConfig, entropy: &Arc<dyn Entropy>, expected: Option<&KekRef>) -> Result<KekEntry, Fault> {
    let kek: Arc<dyn Kek> = match config {
        KekConfig::Aws(aws) => connect_aws(aws).await?,
        KekConfig::Local(local) => {
            let kek = LocalKek::new(local.keyring.clone(), Arc::clone(entropy));
            Arc::new(if let Some(expected) = expected { kek.expecting(expected.clone()) } else { kek })
        }
    };
    Ok(KekEntry { kek, context: config.context() })
}

#[cfg(feature = "aws")]
async fn connect_aws(config: &AwsKekConfig) -> Result<Arc<dyn Kek>, Fault> {
    use kube_kms_core::fault::Reason;
    use kube_kms_kek_aws::{AwsKek, settings::AwsSettings};

    let settings = AwsSettings::parse(&config.key, config.region.as_deref(), config.endpoint.as_deref())
        .map_err(|e| Fault::caused_by(Reason::KekUnusable, e))?;
    Ok(Arc::new(AwsKek::connect(settings).await?))
}

#[cfg(not(feature = "aws"))]
async fn connect_aws(_: &AwsKekConfig) -> Result<Arc<dyn Kek>, Fault> {
    use kube_kms_core::fault::Reason;

    Err(Fault::caused_by(Reason::KekUnusable, "this kube-kms was built without the cargo feature `aws`"))
}
