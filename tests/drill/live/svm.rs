//! Migration by StorageVersionMigration, in each of its versions, and what its controller can do wrong.

use super::{BEFORE, Field, NEW, OLD};
use crate::support::fake_api::Controller;
use crate::support::skipped;
use serde_json::json;

/// Everything but what these API servers and this plan have not.
const HELD: [&str; 23] = [
    "1.2", "1.3", "1.4", "1.5", "1.7", "2.1", "2.2", "2.3", "3.1", "3.2", "4.2", "4.3", "4.5", "5.1", "5.2", "7.1",
    "7.2", "7.3", "8.1", "8.2", "8.3", "10.1", "10.2",
];

async fn with_version(test: &str, version: &'static str) -> Option<Field> {
    let field = match Field::new().await {
        Ok(field) => field,
        Err(reason) => {
            skipped(test, &reason);
            return None;
        }
    };
    field.api.cluster().served = vec![version];
    let retired = field.site.dir().join("retired");
    let command = format!("touch {}", retired.display());
    let ended =
        field.drill(&["--create-objects", "4", "--yes", "seed,migrate,retire", "--retire-command", &command]).await;
    assert_eq!(ended.status, 0, "{}\n{}", ended.out, ended.log);
    ended.held(&HELD);
    assert!(retired.exists(), "the command of the operator's ran");
    assert_eq!(field.made(), Vec::<String>::new(), "nothing of the drill is left");
    assert_eq!(field.etcd.count(b"/registry/").await, u64::try_from(BEFORE).unwrap());
    // kube-apiserver tells hashes only; what they are of, etcd knows.
    assert_eq!((&ended.report["oldKeyId"], &ended.report["newKeyId"]), (&json!(OLD), &json!(NEW)));
    Some(field)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_walked_with_migrations_of_v1() {
    let Some(field) = with_version("drill run, v1", "v1").await else { return };
    let asked = field.api.cluster().asked.clone();
    assert_eq!(asked.len(), 1, "one for each resource");
    assert_eq!(asked[0]["apiVersion"], "storagemigration.k8s.io/v1");
    assert_eq!(asked[0]["spec"], json!({"resource": {"group": "", "resource": "secrets"}}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_walked_with_migrations_of_v1beta1() {
    let Some(field) = with_version("drill run, v1beta1", "v1beta1").await else { return };
    assert_eq!(field.api.cluster().asked[0]["spec"], json!({"resource": {"group": "", "resource": "secrets"}}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_walked_with_migrations_of_v1alpha1() {
    let Some(field) = with_version("drill run, v1alpha1", "v1alpha1").await else { return };
    let of = json!({"resource": {"group": "", "version": "v1", "resource": "secrets"}});
    assert_eq!(field.api.cluster().asked[0]["spec"], of);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_fails_is_begun_anew_by_a_resumed_drill() {
    let Ok(field) = Field::new().await else { return skipped("drill run, failed", "no etcd") };
    field.api.cluster().controller = Controller::Fails;
    let ended = field.drill(&["--create-objects", "2", "--yes", "seed,migrate"]).await;
    assert_eq!(ended.status, 6, "{}", ended.log);
    let (verdict, detail) = ended.claim("7.2");
    assert_eq!((verdict, detail), ("did not hold", "secrets: Failed Test so it is"));
    assert_eq!((ended.claim("7.3").0, ended.claim("8.1").0), ("not tried", "not tried"));
    field.api.cluster().controller = Controller::Succeeds;
    let ended = super::end(field.start(&["--create-objects", "2", "--yes", "seed,migrate", "--resume"])).await;
    assert_eq!(ended.status, 0, "{}\n{}", ended.out, ended.log);
    assert_eq!(field.made(), Vec::<String>::new());
    assert_eq!(field.api.cluster().asked.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_succeeds_and_leaves_objects_is_found_out_by_the_scan() {
    let Ok(field) = Field::new().await else { return skipped("drill run, lies", "no etcd") };
    field.api.cluster().controller = Controller::Lies;
    let ended = field.drill(&["--create-objects", "2", "--yes", "seed,migrate"]).await;
    assert_eq!(ended.status, 6);
    assert_eq!(ended.claim("7.2").0, "held");
    let (verdict, detail) = ended.claim("7.3");
    assert!(verdict == "did not hold" && detail.contains("22 of secrets are still under"), "{detail}");
    assert_eq!(ended.claim("8.1").0, "not tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_hangs_ends_the_wait_and_an_abort_says_that_it_still_runs() {
    let Ok(field) = Field::new().await else { return skipped("drill run, hangs", "no etcd") };
    field.api.cluster().controller = Controller::Hangs;
    let ended = field.drill(&["--create-objects", "2", "--yes", "seed,migrate", "--wait", "4s"]).await;
    assert_eq!(ended.status, 6);
    assert!(ended.claim("7.2").1.contains("neither done nor failed after 4s: Running"), "{}", ended.claim("7.2").1);
    let ended = super::end(field.start(&["--create-objects", "2", "--abort", "--yes", "seed,migrate"])).await;
    assert_eq!(ended.status, 0, "{}", ended.log);
    for part in ["still running", "under the old key", "of secrets", "stays: a key that was left is not gone back to"] {
        assert!(ended.out.contains(part), "{part}\n{}", ended.out);
    }
    let made = field.made();
    assert!(made.len() == 1 && made[0].contains("storageversionmigrations"), "its own objects are gone: {made:?}");
    let again = super::end(field.start(&["--resume", "--yes", "migrate"])).await;
    assert_eq!(again.status, 5, "an aborted drill is not resumed: {}", again.log);
    assert!(again.log.contains("the drill has ended: it was aborted"), "{}", again.log);
}
