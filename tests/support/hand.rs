//! What happens to a site's KEK from outside, in the same words whichever kind it is: an administrator rotates it, the
//! KMS goes away and comes back, and somebody asks it which version a stored data key is under.

use super::site::{ALIAS, BINARY, KekKind, Site};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use kms_v2_api::v2::EncryptResponse;
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::kek_ref::{KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Kek, KekCall};
use kube_kms_kek_aws::AwsKek;
use kube_kms_kek_aws::settings::AwsSettings;
use kube_kms_kek_local::LocalKek;
use kube_kms_os::OsEntropy;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Makes of one function over a [`Site`] two tests, one on each KEK: `item::on_the_local_kek`, `item::on_the_aws_kek`.
macro_rules! on_both_keks {
    ($($(#[$meta:meta])* $name:ident: $body:expr;)+) => {$(
        mod $name {
            use super::*;

            $(#[$meta])*
            #[tokio::test]
            async fn on_the_local_kek() {
                $body($crate::support::site::Site::local()).await;
            }

            $(#[$meta])*
            #[tokio::test]
            async fn on_the_aws_kek() {
                $body($crate::support::site::Site::aws()).await;
            }
        }
    )+};
}
pub(crate) use on_both_keks;

/// A new version of the KEK wraps from now on; everything before still unwraps.
pub fn rotate(site: &Site) {
    match site.kek() {
        KekKind::Aws(kms) => kms.rotate(ALIAS),
        KekKind::Local(keyring) => {
            let file = keyring.to_str().unwrap();
            keyring_command(site, &["add", "--file", file]);
            promote(site, versions(site).last().unwrap());
        }
    }
}

/// The keyring's versions, oldest first.
pub fn versions(site: &Site) -> Vec<String> {
    let listing = keyring_command(site, &["list", "--file", site.keyring().to_str().unwrap(), "--output", "json"]);
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    listing["versions"].as_array().unwrap().iter().map(|v| v["version"].as_str().unwrap().to_owned()).collect()
}

/// Makes that version of the keyring the one that wraps, also an older one, as somebody who insists.
pub fn promote(site: &Site, version: &str) {
    keyring_command(site, &["promote", "--file", site.keyring().to_str().unwrap(), version, "--epoch-raised"]);
}

fn keyring_command(site: &Site, arguments: &[&str]) -> String {
    let output = site.process(BINARY, &[&["keyring"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The KMS cannot be reached any more: its port refuses, or the keyring file is not there.
pub fn take_away(site: &Site) {
    match site.kek() {
        KekKind::Aws(kms) => kms.stop(),
        KekKind::Local(keyring) => std::fs::rename(keyring, aside(keyring)).unwrap(),
    }
}

/// Undoes [`take_away`], and nothing else is done for anybody.
pub fn bring_back(site: &Site) {
    match site.kek() {
        KekKind::Aws(kms) => kms.start_again(),
        KekKind::Local(keyring) => std::fs::rename(aside(keyring), keyring).unwrap(),
    }
}

fn aside(keyring: &Path) -> PathBuf {
    keyring.with_extension("away")
}

/// The KEK version that this stored value's data key is under, as the KEK itself says when it unwraps it: for AWS the
/// ARN and the KeyMaterialId of a Decrypt.
pub async fn version_behind(site: &Site, stored: &EncryptResponse) -> KekVersion {
    let kek = KekRef::parse(&stored.annotations["kek.kube-kms"]).unwrap();
    let provider: Arc<dyn Kek> = match site.kek() {
        KekKind::Local(keyring) => Arc::new(LocalKek::new(keyring.clone(), Arc::new(OsEntropy))),
        KekKind::Aws(kms) => {
            let settings = AwsSettings::parse(kek.identity(), Some(kms.region()), Some(&kms.url())).unwrap();
            let credentials = Credentials::new("AKIDTEST", "not-a-secret", None, None, "test");
            let sdk = SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .credentials_provider(SharedCredentialsProvider::new(credentials))
                .build();
            Arc::new(AwsKek::connect_with(settings, &sdk).unwrap())
        }
    };
    let wrapped = WrappedDek::parse(stored.annotations["dek.kube-kms"].clone()).unwrap();
    let call = KekCall { timeout: Duration::from_secs(10), uid: None };
    let unwrapped = provider.unwrap_dek(&kek, &wrapped, &WrapContext::new(BTreeMap::new()), &call).await.unwrap();
    unwrapped.version
}

/// Asserts that the key_id names the KEK version that the data key is really under.
pub async fn assert_labelled_right(site: &Site, stored: &EncryptResponse, epoch: u64) {
    let version = version_behind(site, stored).await;
    assert_eq!(stored.key_id, KeyId::derive(&version, epoch).as_str(), "mislabelled: it is under {version:?}");
}

/// Calls to the KEK so far: of the fake where there is one, else as the process counts them.
pub async fn kek_calls(site: &Site, running: &super::site::Running) -> usize {
    match site.kek() {
        KekKind::Aws(kms) => kms.total_calls(),
        KekKind::Local(_) => {
            let (_, page) = running.http("/metrics").await;
            let counts = page.lines().filter(|line| line.starts_with("kube_kms_kek_calls_total"));
            counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as usize).sum()
        }
    }
}
