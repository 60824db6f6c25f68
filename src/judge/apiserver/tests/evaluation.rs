//! Every row of what one evaluation does: Status, the rules on it, Encrypt, and what becomes of the write state.

use super::script::Stage;
use crate::apiserver::FindingCode;
use kms_v2_client::plugin::Rpc;
use std::time::Duration;
use tonic::Code;

const S: fn(u64) -> Duration = Duration::from_secs;

/// A minute has passed since a good load; the state has two minutes left.
async fn a_minute_later() -> Stage {
    let stage = Stage::new().await;
    assert!(stage.server.readyz().await.is_ok());
    stage.clock.advance(S(60));
    assert_eq!(stage.seconds_left(), 120);
    stage
}

#[tokio::test]
async fn a_failed_status_is_unhealthy_and_the_state_runs_down() {
    let stage = a_minute_later().await;
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    let why = stage.server.readyz().await.unwrap_err().to_string();
    assert!(why.contains("Status failed: Unavailable"), "{why}");
    assert_eq!((stage.seconds_left(), stage.plugin.calls(Rpc::Encrypt)), (120, 1));
    assert!(stage.codes().is_empty(), "an RPC that fails says nothing against a plugin by itself");
}

#[tokio::test]
async fn an_invalid_key_id_is_unhealthy_and_neither_rotates_nor_extends() {
    for (key_id, code) in [(String::new(), FindingCode::KeyIdEmpty), ("k".repeat(1025), FindingCode::KeyIdTooLong)] {
        let stage = a_minute_later().await;
        stage.plugin.face().key_id = key_id;
        assert!(stage.server.readyz().await.is_err());
        assert_eq!((stage.seconds_left(), stage.plugin.calls(Rpc::Encrypt)), (120, 1));
        assert_eq!(stage.codes(), [code]);
        assert_eq!(stage.server.report().key_ids.len(), 1);
    }
}

#[tokio::test]
async fn a_key_id_of_1024_bytes_is_taken() {
    let stage = Stage::prepared(|f| f.key_id = "k".repeat(1024)).await;
    assert!(stage.server.readyz().await.is_ok());
    assert!(stage.codes().is_empty());
}

#[tokio::test]
async fn the_same_key_id_extends_without_an_encrypt() {
    let stage = a_minute_later().await;
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!((stage.seconds_left(), stage.plugin.calls(Rpc::Encrypt)), (180, 1));
}

#[tokio::test]
async fn the_same_key_id_revives_an_expired_state_with_the_same_seed() {
    let stage = Stage::new().await;
    let before = stage.write();
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    stage.play(600, false).await;
    assert!(stage.server.write("/k", b"x").is_err());
    stage.plugin.face().status_fails = None;
    stage.clock.advance(S(3));
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!((stage.seconds_left(), stage.plugin.calls(Rpc::Encrypt)), (180, 1));
    stage.write();
    assert_eq!(stage.server.read(super::script::KEY, &before).await.unwrap().plaintext.as_slice(), b"object");
    assert_eq!(stage.codes(), [FindingCode::WriteStateExpired]);
    assert_eq!(stage.server.report().counts.write_state_expiries, 1);
}

/// k/k 138950: upstream's behaviour, whatever one thinks of it.
#[tokio::test]
async fn a_bad_healthz_with_the_same_key_id_is_unhealthy_and_still_extends() {
    let stage = a_minute_later().await;
    stage.plugin.face().healthz = "the KMS is away".to_owned();
    let why = stage.server.readyz().await.unwrap_err().to_string();
    assert!(why.contains("unexpected healthz status"), "{why}");
    assert_eq!(stage.seconds_left(), 180);
    stage.play(900, true).await;
    stage.write();
    assert_eq!(stage.codes(), [FindingCode::HealthzNotOk]);
}

#[tokio::test]
async fn another_key_id_brings_a_new_seed_at_once() {
    let stage = a_minute_later().await;
    let old = stage.write();
    stage.plugin.face().key_id = "B".to_owned();
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!((stage.seconds_left(), stage.plugin.calls(Rpc::Encrypt)), (180, 2));
    assert_eq!(stage.server.write_key_id().as_deref(), Some("B"));
    assert!(stage.server.read(super::script::KEY, &old).await.unwrap().stale);
    assert!(stage.codes().is_empty());
}

#[tokio::test]
async fn a_bad_healthz_with_another_key_id_is_unhealthy_and_still_rotates() {
    let stage = a_minute_later().await;
    {
        let mut face = stage.plugin.face();
        face.key_id = "B".to_owned();
        face.healthz = "OK".to_owned();
    }
    assert!(stage.server.readyz().await.is_err());
    assert_eq!(stage.server.write_key_id().as_deref(), Some("B"));
    assert_eq!(stage.seconds_left(), 180);
    assert_eq!(stage.codes(), [FindingCode::HealthzNotOk]);
}

#[tokio::test]
async fn another_key_id_that_encrypt_cannot_use_leaves_the_old_state_to_run_down() {
    type Break = fn(&mut super::script::Face);
    let rows: [(Break, FindingCode); 8] = [
        (|f| f.encrypt_fails = Some(Code::Internal), FindingCode::EncryptFailedAfterNewKeyId),
        (|f| f.encrypt_key_id = Some("A".to_owned()), FindingCode::EncryptKeyIdMismatch),
        (|f| f.encrypt_key_id = Some(String::new()), FindingCode::KeyIdEmpty),
        (|f| f.encrypt_key_id = Some("k".repeat(1025)), FindingCode::KeyIdTooLong),
        (|f| f.ciphertext = Some(vec![]), FindingCode::CiphertextEmpty),
        (|f| f.ciphertext = Some(vec![0; 1025]), FindingCode::CiphertextTooLong),
        (|f| drop(f.annotations.insert("a.io/b".to_owned(), vec![])), FindingCode::AnnotationName),
        (|f| drop(f.annotations.insert("a.io".to_owned(), vec![0; 32_765])), FindingCode::AnnotationsTooLarge),
    ];
    for (break_it, code) in rows {
        let stage = a_minute_later().await;
        stage.plugin.face().key_id = "B".to_owned();
        break_it(&mut stage.plugin.face());
        assert!(stage.server.readyz().await.is_err(), "{code}");
        assert_eq!(stage.server.write_key_id().as_deref(), Some("A"), "{code}");
        assert_eq!((stage.seconds_left(), stage.plugin.calls(Rpc::Encrypt)), (120, 2), "{code}");
        assert_eq!(stage.codes(), [code]);
        stage.write();
        // Every try has a seed of its own.
        stage.clock.advance(S(3));
        assert!(stage.server.readyz().await.is_err(), "{code}");
        assert_eq!(stage.server.report().counts.seeds_generated, 3, "{code}");
        let seeds = stage.plugin.face().seeds.clone();
        assert!(seeds.windows(2).all(|w| w[0] != w[1] && w[0].len() == 32));
    }
}

#[tokio::test]
async fn limits_are_taken_to_their_last_byte() {
    let stage = Stage::prepared(|f| {
        f.ciphertext = Some(vec![0; 1024]);
        f.annotations.insert("a.io".to_owned(), vec![0; 32 * 1024 - 4]);
    });
    let stage = stage.await;
    assert!(stage.codes().is_empty());
    stage.write();
}

#[tokio::test]
async fn the_three_minutes_begin_before_encrypt() {
    let stage = a_minute_later().await;
    {
        let mut face = stage.plugin.face();
        face.key_id = "B".to_owned();
        face.takes.insert(Rpc::Encrypt, S(2));
    }
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!(stage.seconds_left(), 178);
}

#[tokio::test]
async fn errors_are_collected_and_none_stops_the_others() {
    let stage = Stage::prepared(|f| {
        f.version = "v1".to_owned();
        f.healthz = "OK".to_owned();
        f.encrypt_key_id = Some("B".to_owned());
    });
    let stage = stage.await;
    let why = stage.server.readyz().await.unwrap_err();
    assert_eq!(why.problems().len(), 3, "{why}");
    let mut codes = stage.codes();
    codes.sort_by_key(|c| c.label());
    assert_eq!(codes, [FindingCode::EncryptKeyIdMismatch, FindingCode::HealthzNotOk, FindingCode::VersionNotAccepted]);
}

#[tokio::test]
async fn a_version_that_is_not_accepted_still_rotates_and_is_not_pinned() {
    let stage = Stage::prepared(|f| f.version = "v3".to_owned()).await;
    stage.write();
    stage.plugin.face().version = "v2beta1".to_owned();
    stage.clock.advance(S(3));
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!(stage.codes(), [FindingCode::VersionNotAccepted]);
}

#[tokio::test]
async fn the_first_accepted_version_is_the_one_until_a_restart() {
    let stage = Stage::prepared(|f| f.version = "v2beta1".to_owned()).await;
    stage.plugin.face().version = "v2".to_owned();
    stage.clock.advance(S(20));
    let why = stage.server.readyz().await.unwrap_err().to_string();
    assert!(why.contains("should not change after the initial status response version v2beta1"), "{why}");
    assert_eq!((stage.codes(), stage.seconds_left()), (vec![FindingCode::VersionChanged], 180));
    stage.server.restart().await;
    assert!(stage.server.readyz().await.is_ok());
}

/// What a plugin answers that has just started, knows its last key_id and cannot reach its KMS.
#[tokio::test]
async fn a_plugin_that_says_it_is_not_well_may_fail_encrypt_at_load() {
    let stage = Stage::prepared(|f| {
        f.healthz = "starting".to_owned();
        f.encrypt_fails = Some(Code::Unavailable);
    });
    assert_eq!(stage.await.codes(), [FindingCode::HealthzNotOk]);
}

#[tokio::test]
async fn a_status_that_hangs_is_bounded_and_slow() {
    let stage = a_minute_later().await;
    stage.plugin.face().takes.insert(Rpc::Status, S(3600));
    let why = stage.server.readyz().await.unwrap_err().to_string();
    assert!(why.contains("DeadlineExceeded"), "{why}");
    assert_eq!((stage.seconds_left(), stage.codes()), (117, vec![FindingCode::StatusSlow]));
}
