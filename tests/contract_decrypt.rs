//! docs/conformance.md, D: what kube-apiserver may expect of Decrypt, against the real binary on a real socket, on both KEKs.
//!
//! Every refusal goes through [`refused`], so every one of them is held to item 55: the code of its class, a constant
//! phrase and the uid, and not one byte more. Nothing here probes during a test ([`calm`]), so every unwrap is a Decrypt's.

mod cache;
mod open;
mod outage;
mod read;
mod tamper;

use crate::support::site::{KekKind, Running, Site, uid};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use kube_kms_core::fault::Reason;
use kube_kms_kek_local::operation;
use kube_kms_os::{OsEntropy, wall_clock};
use std::path::PathBuf;
use tonic::Status;

/// Runs a test as one on the local KEK and one on the AWS KEK.
macro_rules! on_both_keks {
    ($($test:ident)+) => {
        $(mod $test {
            use crate::support::site::Site;

            #[tokio::test]
            async fn on_the_local_kek() {
                super::$test(Site::local()).await;
            }

            #[tokio::test]
            async fn on_the_aws_kek() {
                super::$test(Site::aws()).await;
            }
        })+
    };
}
pub(crate) use on_both_keks;

/// The site with one probe, at the start.
pub(crate) fn calm(mut site: Site) -> Site {
    site.set("probe: {interval: 1h}");
    site
}

/// Calls Decrypt, which succeeds.
pub(crate) async fn open(client: &mut KmsClient, sealed: &EncryptResponse) -> Vec<u8> {
    client.decrypt(sealed.clone(), uid()).await.unwrap().plaintext.clone()
}

/// Calls Decrypt, which fails, and returns why.
pub(crate) async fn refused(client: &mut KmsClient, sealed: &EncryptResponse) -> Reason {
    let uid = uid();
    match client.decrypt(sealed.clone(), uid.clone()).await {
        Ok(answer) => panic!("{} bytes instead of a refusal of {sealed:?}", answer.plaintext.len()),
        Err(status) => reason_of(&status, &uid),
    }
}

/// The reason whose constant phrase this status has; item 55.
pub(crate) fn reason_of(status: &Status, uid: &str) -> Reason {
    let is_it = |reason: &&Reason| status.message() == format!("{reason}: {} [uid {uid}]", reason.phrase());
    let reason = *Reason::ALL.iter().find(is_it).unwrap_or_else(|| panic!("not a constant phrase: {status:?}"));
    assert_eq!(status.code() as i32, i32::from(reason.class().code() as u8), "{status:?}");
    assert!(status.details().is_empty() && status.metadata().keys().len() <= 3, "{status:?}");
    reason
}

/// Calls of `unwrap_dek` that have ended, the probe's included, on whatever KEK.
pub(crate) async fn unwraps(running: &Running) -> usize {
    let (_, page) = running.http("/metrics").await;
    let ours =
        page.lines().filter(|l| l.starts_with("kube_kms_kek_calls_total{") && l.contains(r#"operation="unwrap""#));
    ours.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Unwraps that Decrypts have started.
pub(crate) async fn misses(running: &Running) -> f64 {
    running.metric(r#"kube_kms_keyring_events_total{event="miss"}"#).await
}

/// A new version of the KEK, current at once. A running plugin finds out when it probes.
pub(crate) fn rotate(site: &Site) {
    match site.kek() {
        KekKind::Local(path) => {
            let version = operation::add(path, wall_clock(), &OsEntropy).unwrap();
            operation::promote(path, &version.to_string()).unwrap();
        }
        KekKind::Aws(kms) => kms.rotate(crate::support::site::ALIAS),
    }
}

/// The KMS is away: nobody listens, or the file is not there.
pub(crate) fn take_away(site: &Site) {
    match site.kek() {
        KekKind::Local(path) => std::fs::rename(path, hidden(path)).unwrap(),
        KekKind::Aws(kms) => kms.stop(),
    }
}

/// The end of [`take_away`].
pub(crate) fn give_back(site: &Site) {
    match site.kek() {
        KekKind::Local(path) => std::fs::rename(hidden(path), path).unwrap(),
        KekKind::Aws(kms) => kms.start_again(),
    }
}

fn hidden(path: &std::path::Path) -> PathBuf {
    path.with_extension("away")
}
