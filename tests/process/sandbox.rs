//! The live process is confined: by what the kernel says, by what it refuses, and by everything else still working.

use crate::support::site::{BINARY, Running, Site, sealed, uid};
use crate::support::skipped;
use rustix::process::Signal;
use std::process::Command;

fn status_lines(running: &Running, beginning: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        status.lines().find_map(|l| l.strip_prefix(beginning)).map(|l| l.trim().to_owned())
    };
    tasks.filter_map(of).collect()
}

/// Whether landlock is in force; where the kernel has none, the log says so.
async fn is_confined(running: &Running) -> bool {
    !running.settled_log().await.lines().any(|l| l.contains("not hardened") && l.contains("landlock"))
}

#[tokio::test]
async fn every_thread_has_the_system_call_filters_and_none_when_they_are_switched_off() {
    let running = Site::aws().start().await;
    let modes = status_lines(&running, "Seccomp:");
    assert!(modes.len() >= 2 && modes.iter().all(|mode| mode == "2"), "{modes:?}");
    let log = running.settled_log().await;
    assert!(!log.contains("not hardened"), "{log}");
    let mut site = Site::local();
    site.set("harden: {seccomp: none, landlock: none}");
    let running = site.start().await;
    assert!(status_lines(&running, "Seccomp_filters:").iter().all(|mode| mode == "0"));
}

#[tokio::test]
async fn a_file_outside_of_what_serving_needs_cannot_be_opened_by_the_live_process() {
    const NAME: &str = "process::sandbox::a_file_outside_of_what_serving_needs_cannot_be_opened_by_the_live_process";
    let elsewhere = tempfile::tempdir().unwrap();
    let site = Site::local();
    let running = site.start().await;
    if !is_confined(&running).await {
        return skipped(NAME, "this kernel has no landlock");
    }
    // The same content, which every process of this user may read, behind a link.
    let config = site.dir().join("config.yaml");
    let outside = elsewhere.path().join("config.yaml");
    std::fs::copy(&config, &outside).unwrap();
    let link = site.dir().join("link");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    std::fs::rename(&link, &config).unwrap();
    running.signal(Signal::HUP);
    running.until_log("cannot be read: Permission denied").await;
    running.until_ok().await;
    // Started anew it is told of the place, and needs it.
    drop(running);
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let running = site.run(&mut site.process(BINARY, &arguments));
    running.until_ok().await;
    running.signal(Signal::HUP);
    running.until_log("the new configuration is in force").await;
}

#[tokio::test]
async fn a_reload_that_needs_another_place_is_refused_with_the_remedy_and_a_take_over_is_the_remedy() {
    const NAME: &str = "a_reload_that_needs_another_place_is_refused_with_the_remedy_and_a_take_over_is_the_remedy";
    let elsewhere = tempfile::tempdir().unwrap();
    let site = Site::local();
    let running = site.start().await;
    if !is_confined(&running).await {
        return skipped(NAME, "this kernel has no landlock");
    }
    let (seed, old) = sealed(&mut running.client().await).await;
    let moved = elsewhere.path().join("keyring.json");
    std::fs::copy(site.keyring(), &moved).unwrap();
    let config = std::fs::read_to_string(site.dir().join("config.yaml")).unwrap();
    let config = site.write_raw_config(&config.replace(site.keyring().to_str().unwrap(), moved.to_str().unwrap()));
    running.signal(Signal::HUP);
    running.until_log("the old configuration stays").await;
    let log = running.log();
    let line = log.lines().find(|l| l.contains("the old configuration stays")).unwrap();
    assert!(line.contains(elsewhere.path().to_str().unwrap()) && line.contains("--take-over"), "{line}");
    running.until_ok().await;

    let arguments = ["serve", "--config", config.to_str().unwrap(), "--take-over"];
    let next = site.run(&mut site.process(BINARY, &arguments));
    next.until_log("listening").await;
    assert_eq!(next.client().await.decrypt(old, uid()).await.unwrap().plaintext, seed);
    assert!(running.stop().await.success());
    next.until_ok().await;
}

#[tokio::test]
async fn a_profile_that_runs_a_program_is_said_and_left_its_way() {
    let mut site = Site::aws();
    let profile = site.dir().join("profile");
    std::fs::write(&profile, "[profile other]\ncredential_process = /opt/never\n").unwrap();
    site.env("AWS_CONFIG_FILE", profile.to_str().unwrap());
    let running = site.start().await;
    let log = running.settled_log().await;
    assert!(log.lines().any(|l| l.contains("not hardened") && l.contains("credential_process")), "{log}");
    site.set("harden: {landlock: required, seccomp: required}");
    drop(running);
    let running = site.start().await;
    assert!(status_lines(&running, "Seccomp:").iter().all(|mode| mode == "2"), "required is required");
}

#[tokio::test]
async fn nothing_that_serving_calls_is_refused_by_its_own_filter() {
    const NAME: &str = "process::sandbox::nothing_that_serving_calls_is_refused_by_its_own_filter";
    if Command::new("strace").arg("--version").output().is_err() {
        return skipped(NAME, "needs strace");
    }
    let site = Site::aws();
    let config = site.write_config();
    let trace = site.dir().join("trace");
    let arguments = ["-f", "-qq", "-o", trace.to_str().unwrap(), BINARY, "serve", "--config", config.to_str().unwrap()];
    let mut running = site.run(&mut site.process("strace", &arguments));
    running.until_ok().await;
    let (seed, answer) = sealed(&mut running.client().await).await;
    assert_eq!(running.client().await.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    running.http("/metrics").await;
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid())).unwrap();
    let pid = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    running.until_log("the new configuration is in force").await;
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    running.wait().await;
    let trace = std::fs::read_to_string(&trace).unwrap();
    let (_, confined) = trace.split_once("seccomp(SECCOMP_SET_MODE_FILTER").expect("the filters are set");
    let refused: Vec<_> = confined
        .lines()
        .filter(|l| {
            ["= -1 EPERM", "= -1 ENOSYS", "= -1 EACCES"].iter().any(|e| l.contains(e)) && !l.contains("clone3(")
        })
        .collect();
    assert!(confined.lines().count() > 200 && confined.contains("fsync("), "the trace is there");
    assert!(refused.is_empty(), "{refused:#?}");
}
