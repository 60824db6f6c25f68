//! The rehearsal that needs no preparation.

use super::run::{command, drill, nothing_is_left, sandboxes};
use crate::support::site::Site;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_rehearsal_on_the_local_kek_holds_every_claim_of_ten_steps_and_leaves_nothing() {
    let site = Site::local();
    let drill = drill(&site, &["--objects", "60"]);
    assert_eq!((drill.status, drill.report["passed"].as_bool()), (0, Some(true)), "{}", drill.failed());
    drill.held_but(&[]);
    assert_eq!(drill.steps(), ["held"; 10]);
    let report = &drill.report;
    assert!(report["totals"]["held"].as_u64().unwrap() >= 40 && report["totals"]["notTried"] == 0);
    assert!(report["tookMs"].as_u64().unwrap() < 120_000, "{}", report["tookMs"]);
    assert_eq!(report["steps"][1]["numbers"]["objects"], 60);
    assert_eq!(report["steps"][6]["numbers"]["rewritten"], 59, "one is left behind on purpose");
    assert!(report["steps"][5]["numbers"]["failedRequests"].as_u64().unwrap() > 0, "a kill that nobody feels is none");
    let (old, new) = (report["oldKeyId"].as_str().unwrap(), report["newKeyId"].as_str().unwrap());
    assert_ne!(old, new);
    let timeline = report["timeline"].as_array().unwrap();
    assert!(timeline.iter().any(|seen| seen["health"].as_str().unwrap().contains("serving from memory")));
    assert!(timeline.iter().filter_map(|seen| seen["keyId"].as_str()).all(|id| id == old || id == new));
    for line in ["1/10 preflight  passed", "10/10 report     passed"] {
        assert!(drill.err.contains(line), "{}", drill.err);
    }
    for text in [&drill.out, &drill.err] {
        assert!(!text.contains("material"), "nothing of the keyring's content is in a report");
    }
}

#[test]
fn a_sandbox_that_is_kept_is_named_private_and_without_processes_and_the_report_is_in_the_file() {
    let site = Site::local();
    let file = site.dir().join("report.md");
    let arguments = ["--objects", "10", "--keep", "--output", "markdown", "--report", file.to_str().unwrap()];
    let output = command(&site, &arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert!(text.contains("| 10 | report | passed |") && text.contains("## It does not prove"), "{text}");
    assert!(text.contains("| 10.3 |") && text.contains("is kept"), "{text}");
    let kept: Vec<_> = std::fs::read_dir(sandboxes(&site)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(kept.len() == 1 && text.contains(kept[0].to_str().unwrap()), "{kept:?}");
    assert_eq!(std::fs::metadata(&kept[0]).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(kept[0].join("keyring.json").exists() && kept[0].join("a/log").exists());
    std::fs::remove_dir_all(&kept[0]).unwrap();
    nothing_is_left(&site);
}
