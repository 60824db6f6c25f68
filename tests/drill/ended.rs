//! A drill that ends before its end, and one that cannot begin.

use super::run::{command, nothing_is_left, processes_in, sandboxes, until};
use crate::support::site::Site;
use rustix::process::Signal;

#[test]
fn ctrl_c_ends_a_drill_in_the_middle_of_the_outage_and_leaves_no_process_and_no_directory() {
    let site = Site::local();
    let mut running = site.run(&mut command(&site, &["--objects", "10"]));
    until("step 8", || running.log().contains(" 8/10 retire"));
    until("the cut", || running.log().contains("moved away"));
    assert!(processes_in(&sandboxes(&site)).len() >= 2, "two plugins run");
    running.signal(Signal::INT);
    let status = tokio::runtime::Runtime::new().unwrap().block_on(running.wait());
    assert_eq!(status.code(), Some(1));
    let log = running.log();
    assert!(
        log.contains("error: the drill was interrupted\ncause: every process has ended, ") && log.contains("\nhint: ")
    );
    assert_eq!(running.out(), "", "no report of half a drill");
    nothing_is_left(&site);
}

#[test]
fn a_drill_that_cannot_begin_says_why_and_leaves_nothing() {
    let site = Site::aws();
    let (region, url) = (site.kms().region().to_owned(), site.kms().url());
    let at = ["--region", &region, "--endpoint", &url];
    for (arguments, status, says) in [
        (vec!["--objects", "9"], 2, "10 to 100000"),
        (vec!["--rotate-to", "x"], 2, "--kek"),
        (vec!["--report", "none/there.md"], 1, "the report cannot be written to none/there.md"),
        ([&["--kek", "alias/none"][..], &at].concat(), 5, "cause: kek-gone"),
        ([&["--kek", "no key"][..], &at].concat(), 2, "does not name a key"),
        (
            [&["--kek", &site.kms().key_arn("alias/prod"), "--rotate-to", "x"][..], &at].concat(),
            2,
            "--kek is not an alias",
        ),
        (
            vec!["--kek", "alias/x", "--region", &region, "--endpoint", "http://127.0.0.1:9"],
            4,
            "cause: kms-unreachable",
        ),
    ] {
        let output = command(&site, &arguments).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {err}");
        assert!(err.contains(says) && output.stdout.is_empty(), "{arguments:?}: {err}");
        assert!(status == 2 && !err.contains("cause:") || err.contains("\nhint: "), "{arguments:?}: {err}");
        nothing_is_left(&site);
    }
}
