//! The `aws` provider on the fake KMS of the tests.

use super::bench::Bench;
use crate::support::fake_kms::{ANY, Failure, FakeKms};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use kube_kms_core::port::Kek;
use kube_kms_kek_aws::AwsKek;
use kube_kms_kek_aws::settings::AwsSettings;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SECRET: &str = "CANARY-secret-access-key/0123456789";
const ALIAS: &str = "alias/prod";
const OTHER: &str = "alias/other";

pub struct AwsBench {
    kms: FakeKms,
    key: String,
    other: String,
    away: AtomicBool,
}

impl AwsBench {
    /// Configured by alias.
    pub fn by_alias() -> Self {
        let kms = FakeKms::start();
        kms.create_key(ALIAS);
        kms.create_key(OTHER);
        Self { kms, key: ALIAS.to_owned(), other: OTHER.to_owned(), away: AtomicBool::new(false) }
    }

    /// Configured by key ARN.
    pub fn by_arn() -> Self {
        let bench = Self::by_alias();
        Self { key: bench.kms.key_arn(ALIAS), other: bench.kms.key_arn(OTHER), ..bench }
    }
}

/// An instance with credentials of its own, so that the SDK looks for none.
pub fn instance(url: &str, region: &str, key: &str) -> Arc<dyn Kek> {
    let credentials = Credentials::new("AKIDTEST", SECRET, None, None, "test");
    let sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let settings = AwsSettings::parse(key, Some(region), Some(url)).unwrap();
    Arc::new(AwsKek::connect_with(settings, &sdk).unwrap())
}

impl Bench for AwsBench {
    fn kek(&self) -> Arc<dyn Kek> {
        instance(&self.kms.url(), self.kms.region(), &self.key)
    }

    fn other(&self) -> Arc<dyn Kek> {
        instance(&self.kms.url(), self.kms.region(), &self.other)
    }

    fn calls(&self) -> usize {
        self.kms.total_calls()
    }

    fn rotate(&self) {
        self.kms.rotate(ALIAS);
    }

    fn slow(&self) {
        self.kms.fail_all(ANY, Failure::Hang);
    }

    fn unreachable(&self) {
        self.kms.stop();
        self.away.store(true, Ordering::Relaxed);
    }

    fn denied(&self) {
        self.kms.revoke(ANY);
    }

    fn disabled(&self) {
        self.kms.disable(ALIAS);
    }

    fn disabled_ends_wraps(&self) -> bool {
        true
    }

    fn restart(&self) {
        self.kms.stop();
        self.kms.start_again();
    }

    fn heal(&self) {
        if self.away.swap(false, Ordering::Relaxed) {
            self.kms.start_again();
        }
        self.kms.heal(ANY);
        self.kms.release_hung();
        self.kms.grant(ANY);
        self.kms.enable(ALIAS);
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        vec![SECRET.as_bytes().to_vec()]
    }
}
