//! A new configuration in a running process, by SIGHUP or because the file changed: all of it or nothing.

use crate::support::site::{PATIENCE, Running, Site, sealed, uid};
use crate::support::wire::Wire;
use rustix::process::Signal;
use std::path::PathBuf;

const IN_FORCE: &str = "the new configuration is in force";
const STAYS: &str = "the old configuration stays";

/// Another keyring beside the first.
fn another_keyring(site: &Site) -> PathBuf {
    let path = site.dir().join("another.json");
    let made = site.command(&["keyring", "init", "--file", path.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

/// The configuration file that is in force, with these texts replaced.
fn edited(site: &Site, edits: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(site.dir().join("config.yaml")).unwrap();
    for (old, new) in edits {
        assert!(text.contains(old), "{old:?} is not in {text}");
        text = text.replace(old, new);
    }
    text
}

/// SIGHUP, and the log of what came of it.
async fn reload(running: &Running, outcome: &str) -> String {
    let before = running.settled_log().await;
    running.signal(Signal::HUP);
    running.until_log_again(outcome, &before).await;
    running.settled_log().await.split_off(before.len())
}

async fn moves_to_another_keyring(by_signal: bool) {
    let site = Site::local();
    let running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    let mut client = running.client().await;
    let (seed, old) = sealed(&mut client).await;

    let new = another_keyring(&site);
    let first = site.keyring().display().to_string();
    let moved = edited(&site, &[(&first, new.to_str().unwrap())]);
    site.write_raw_config(&format!("{moved}read: [{{local: {{keyring: {first}}}}}]\n"));
    if by_signal {
        reload(&running, IN_FORCE).await;
    } else {
        running.until_log(IN_FORCE).await;
        assert!(running.log().contains("the file changed"));
    }

    let (_, answer) = sealed(&mut client).await;
    let status = client.status().await.unwrap();
    assert_ne!(status.key_id, old.key_id, "another KEK has another key_id");
    assert_eq!((&*status.healthz, status.key_id), ("ok", answer.key_id.clone()));
    assert_eq!(client.decrypt(old.clone(), uid()).await.unwrap().plaintext, seed);
    wire.status_is_ok().await;

    // From an empty cache too.
    running.kill();
    let config = site.dir().join("config.yaml");
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let again = site.run(&mut site.process(crate::support::site::BINARY, &arguments));
    assert_eq!(again.until_ok().await, answer.key_id);
    assert_eq!(again.client().await.decrypt(old, uid()).await.unwrap().plaintext, seed);
}

#[tokio::test]
async fn sighup_moves_to_another_kek_and_what_the_old_one_sealed_still_opens() {
    moves_to_another_keyring(true).await;
}

#[tokio::test]
async fn a_changed_file_moves_to_another_kek_without_a_signal() {
    moves_to_another_keyring(false).await;
}

#[tokio::test]
async fn without_the_old_kek_under_read_what_it_sealed_is_refused_with_the_remedy() {
    let site = Site::local();
    let running = site.start().await;
    let mut client = running.client().await;
    let (_, old) = sealed(&mut client).await;
    let new = another_keyring(&site);
    let first = site.keyring().display().to_string();
    // A keyring that neither follows the old one nor comes with a new epoch is taken for a mistake (`keyring-replaced`).
    site.write_raw_config(&format!("{}epoch: 1\n", edited(&site, &[(&first, new.to_str().unwrap())])));
    reload(&running, IN_FORCE).await;
    let refused = client.decrypt(old, uid()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("kek-not-configured") && refused.message().contains("`read`"), "{refused:?}");
}

#[tokio::test]
async fn a_file_with_mistakes_changes_nothing_and_the_log_names_every_one_of_them() {
    let site = Site::local();
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    let good = edited(&site, &[]);

    for broken in ["listen: [", "", "- just\n- a list\n", "\u{0}"] {
        site.write_raw_config(broken);
        reload(&running, STAYS).await;
    }
    site.write_raw_config(&format!("{good}epoch: minus one\nprobe: {{interval: often}}\nlisten2: x\n"));
    let said = reload(&running, "listen2").await;
    let lines: Vec<_> = said.lines().filter(|l| l.contains(STAYS)).collect();
    for key in ["epoch", "probe.interval", "listen2"] {
        assert!(lines.iter().any(|l| l.contains(key)), "{key} in {lines:?}");
    }
    assert!(said.contains("did you mean `listen`"), "{said}");

    // A file that is gone may be in the middle of being replaced.
    std::fs::remove_file(site.dir().join("config.yaml")).unwrap();
    reload(&running, STAYS).await;

    assert!(!running.settled_log().await.contains(IN_FORCE));
    assert_eq!(client.status().await.unwrap().key_id, answer.key_id);
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    site.write_raw_config(&good);
    reload(&running, IN_FORCE).await;
}

#[tokio::test]
async fn a_kek_that_cannot_be_used_changes_nothing_and_the_log_says_why() {
    let mut site = Site::local();
    // Without it, the AWS KEK below would be refused before it is tried; tests/process/sandbox.rs.
    site.set("harden: {landlock: none}");
    site.set("probe: {interval: 1s, timeout: 500ms}");
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    let first = site.keyring().display().to_string();
    let kek = format!("{{local: {{keyring: {first}}}}}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = format!("{{aws: {{key: alias/away, region: eu-central-1, endpoint: 'http://{nobody}'}}}}");
    let good = edited(&site, &[]);

    let missing = site.dir().join("missing.json");
    for (new, why) in [
        (format!("{{local: {{keyring: {}}}}}", missing.display()), "there is no such file"),
        (closed, "kms-unreachable"),
    ] {
        site.write_raw_config(&good.replace(&kek, &new));
        let said = reload(&running, STAYS).await;
        let mut lines = said.lines().filter(|l| l.contains(STAYS));
        assert!(lines.any(|l| l.contains("the new KEK cannot be used") && l.contains(why)), "{why}: {said}");
    }
    assert!(!running.settled_log().await.contains(IN_FORCE));
    // Nothing of the failed attempts shows: probes, Status and a whole round still stand on the old KEK.
    let probes = "kube_kms_kek_calls_total{provider=\"local\",operation=\"wrap\",reason=\"none\"}";
    let before = running.metric(probes).await;
    assert!(before > 0.0);
    let began = std::time::Instant::now();
    while running.metric(probes).await < before + 2.0 {
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "probes go on\n{}", running.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let log = running.settled_log().await;
    assert!(!log.contains("the probe of the KEK failed"), "{log}");
    assert_eq!(running.until_ok().await, answer.key_id);
    let (_, newer) = sealed(&mut client).await;
    assert_eq!(newer.annotations, answer.annotations);
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
}

#[tokio::test]
async fn a_reload_that_waits_for_a_slow_kms_keeps_nobody_waiting() {
    let site = Site::aws();
    let running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    site.kms().fail_next("Encrypt", 1, crate::support::fake_kms::Failure::Hang);
    running.signal(Signal::HUP);
    site.kms().until(|kms| kms.hung_calls() == 1).await;
    let began = std::time::Instant::now();
    wire.status_is_ok().await;
    Wire::connect(&running.target).await.status_is_ok().await;
    let (seed, answer) = sealed(&mut running.client().await).await;
    assert_eq!(running.client().await.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
    site.kms().release_hung();
}

#[tokio::test]
async fn what_takes_a_restart_is_named_and_the_log_level_changes_at_once() {
    let mut site = Site::local();
    site.set("log: {level: info}");
    let running = site.start().await;
    let mut client = running.client().await;
    client.status().await.unwrap();
    assert!(!running.settled_log().await.contains("DEBUG"));

    let (socket, state) = (site.socket(), site.dir().join("state"));
    let there = state.with_file_name("elsewhere");
    let edits = [
        ("level: info", "level: debug, format: json"),
        (socket.to_str().unwrap(), "/nowhere/kms.sock, mode: '0660', allowUids: [7]"),
        (state.to_str().unwrap(), there.to_str().unwrap()),
        ("127.0.0.1:0", "127.0.0.1:1"),
    ];
    site.write_raw_config(&edited(&site, &edits));
    let said = reload(&running, IN_FORCE).await;
    for key in ["listen.socket", "listen.mode", "listen.allowUids", "stateDir", "http.listen", "log.format"] {
        let named = said.lines().any(|l| l.contains("takes a restart") && l.ends_with(&format!(" key={key}")));
        assert!(named, "{key} in {said}");
    }
    client.status().await.unwrap();
    running.until_log("DEBUG kube_kms::rpc").await;

    // It is the running process that counts: what is still pending is named again, what was taken back is not.
    site.write_raw_config(&edited(&site, &[("127.0.0.1:1", "127.0.0.1:0")]));
    let said = reload(&running, IN_FORCE).await;
    let named = |key: &str| said.lines().any(|l| l.contains("takes a restart") && l.ends_with(key));
    assert!(named(" key=listen.socket") && !named(" key=http.listen"), "{said}");

    site.write_raw_config(&edited(&site, &[("level: debug", "level: error")]));
    running.signal(Signal::HUP);
    // From some moment on only what fails is said: an error after a request that was served, and the log has the error alone.
    let began = std::time::Instant::now();
    loop {
        let before = running.log().len();
        let (_, mut damaged) = sealed(&mut client).await;
        client.status().await.unwrap();
        *damaged.ciphertext.last_mut().unwrap() ^= 1;
        let failing = uid();
        client.decrypt(damaged, failing.clone()).await.unwrap_err();
        running.until_log(&failing).await;
        let said = running.log().split_off(before);
        if said.lines().count() == 1 && said.contains("ERROR") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{said}");
    }
}
