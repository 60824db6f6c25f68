//! A start with a KEK that cannot be used, on both providers: the process stays, says what is wrong and what to do, and
//! recovers by itself.

use crate::support::fake_kms::{ANY, Failure, FakeKms};
use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::Code;

/// What is seen of a KEK that cannot be used.
struct Seen {
    reason: &'static str,
    code: Code,
    /// What the log says besides: the cause, and what to do about it.
    log: &'static [&'static str],
}

async fn stays_and_says(running: &Running, what: &str, seen: &Seen) {
    let began = Instant::now();
    running.until_log("listening").await;
    let first = running.client().await.status().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{what}: {:?}", began.elapsed());
    assert!(first.is_err(), "{what}: {first:?}");

    let expected = |status: &tonic::Status| status.code() == seen.code && status.message().contains(seen.reason);
    running.until_status(|a| a.as_ref().is_err_and(expected)).await.unwrap_err();
    let refused = running.client().await.encrypt(vec![7; 32], uid()).await.unwrap_err();
    assert_eq!(refused.code(), seen.code, "{what}: {refused:?}");

    assert_eq!(running.http("/livez").await.0, 200, "{what}");
    let (status, body) = running.http("/readyz").await;
    assert!(status == 503 && body.contains(&format!("reason={}", seen.reason)), "{what}: {status} {body}");
    for text in seen.log.iter().chain([&seen.reason]) {
        running.until_log(text).await;
    }
}

async fn recovers(site: &Site, running: Running, what: &str) {
    running.until_ok().await;
    assert_eq!(running.http("/readyz").await.0, 200, "{what}");
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    assert!(running.stop().await.success(), "{what}");
    assert!(!site.socket().exists());
}

/// One way in which a keyring file is bad: how it becomes so, how it is repaired, and what is seen.
type BadFile = (&'static str, fn(&Path), Seen);

async fn bad_file((what, damage, seen): BadFile) {
    let site = Site::local();
    let good = std::fs::read(site.keyring()).unwrap();
    damage(site.keyring());
    let running = site.spawn();
    stays_and_says(&running, what, &seen).await;
    let _ = std::fs::remove_file(site.keyring());
    // As an operator restores it: whole, or not at all.
    let restored = site.keyring().with_extension("restored");
    std::fs::write(&restored, good).unwrap();
    std::fs::set_permissions(&restored, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&restored, site.keyring()).unwrap();
    recovers(&site, running, what).await;
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_keyring_file_that_is_missing_is_said_and_waited_for() {
    let seen = Seen {
        reason: "kms-unreachable",
        code: Code::Unavailable,
        log: &["there is no such file", "mount or restore the keyring at "],
    };
    bad_file(("missing", |path| std::fs::remove_file(path).unwrap(), seen)).await;
}

#[tokio::test]
async fn a_keyring_file_that_others_can_read_is_refused_with_the_command_that_helps() {
    let seen = Seen { reason: "kek-file-refused", code: Code::Unavailable, log: &["its mode is 0644", "chmod 600"] };
    bad_file(("world-readable", |path| set_mode(path, 0o644), seen)).await;
}

#[tokio::test]
async fn a_keyring_file_that_is_cut_short_is_refused_and_what_is_left_of_it_not_shown() {
    let damage = |path: &Path| {
        let whole = std::fs::read(path).unwrap();
        std::fs::write(path, &whole[..whole.len() / 2]).unwrap();
    };
    let seen = Seen { reason: "kek-file-refused", code: Code::Unavailable, log: &["keyring "] };
    bad_file(("truncated", damage, seen)).await;
}

#[tokio::test]
async fn a_keyring_file_of_a_newer_version_is_refused_in_words() {
    let damage = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let version = document["version"].as_u64().expect("the file has a version");
        document["version"] = (version + 1).into();
        std::fs::write(path, document.to_string()).unwrap();
    };
    let seen = Seen { reason: "kek-file-refused", code: Code::Unavailable, log: &["newer"] };
    bad_file(("newer", damage, seen)).await;
}

async fn bad_kms(what: &str, damage: impl Fn(&FakeKms), repair: impl Fn(&FakeKms), seen: Seen) {
    let site = Site::aws();
    damage(site.kms());
    let running = site.spawn();
    stays_and_says(&running, what, &seen).await;
    repair(site.kms());
    recovers(&site, running, what).await;
}

#[tokio::test]
async fn a_kms_that_cannot_be_reached_is_said_and_waited_for() {
    let seen = Seen { reason: "kms-unreachable", code: Code::Unavailable, log: &["kms:Encrypt"] };
    bad_kms("unreachable", FakeKms::stop, FakeKms::start_again, seen).await;
}

#[tokio::test]
async fn a_kms_that_throttles_is_said_and_waited_for() {
    let seen = Seen { reason: "kms-throttled", code: Code::Unavailable, log: &["ThrottlingException"] };
    bad_kms("throttled", |kms| kms.fail_all(ANY, Failure::Throttled), |kms| kms.heal(ANY), seen).await;
}

#[tokio::test]
async fn a_kms_that_denies_is_said_with_the_permission_that_is_missing() {
    let seen = Seen { reason: "policy-denied", code: Code::Unavailable, log: &["kms:Encrypt", "AccessDenied"] };
    bad_kms("denied", |kms| kms.revoke(ANY), |kms| kms.grant(ANY), seen).await;
}

#[tokio::test]
async fn rejected_credentials_are_said() {
    let seen = Seen { reason: "credentials-rejected", code: Code::Unavailable, log: &["UnrecognizedClient"] };
    bad_kms("credentials", |kms| kms.fail_all(ANY, Failure::UnrecognizedClient), |kms| kms.heal(ANY), seen).await;
}

#[tokio::test]
async fn a_disabled_key_is_a_failed_precondition_and_enabling_it_is_all_it_takes() {
    let seen = Seen { reason: "kek-disabled", code: Code::FailedPrecondition, log: &["DisabledException"] };
    bad_kms("disabled", |kms| kms.disable(ALIAS), |kms| kms.enable(ALIAS), seen).await;
}

#[tokio::test]
async fn a_key_that_is_pending_deletion_is_a_failed_precondition_and_taking_it_back_is_all_it_takes() {
    let seen = Seen { reason: "kek-pending-deletion", code: Code::FailedPrecondition, log: &["KMSInvalidState"] };
    bad_kms("pending deletion", |kms| kms.schedule_deletion(ALIAS), |kms| kms.enable(ALIAS), seen).await;
}
