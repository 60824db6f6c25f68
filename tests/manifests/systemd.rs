//! The units, by systemd's own word; and what the service is allowed is what the process needs.

use super::{rendered, sample};
use crate::support::site::{BINARY, Site};
use crate::support::skipped;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// `systemd-analyze security` says 0.0 to 10.0, less is better; see deploy/README.md.
const EXPOSURE_MAX: f64 = 1.5;

fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze").args(arguments).env("SYSTEMD_COLORS", "0").output().ok()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Some((output.status.success(), said))
}

/// The units of a site as files, with the binary that this test built.
fn units(site: &Site) -> Vec<PathBuf> {
    let units = [("systemd", "kube-kms.service"), ("systemd-socket", "kube-kms.socket")];
    let write = |(kind, name): (&str, &str)| {
        let path = site.dir().join(name);
        std::fs::write(&path, sample(&["--kind", kind]).replace("/usr/local/bin/kube-kms", BINARY)).unwrap();
        path
    };
    units.into_iter().map(write).collect()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let site = Site::local();
    let units = units(&site);
    let paths: Vec<&str> = units.iter().map(|p| p.to_str().unwrap()).collect();
    let Some((good, said)) = analyze(&[&["verify"][..], &paths].concat()) else {
        return skipped("systemd_finds_nothing_wrong_with_the_units", "needs systemd-analyze");
    };
    assert!(good && said.is_empty(), "{said}");
    // The judge can fail.
    let broken = std::fs::read_to_string(&units[0]).unwrap().replace("ProtectSystem=strict", "ProtectSystm=strict");
    std::fs::write(&units[0], broken).unwrap();
    assert!(analyze(&["verify", paths[0]]).unwrap().1.contains("ProtectSystm"));
}

#[test]
fn the_service_is_exposed_no_more_than_deploy_says() {
    let site = Site::local();
    let unit = units(&site).remove(0);
    let Some((_, said)) = analyze(&["security", "--offline=true", "--no-pager", unit.to_str().unwrap()]) else {
        return skipped("the_service_is_exposed_no_more_than_deploy_says", "needs systemd-analyze");
    };
    let line = said.lines().find(|l| l.contains("Overall exposure level"));
    let Some(line) = line else {
        return skipped("the_service_is_exposed_no_more_than_deploy_says", "this systemd-analyze has no --offline");
    };
    let score: f64 = line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(score <= EXPOSURE_MAX, "{line}");
}

/// System calls by name that a filter allows: a name, or `@group`.
fn expand(filter: &str, into: &mut BTreeSet<String>) {
    let Some(group) = filter.strip_prefix('@') else {
        into.insert(filter.to_owned());
        return;
    };
    let (_, said) = analyze(&["syscall-filter", &format!("@{group}"), "--no-pager"]).unwrap();
    for line in said.lines().skip(1).map(str::trim).filter(|l| !l.starts_with('#') && !l.is_empty()) {
        expand(line, into);
    }
}

#[tokio::test]
async fn the_service_may_call_what_the_process_calls() {
    const NAME: &str = "the_service_may_call_what_the_process_calls";
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !has("strace") || analyze(&["syscall-filter", "@default", "--no-pager"]).is_none_or(|(good, _)| !good) {
        return skipped(NAME, "needs strace and systemd-analyze");
    }
    let (mut allowed, mut denied) = (BTreeSet::new(), BTreeSet::new());
    for line in sample(&["--kind", "systemd"]).lines().filter_map(|l| l.strip_prefix("SystemCallFilter=")) {
        match line.strip_prefix('~') {
            Some(filter) => filter.split(' ').for_each(|f| expand(f, &mut denied)),
            None => line.split(' ').for_each(|f| expand(f, &mut allowed)),
        }
    }
    assert!(allowed.contains("accept4") && denied.contains("chroot") && !allowed.contains("ptrace"));
    let site = Site::aws();
    let config = site.write_config();
    let trace = site.dir().join("trace");
    let arguments = ["-f", "-qq", "-o", trace.to_str().unwrap(), BINARY, "serve", "--config", config.to_str().unwrap()];
    let mut running = site.run(&mut site.process("strace", &arguments));
    running.until_ok().await;
    let (seed, answer) = crate::support::site::sealed(&mut running.client().await).await;
    assert_eq!(running.client().await.decrypt(answer, crate::support::site::uid()).await.unwrap().plaintext, seed);
    running.http("/metrics").await;
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid())).unwrap();
    let pid = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    running.wait().await;
    let trace = std::fs::read_to_string(&trace).unwrap();
    let name = |line: &str| line.split_whitespace().nth(1)?.split_once('(').map(|(name, _)| name.to_owned());
    let used: BTreeSet<String> = trace.lines().filter_map(name).collect();
    assert!(used.contains("accept4") && used.contains("fsync") && used.len() > 40, "{used:?}");
    let missing: Vec<_> = used.iter().filter(|call| !allowed.contains(*call) || denied.contains(*call)).collect();
    assert!(missing.is_empty(), "the service would be refused {missing:?}");
}

#[test]
fn a_directory_outside_the_usual_places_is_made_writable_instead() {
    let mut site = Site::local();
    site.listen("{socket: /srv/kms/kms.sock, mode: '0660'}");
    let config = site.write_config();
    let unit = rendered(&config, &["--kind", "systemd"]);
    assert!(unit.contains("\nReadWritePaths=/srv/kms\n") && !unit.contains("RuntimeDirectory="), "{unit}");
    assert!(unit.contains(&format!("\nReadWritePaths={}\n", site.dir().join("state").display())));
    let socket = rendered(&config, &["--kind", "systemd-socket"]);
    assert!(socket.contains("\nListenStream=/srv/kms/kms.sock\n") && socket.contains("\nSocketMode=0660\n"));
    site.listen("{socket: '@kms'}");
    let socket = rendered(&site.write_config(), &["--kind", "systemd-socket"]);
    assert!(socket.contains("\nListenStream=@kms\n") && !socket.contains("SocketMode"), "{socket}");
    let root = rendered(&config, &["--kind", "systemd", "--user", "0"]);
    assert!(root.contains("\nUser=root\n"));
}
