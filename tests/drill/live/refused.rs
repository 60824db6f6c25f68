//! What a drill does not do.

use super::{Field, NEW, end};
use crate::support::skipped;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_api_server_stops_the_migration_and_is_named() {
    let Ok(field) = Field::new().await else { return skipped("drill run, lagging", "no etcd") };
    let arguments = ["--create-objects", "2", "--yes", "seed,migrate", "--wait", "4s"];
    let running = field.start(&arguments);
    field.rotate_when_asked(&running, &[0]).await;
    let ended = end(running).await;
    assert_eq!(ended.status, 6, "{}", ended.log);
    let (verdict, detail) = ended.claim("4.2");
    assert!(verdict == "did not hold" && detail.starts_with(&field.api.urls[1]), "{detail}");
    assert!(!detail.contains(&field.api.urls[0]), "the other one has moved: {detail}");
    assert_eq!(ended.claim("7.2").0, "not tried");
    assert!(ended.claim("7.2").1.contains("refused: not every API server"), "{}", ended.claim("7.2").1);
    assert!(field.api.cluster().asked.is_empty(), "nothing was migrated");
    field.api.move_to(1, NEW);
    let again = [&arguments[..], &["--resume"]].concat();
    let ended = end(field.start(&again)).await;
    assert_eq!(ended.status, 0, "{}\n{}", ended.out, ended.log);
    assert_eq!(ended.claim("4.2").0, "held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_has_moved_by_status_and_writes_under_the_old_key_stops_the_migration() {
    let Ok(field) = Field::new().await else { return skipped("drill run, writes", "no etcd") };
    // Without objects of its own the drill cannot make it write.
    let running = field.start(&["--yes", "migrate", "--wait", "3s"]);
    field.rotate_when_asked(&running, &[0, 1]).await;
    field.api.cluster().servers[0].writes = Some(NEW.to_owned());
    let ended = end(running).await;
    assert_eq!(ended.status, 6, "{}", ended.log);
    assert_eq!(ended.claim("4.2").0, "held");
    let (verdict, detail) = ended.claim("4.3");
    assert!(verdict == "did not hold" && detail.starts_with(&field.api.urls[1]), "{detail}");
    assert!(field.api.cluster().asked.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_terminal_and_without_yes_it_does_not_begin() {
    let Ok(field) = Field::new().await else { return skipped("drill run, yes", "no etcd") };
    let ended = end(field.start(&["--create-objects", "2", "--yes", "seed"])).await;
    assert_eq!(ended.status, 5, "{}", ended.log);
    assert!(ended.log.contains("nobody can be asked about migrate"), "{}", ended.log);
    assert!(field.made().is_empty() && !field.state().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_and_an_api_server_that_was_left_out_end_the_drill_before_it_makes_anything() {
    let Ok(field) = Field::new().await else { return skipped("drill run, rights", "no etcd") };
    field.api.cluster().forbidden = vec!["create storageversionmigrations".to_owned()];
    field.api.cluster().more_leases = vec!["apiserver-elsewhere".to_owned()];
    let ended = end(field.start(&["--create-objects", "2", "--yes", "seed,migrate"])).await;
    assert_eq!(ended.status, 6, "{}", ended.log);
    let (verdict, detail) = ended.claim("1.7");
    assert_eq!(
        (verdict, detail),
        ("did not hold", "not allowed: create storageversionmigrations.storagemigration.k8s.io")
    );
    let (verdict, detail) = ended.claim("1.4");
    assert_eq!((verdict, detail), ("did not hold", "not asked (--apiserver): apiserver-elsewhere"));
    assert!(field.made().is_empty());
    assert_eq!(ended.claim("2.1").0, "not tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_looks_and_changes_nothing() {
    let Ok(field) = Field::new().await else { return skipped("drill run, dry", "no etcd") };
    let revision = field.etcd.revision().await;
    let ended = end(field.start(&["--create-objects", "2", "--dry-run"])).await;
    assert_eq!(ended.status, 0, "{}\n{}", ended.out, ended.log);
    assert_eq!(ended.claim("1.5").1, format!("20 under {}", super::OLD));
    assert!(ended.claim("2.1").1.contains("it would create 2 secrets"), "{}", ended.claim("2.1").1);
    assert!(field.made().is_empty() && !field.state().exists());
    assert_eq!(field.etcd.revision().await, revision);
}
