//! Polling, the health cache, expiry and coasting: what happens when, over minutes and a day.

use super::script::Stage;
use crate::apiserver::{FindingCode, Happened};
use kms_v2_client::plugin::Rpc;
use std::time::Duration;
use tonic::Code;

const S: fn(u64) -> Duration = Duration::from_secs;

#[tokio::test]
async fn a_good_result_is_kept_for_20_seconds_and_a_bad_one_for_3() {
    let stage = Stage::new().await;
    stage.clock.advance(Duration::from_millis(19_999));
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!(stage.plugin.calls(Rpc::Status), 1);
    stage.clock.advance(Duration::from_millis(1));
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    assert!(stage.server.readyz().await.is_err());
    assert_eq!(stage.plugin.calls(Rpc::Status), 2);
    stage.plugin.face().status_fails = None;
    stage.clock.advance(Duration::from_millis(2_999));
    assert!(stage.server.readyz().await.is_err());
    assert_eq!(stage.plugin.calls(Rpc::Status), 2);
    stage.clock.advance(Duration::from_millis(1));
    assert!(stage.server.readyz().await.is_ok());
    assert_eq!(stage.plugin.calls(Rpc::Status), 3);
}

#[tokio::test]
async fn without_readiness_probes_it_polls_every_minute_and_every_10_seconds_when_it_fails() {
    let stage = Stage::new().await;
    stage.play(600, false).await;
    assert_eq!((stage.plugin.calls(Rpc::Status), stage.plugin.calls(Rpc::Encrypt)), (11, 1));
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    stage.play(120, false).await;
    assert_eq!(stage.plugin.calls(Rpc::Status), 11 + 7, "at 660 and then every ten seconds until 720");
}

#[tokio::test]
async fn with_a_readiness_probe_every_second_it_is_every_20_seconds_and_every_3() {
    let stage = Stage::new().await;
    stage.play(3600, true).await;
    assert_eq!(stage.plugin.calls(Rpc::Status), 181);
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    stage.play(20, true).await;
    let before = stage.plugin.calls(Rpc::Status);
    stage.play(60, true).await;
    assert_eq!(stage.plugin.calls(Rpc::Status) - before, 20);
}

#[tokio::test]
async fn writes_coast_for_three_minutes_reads_for_ever_and_all_comes_back() {
    let stage = Stage::new().await;
    let old = stage.write();
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    stage.play(180, true).await;
    stage.write();
    stage.clock.advance(Duration::from_nanos(1));
    let error = stage.server.write("/k", b"x").unwrap_err().to_string();
    // SPEC: the text that upstream's tests look for; sha256 of `A`.
    assert!(
        error.starts_with(
            "encryptedDEKSource with keyID hash \
             \"sha256:559aead08264d5795d3909718cdd05abd49572e84fe55590eef31a88a08fdffd\" expired at 180s"
        ),
        "{error}"
    );
    stage.play(3600, true).await;
    let key = super::script::KEY;
    assert_eq!(stage.server.read(key, &old).await.unwrap().plaintext.as_slice(), b"object");
    assert_eq!(stage.server.rewrite(key, &old).await.unwrap(), crate::apiserver::Rewrite::Unneeded);
    stage.plugin.face().status_fails = None;
    stage.play(4, true).await;
    stage.write();
    let report = stage.server.report();
    assert_eq!((report.counts.writes_failed, report.counts.write_state_expiries), (1, 1));
    assert_eq!(report.counts.rewrites_unneeded, 1);
    let happened: Vec<_> = report.timeline.iter().map(|e| &e.happened).collect();
    assert!(happened.contains(&&Happened::WritesStopped) && happened.contains(&&Happened::WritesRevived));
    assert_eq!(stage.codes(), [FindingCode::WriteStateExpired]);
    let stopped = report.timeline.iter().find(|e| e.happened == Happened::WritesStopped).unwrap();
    assert_eq!(stopped.at.0, 180_000_000_000, "the moment it expired, not the one it was noticed");
}

#[tokio::test]
async fn status_ahead_of_encrypt_costs_a_seed_every_try_and_stops_writes_after_three_minutes() {
    let stage = Stage::new().await;
    {
        let mut face = stage.plugin.face();
        face.key_id = "B".to_owned();
        face.encrypt_key_id = Some("A".to_owned());
    }
    stage.play(240, true).await;
    let report = stage.server.report();
    assert!(report.counts.mismatches > 60, "{:?}", report.counts);
    assert_eq!(report.counts.mismatches + 1, report.counts.seeds_generated);
    assert_eq!(stage.codes(), [FindingCode::EncryptKeyIdMismatch, FindingCode::WriteStateExpired]);
}

#[tokio::test]
async fn a_plugin_that_comes_a_minute_late_is_found_without_a_restart() {
    let stage = Stage::prepared(|f| f.status_fails = Some(Code::Unavailable)).await;
    let error = stage.server.write("/k", b"x").unwrap_err().to_string();
    assert_eq!(error, "got unexpected nil transformer");
    stage.play(58, false).await;
    stage.plugin.face().status_fails = None;
    stage.play(10, false).await;
    stage.write();
    assert!(stage.codes().is_empty());
}

/// A day, ten rotations and an outage of a minute every hour: the write state never expires.
#[tokio::test]
async fn a_day_with_rotations_and_short_outages_never_stops_writes() {
    let stage = Stage::new().await;
    for hour in 0..24_u32 {
        if hour % 2 == 0 && hour < 20 {
            stage.plugin.face().key_id = format!("key-{hour}");
        }
        stage.play(3540, true).await;
        stage.plugin.face().status_fails = Some(Code::Unavailable);
        stage.play(60, true).await;
        stage.plugin.face().status_fails = None;
        stage.write();
    }
    let report = stage.server.report();
    assert_eq!(report.counts.write_state_expiries, 0);
    assert_eq!((report.key_ids.len(), report.counts.seeds_generated), (11, 11));
    assert_eq!(report.counts.writes_failed, 0);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[tokio::test]
async fn a_restart_of_the_plugin_may_not_change_its_key_id() {
    let stage = Stage::new().await;
    stage.server.plugin_restarted();
    stage.play(60, false).await;
    assert!(stage.codes().is_empty());
    stage.server.plugin_restarted();
    stage.plugin.face().key_id = "started-at-17-03".to_owned();
    stage.play(60, false).await;
    assert_eq!(stage.codes(), [FindingCode::KeyIdUnstableOverRestart]);
    stage.clock.advance(S(1));
}
