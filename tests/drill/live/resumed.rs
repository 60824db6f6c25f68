//! A drill that is killed goes on where it was.

use super::{Field, NEW, end, until_state};
use crate::support::fake_kms::FakeKms;
use crate::support::site::ALIAS;
use crate::support::skipped;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_drill_goes_on_where_it_was_and_is_not_begun_twice() {
    let Ok(field) = Field::new().await else { return skipped("drill run, killed", "no etcd") };
    let arguments = ["--create-objects", "3", "--yes", "seed,migrate"];
    let running = field.start(&arguments);
    field.rotate_when_asked(&running, &[0]).await;
    until_state(&field, "the rotation is seen", |state| !state["new"].is_null()).await;
    running.kill();
    let seeds = field.made();
    assert_eq!(seeds.len(), 3, "{seeds:?}");
    let second = end(field.start(&arguments)).await;
    assert_eq!(second.status, 5, "{}", second.log);
    assert!(second.log.contains("has not ended") && second.log.contains("--resume"), "{}", second.log);
    field.api.move_to(1, NEW);
    let again = [&arguments[..], &["--resume"]].concat();
    let ended = end(field.start(&again)).await;
    assert_eq!(ended.status, 0, "{}\n{}", ended.out, ended.log);
    assert!(!ended.log.contains("rotate the KEK now"), "what is done is not done again: {}", ended.log);
    assert_eq!(ended.report["steps"].as_array().unwrap().len(), 10);
    assert_eq!((ended.claim("2.1").0, ended.claim("7.3").0), ("held", "held"));
    assert!(field.made().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_passive_alternative_waits_for_three_minutes_and_the_rest() {
    let Ok(field) = Field::new().await else { return skipped("drill run, passive", "no etcd") };
    let arguments = ["--passive", "2m", "--yes", "migrate", "--wait", "2s"];
    let ended = field.drill(&arguments).await;
    assert_eq!(ended.status, 6, "{}", ended.log);
    let (verdict, detail) = ended.claim("4.4");
    assert!(verdict == "did not hold" && detail.ends_with("of 10m"), "{detail}");
    assert!(field.api.cluster().asked.is_empty());
    for (ago, status) in [(590, 6), (601, 0)] {
        let mut state: Value = serde_json::from_slice(&std::fs::read(field.state()).unwrap()).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        state["rotatedUnix"] = json!(now - ago);
        std::fs::write(field.state(), state.to_string()).unwrap();
        let again = [&arguments[..], &["--resume"]].concat();
        let ended = end(field.start(&again)).await;
        assert_eq!(ended.status, status, "{ago}: {}\n{}", ended.out, ended.log);
    }
    assert_eq!(field.api.cluster().asked.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_drill_does_not_rotate_twice() {
    let Ok(field) = Field::new().await else { return skipped("drill run, rotates once", "no etcd") };
    let kms = FakeKms::start();
    kms.create_key(ALIAS);
    let (arn, url) = (kms.key_arn(ALIAS), kms.url());
    let arguments =
        ["--rotate-kek", &arn, "--kms-endpoint", &url, "--create-objects", "2", "--yes", "seed,rotate,migrate"];
    let running = field.start(&arguments);
    tokio::task::block_in_place(|| {
        crate::drill::run::until("the KMS rotates", || kms.successful_calls("RotateKeyOnDemand") == 1);
    });
    // No API server has moved, so the drill cannot know that it was a success.
    running.signal(rustix::process::Signal::TERM);
    let ended = end(running).await;
    assert_eq!(ended.status, 1, "{}", ended.log);
    assert!(ended.log.contains("interrupted in step 3") && ended.log.contains("--resume goes on"), "{}", ended.log);
    let running = field.start(&[&arguments[..], &["--resume"]].concat());
    running.until_log("it is not asked again").await;
    [0, 1].iter().for_each(|at| field.api.move_to(*at, NEW));
    let ended = end(running).await;
    assert_eq!(ended.status, 0, "{}\n{}", ended.out, ended.log);
    assert_eq!(kms.calls("RotateKeyOnDemand"), 1);
}
