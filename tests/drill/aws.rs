//! The rehearsal on a KEK behind an endpoint: the fake AWS KMS of the tests.

use super::run::{command, drill, nothing_is_left, until};
use crate::support::site::{ALIAS, Site};
use rustix::process::Signal;

#[test]
fn a_rehearsal_on_aws_rotates_on_demand_and_says_that_one_version_cannot_be_retired() {
    let site = Site::aws();
    let url = site.kms().url();
    let versions = site.kms().material_ids(ALIAS).len();
    let drill = drill(&site, &["--kek", ALIAS, "--region", site.kms().region(), "--endpoint", &url, "--objects", "40"]);
    assert_eq!(drill.status, 0, "{}\n{}", drill.failed(), drill.err);
    let retire = ["8.1", "8.2", "8.3", "8.4", "8.5", "8.6"];
    drill.held_but(&retire.map(|number| (number, "not tried")));
    assert!(drill.claim("8.1")["detail"].as_str().unwrap().contains("retires none of them"));
    assert!(drill.claim("3.1")["detail"].as_str().unwrap().contains("RotateKeyOnDemand of arn:aws:kms"));
    assert_eq!(site.kms().material_ids(ALIAS).len(), versions + 1);
    assert!(!drill.out.contains("not-a-secret") && !drill.err.contains("not-a-secret"));
}

#[test]
fn a_rehearsal_that_points_an_alias_at_another_key_disables_the_old_one_and_puts_both_back() {
    let site = Site::aws();
    let url = site.kms().url();
    let old = site.kms().key_arn(ALIAS);
    let new = site.kms().create_key("alias/next");
    let drill = drill(
        &site,
        &[
            "--kek",
            ALIAS,
            "--region",
            site.kms().region(),
            "--endpoint",
            &url,
            "--rotate-to",
            &new,
            "--disable-old",
            "--objects",
            "40",
        ],
    );
    assert_eq!(drill.status, 0, "{}\n{}", drill.failed(), drill.err);
    drill.held_but(&[]);
    assert_eq!(site.kms().key_arn(ALIAS), old, "the alias is where it was");
    assert_eq!((site.kms().successful_calls("DisableKey"), site.kms().successful_calls("EnableKey")), (1, 1));
    assert!(drill.claim("10.3")["detail"].as_str().unwrap().contains("UpdateAlias of alias/prod back"));
}

#[test]
fn an_operator_rotates_when_the_drill_may_not_and_an_interrupted_drill_leaves_nothing() {
    let site = Site::aws();
    site.kms().revoke("RotateKeyOnDemand");
    let url = site.kms().url();
    let arguments =
        ["--kek", ALIAS, "--region", site.kms().region(), "--endpoint", &url, "--objects", "10", "--wait", "40s"];
    let mut running = site.run(&mut command(&site, &arguments));
    until("the instruction", || running.log().contains("aws kms rotate-key-on-demand --key-id arn:aws:kms"));
    site.kms().rotate(ALIAS);
    until("convergence", || running.log().contains(" 4/10 converge"));
    let log = running.log();
    assert!(log.contains(" 3/10 rotate     passed") && log.contains(" 4/10 converge   passed"), "{log}");
    running.signal(Signal::TERM);
    let status = tokio::runtime::Runtime::new().unwrap().block_on(running.wait());
    assert_eq!(status.code(), Some(1));
    nothing_is_left(&site);
}

#[test]
fn a_rotation_that_is_refused_fails_its_step_with_what_to_do_and_leaves_the_later_ones_untried() {
    let site = Site::aws();
    site.kms().revoke("RotateKeyOnDemand");
    let url = site.kms().url();
    let drill = drill(&site, &["--kek", ALIAS, "--region", site.kms().region(), "--endpoint", &url, "--objects", "10"]);
    assert_eq!(drill.status, 6);
    let detail = drill.claim("3.1")["detail"].as_str().unwrap();
    assert!(detail.contains("kms:RotateKeyOnDemand: AccessDenied") && detail.contains("--wait 10m"), "{detail}");
    let mut steps = ["held"; 10];
    steps[2] = "did not hold";
    for untried in [4, 5, 7, 8] {
        steps[untried - 1] = "not tried";
    }
    assert_eq!(drill.steps(), steps, "what does not need a rotation was drilled all the same: {}", drill.failed());
}
