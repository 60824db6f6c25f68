//! A changed configuration: everything anew, the old one in use until the new one is healthy, and polled for a while.

use super::script::{KEY, Script, Stage, kms};
use crate::apiserver::{Happened, Provider, TransformError};
use kms_v2_client::plugin::Rpc;
use std::time::Duration;
use tonic::Code;

#[tokio::test]
async fn a_healthy_one_is_in_use_at_once_with_a_new_seed_and_an_empty_memory() {
    let stage = Stage::new().await;
    let old = stage.write();
    stage.plugin.face().version = "v2beta1".to_owned();
    stage.server.reload(vec![kms("demo", &stage.plugin)]).await.unwrap();
    assert_eq!((stage.plugin.calls(Rpc::Encrypt), stage.server.cached_seeds()), (2, 0));
    assert!(!stage.server.read(KEY, &old).await.unwrap().stale);
    assert_eq!(stage.plugin.calls(Rpc::Decrypt), 1);
    assert!(stage.codes().is_empty(), "the version may change over a reload");
}

#[tokio::test]
async fn the_old_one_is_polled_for_twice_the_timeout_and_then_no_more() {
    let stage = Stage::new().await;
    stage.play(58, false).await;
    let new = Script::new(&stage.clock);
    stage.server.reload(vec![kms("demo", &new)]).await.unwrap();
    let before = stage.plugin.calls(Rpc::Status);
    stage.play(3, false).await;
    assert_eq!(stage.plugin.calls(Rpc::Status), before + 1, "its minute was over at 60 s");
    stage.play(600, false).await;
    assert_eq!(stage.plugin.calls(Rpc::Status), before + 1);
    assert_eq!(new.calls(Rpc::Status), 11);
}

#[tokio::test]
async fn an_unhealthy_one_may_become_healthy_within_ten_seconds() {
    let stage = Stage::new().await;
    let new = Script::new(&stage.clock);
    {
        let mut face = new.face();
        face.status_fails = Some(Code::Unavailable);
        face.key_id = "B".to_owned();
    }
    assert!(stage.server.reload(vec![kms("demo", &new)]).await.is_err());
    stage.play(5, false).await;
    assert_eq!(stage.server.write_key_id().as_deref(), Some("A"), "the old one goes on");
    new.face().status_fails = None;
    stage.play(4, false).await;
    assert_eq!(stage.server.write_key_id().as_deref(), Some("B"));
    assert_eq!(new.calls(Rpc::Status), 3, "at 0, 3 and 6 s");
}

#[tokio::test]
async fn one_that_stays_unhealthy_is_dropped_and_the_old_one_stays() {
    let stage = Stage::new().await;
    let new = Script::new(&stage.clock);
    new.face().status_fails = Some(Code::Unavailable);
    assert!(stage.server.reload(vec![kms("demo", &new)]).await.is_err());
    stage.play(300, true).await;
    stage.write();
    assert_eq!(new.calls(Rpc::Status), 4, "at 0, 3, 6 and 9 s");
    let happened: Vec<_> = stage.server.report().timeline.into_iter().map(|e| e.happened).collect();
    assert!(happened.contains(&Happened::ReloadRefused) && !happened.contains(&Happened::Reloaded));
    stage.clock.advance(Duration::from_secs(1));
}

#[tokio::test]
async fn from_identity_first_to_kms_first_plaintext_stays_readable_and_is_stale() {
    let stage = Stage::new().await;
    let sealed = stage.write();
    stage.server.reload(vec![Provider::Identity, kms("demo", &stage.plugin)]).await.unwrap();
    let plain = stage.write();
    assert_eq!(plain, b"object");
    assert!(!stage.server.read(KEY, &plain).await.unwrap().stale);
    assert!(stage.server.read(KEY, &sealed).await.unwrap().stale, "not by the first");
    assert_eq!((stage.server.write_key_id(), stage.server.write_expires()), (None, None));
    stage.server.reload(vec![kms("demo", &stage.plugin), Provider::Identity]).await.unwrap();
    assert!(stage.server.read(KEY, &plain).await.unwrap().stale);
    assert!(!stage.server.read(KEY, &sealed).await.unwrap().stale);
    stage.server.reload(vec![kms("demo", &stage.plugin)]).await.unwrap();
    assert!(matches!(stage.server.read(KEY, &plain).await.unwrap_err(), TransformError::NotStored(_)));
    stage.server.reload(vec![Provider::Identity]).await.unwrap();
    assert!(matches!(stage.server.read(KEY, &sealed).await.unwrap_err(), TransformError::OtherProvider(_)));
    stage.server.readyz().await.unwrap();
}

#[tokio::test]
async fn each_of_two_providers_has_a_seed_reads_its_own_and_makes_the_whole_unready() {
    let stage = Stage::new().await;
    let of_a = stage.write();
    let b = Script::new(&stage.clock);
    b.face().key_id = "B".to_owned();
    stage.server.reload(vec![kms("b", &b), kms("demo", &stage.plugin)]).await.unwrap();
    let of_b = stage.write();
    assert_eq!(stage.server.write_key_id().as_deref(), Some("B"));
    assert!(stage.server.read(KEY, &of_a).await.unwrap().stale);
    assert!(!stage.server.read(KEY, &of_b).await.unwrap().stale);
    // The one that only reads must wrap a seed as well, and its illness is the API server's.
    assert_eq!((stage.plugin.calls(Rpc::Encrypt), b.calls(Rpc::Encrypt), stage.server.cached_seeds()), (2, 1, 2));
    stage.plugin.face().status_fails = Some(Code::Unavailable);
    stage.play(30, true).await;
    assert_eq!(stage.server.readyz().await.unwrap_err().problems().len(), 1);
    assert!(!stage.codes().contains(&crate::apiserver::FindingCode::KeyIdFlipFlop));
    stage.write();
}
