//! What this node knows of a keyring file: by its configuration, its state file, and the plugin that runs here.
//!
//! Guarantees: `init` puts no new keyring into the place of one that values are under, and `promote` says before it is done
//! what plugins would refuse. Without a configuration for that file nothing is known of it. Changes nothing.

use super::failure;
use crate::cli::configuration_failure;
use clap::Args;
use kms_v2_api::address::SocketAddress;
use kms_v2_client::kms::KmsClient;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::{runtime, target};
use kube_kms_config::{self as config, Config, KekConfig};
use kube_kms_core::kek_ref::KekKind;
use kube_kms_core::key_id::KeyId;
use kube_kms_kek_local::{operation, restore};
use kube_kms_service::state_file::StateFile;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT: &str = "/etc/kube-kms/config.yaml";
/// The default `timeout` of kube-apiserver.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct Node {
    /// The configuration of this node, to see what it knows of the file [default: /etc/kube-kms/config.yaml, if it is there]
    #[arg(long, value_name = "FILE", env = "KUBE_KMS_CONFIG")]
    config: Option<PathBuf>,
}

impl Node {
    /// The configuration, when it has this file under `kek`.
    fn config_of(&self, keyring: &Path) -> Result<Option<Config>, Failure> {
        let path = match &self.config {
            Some(path) => path.as_path(),
            None if Path::new(DEFAULT).exists() => Path::new(DEFAULT),
            None => return Ok(None),
        };
        let config = config::load(path).map_err(|problems| configuration_failure(&problems))?;
        let is_it = matches!(&config.kek, KekConfig::Local(local) if real(&local.keyring) == real(keyring));
        Ok(is_it.then_some(config))
    }

    /// Whether a new keyring may be made there.
    pub(super) fn may_init(&self, file: &Path) -> Result<(), Failure> {
        // What is there is never overwritten: `init` says so itself.
        if file.symlink_metadata().is_ok() {
            return Ok(());
        }
        let Some(config) = self.config_of(file)? else { return Ok(()) };
        let refused = || Failure::new(Exit::Refused, format!("the keyring was not made: {}", file.display()));
        let state = StateFile::new(&config.state_dir);
        let remembered = state.peek().map_err(|e| {
            refused().cause(format!("{} cannot be read, which says what was there: {e}", state.path().display())).hint(
                "restore the backup of the keyring; where there has never been one, move that file away and try again",
            )
        })?;
        if let Some(kek) = remembered.under.map(|under| under.kek).filter(|kek| kek.kind() == KekKind::LOCAL.as_str()) {
            let cause = format!("this node has written under keyring {kek}, as {} says", state.path().display());
            return Err(refused().cause(cause).hint(restore(&kek, file)));
        }
        match serving(&config)? {
            Some(key_id) => Err(refused()
                .cause(format!("a plugin serves this configuration and reports the key_id {}", key_id.as_str()))
                .hint(format!("restore the backup of its keyring at {}, while it runs", file.display()))),
            None => Ok(()),
        }
    }

    /// Whether plugins would follow that promotion.
    pub(super) fn may_promote(&self, file: &Path, version: &str, epoch_raised: bool) -> Result<(), Failure> {
        let config = self.config_of(file)?;
        let epoch = config.as_ref().map_or(0, |config| config.settings.epoch);
        let promotion = operation::foresee(file, version, epoch).map_err(|e| failure("changed", &e))?;
        let remembered = config.and_then(|config| StateFile::new(&config.state_dir).peek().ok()).unwrap_or_default();
        let cause = if remembered.left.contains(&promotion.key_id) {
            format!("this node has reported the key_id of version {} and left it: it refuses", promotion.to)
        } else if promotion.goes_back && !epoch_raised {
            format!(
                "version {} is older than the current one: plugins that have reported its key_id refuse",
                promotion.to
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(Exit::Refused, format!("the keyring was not changed: {}", file.display()))
            .cause(format!("{cause} to go back (key-id-retired)"))
            .hint(format!(
                "raise `epoch` by one in the configuration of every node, then: kube-kms keyring promote --file {} {} --epoch-raised",
                file.display(),
                promotion.to
            )))
    }
}

/// The key_id that a plugin on this configuration's socket reports, when one of ours serves there.
fn serving(config: &Config) -> Result<Option<KeyId>, Failure> {
    let base = std::env::current_dir().unwrap_or_default();
    let Ok(address) = SocketAddress::parse(&config.listen.socket, &base) else { return Ok(None) };
    let status = runtime()?.block_on(async {
        let mut client = KmsClient::connect(target(&address), TIMEOUT).await.ok()?;
        client.status().await.ok()
    });
    Ok(status.and_then(|status| KeyId::parse(status.key_id).ok()).filter(KeyId::is_ours))
}

/// The path without links in its directory, where that is there.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (Some(directory), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    directory.canonicalize().map_or_else(|_| absolute.clone(), |directory| directory.join(name))
}
