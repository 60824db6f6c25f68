//! `keyring`: a life of a keyring, and every way in which it is refused.

use crate::support::site::Site;
use crate::support::transcript::{Transcript, run};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

fn keyring(site: &Site, operation: &str, more: &[&str]) -> Transcript {
    let file = site.keyring().to_str().unwrap();
    run(site, &[&["keyring", operation, "--file", file], more].concat())
}

fn versions(site: &Site) -> Vec<String> {
    let listed = keyring(site, "list", &["--output", "json"]).json();
    listed["versions"].as_array().unwrap().iter().map(|v| v["version"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_keyring_from_its_making_to_a_retirement() {
    let site = Site::local();
    fs::remove_file(site.keyring()).unwrap();
    keyring(&site, "init", &[]).printed(
        "made DIR/keyring.json with one version, UUID
back it up: whoever loses this file loses everything sealed under it
",
    );
    keyring(&site, "list", &[]).printed(
        "KEK local:UUID
  version                               created               state     key_id
* UUID  TIME  enabled   KEY-ID
* wraps; all that are enabled unwrap
",
    );
    keyring(&site, "add", &[]).printed(
        "added version UUID; nothing uses it yet
when every node has this file: kube-kms keyring promote --file DIR/keyring.json UUID
",
    );
    let all = versions(&site);
    let (old, new) = (all[0].as_str(), all[1].as_str());
    keyring(&site, "promote", &[new]).printed(
        "version UUID wraps from now on; UUID still unwraps
running plugins report the new key_id within two probes
",
    );
    // By the first digits, as a person types it.
    let digits = (4..36).map(|n| &old[..n]).find(|p| !new.starts_with(p)).unwrap();
    keyring(&site, "retire", &[digits])
        .printed("version UUID does not unwrap any more; its key is kept, `reinstate` undoes this\n");
    keyring(&site, "list", &[]).printed(
        "KEK local:UUID
  version                               created               state     key_id
  UUID  TIME  retired   KEY-ID
* UUID  TIME  enabled   KEY-ID
* wraps; all that are enabled unwrap
",
    );
    let refused = |operation, version: &str, cause: &str, hint: &str| {
        let expected = format!("error: the keyring was not changed: DIR/keyring.json\ncause: {cause}\nhint: {hint}\n");
        keyring(&site, operation, &[version]).failed(5, &expected);
    };
    refused("promote", old, "version UUID is retired", "undo the retirement first: `kube-kms keyring reinstate UUID`");
    refused("promote", new, "version UUID is the current one already", "there is nothing to do");
    refused("retire", old, "version UUID is retired already", "there is nothing to do");
    refused(
        "retire",
        new,
        "version UUID is the current one",
        "promote another version first; `kube-kms keyring add` makes one",
    );
    keyring(&site, "reinstate", &[old]).printed("version UUID unwraps again\n");
    refused("reinstate", old, "version UUID is not retired", "to make it current, use `kube-kms keyring promote`");
}

#[test]
fn every_change_as_json_says_what_was_done() {
    let site = Site::local();
    fs::remove_file(site.keyring()).unwrap();
    let made = keyring(&site, "init", &["--output", "json"]).json();
    assert_eq!(made["done"], "init");
    let (first, ring) = (made["version"].as_str().unwrap(), made["keyring"].as_str().unwrap());
    let added = keyring(&site, "add", &["--output", "json"]).json();
    let second = added["version"].as_str().unwrap();
    assert_eq!(added, serde_json::json!({"done": "add", "file": site.keyring(), "version": second}));
    for (operation, version) in [("promote", second), ("retire", first), ("reinstate", first)] {
        let done = keyring(&site, operation, &[version, "--output", "json"]).json();
        assert_eq!(done, serde_json::json!({"done": operation, "file": site.keyring(), "version": version}));
    }
    let listed = keyring(&site, "list", &["--output", "json"]).json();
    assert_eq!(listed["kek"], format!("local:{ring}"));
    let current: Vec<bool> = listed["versions"].as_array().unwrap().iter().map(|v| v["current"] == true).collect();
    assert_eq!(current, [false, true]);
    // The epoch goes into every key_id.
    let other = keyring(&site, "list", &["--output", "json", "--epoch", "1"]).json();
    assert_ne!(other["versions"][0]["keyId"], listed["versions"][0]["keyId"]);
}

#[test]
fn init_never_overwrites() {
    let site = Site::local();
    let before = fs::read(site.keyring()).unwrap();
    keyring(&site, "init", &[]).failed(
        5,
        "error: the keyring was not made: DIR/keyring.json
cause: there is already something at that path
hint: use the keyring at DIR/keyring.json, or name another path; nothing is ever overwritten
",
    );
    assert_eq!(fs::read(site.keyring()).unwrap(), before);
    // Nor what is not a keyring.
    for name in ["empty", "directory"] {
        let path = site.dir().join(name);
        if name == "empty" {
            fs::write(&path, "").unwrap();
        } else {
            fs::create_dir(&path).unwrap();
        }
        let refused = run(&site, &["keyring", "init", "--file", path.to_str().unwrap()]);
        assert_eq!(refused.status, 5, "{}", refused.err);
    }
}

#[test]
fn a_version_that_is_not_named_well_is_2() {
    let site = Site::local();
    for (name, cause) in [
        ("zzzz", "a version is named by its uuid, or by its first 4 or more hex digits"),
        ("ab", "a version is named by its uuid, or by its first 4 or more hex digits"),
        ("00000000", "it has no such version"),
    ] {
        for operation in ["promote", "retire", "reinstate"] {
            keyring(&site, operation, &[name]).failed(
                2,
                &format!(
                    "error: the keyring was not changed: DIR/keyring.json\ncause: {cause}\nhint: see the versions with \
                     `kube-kms keyring list`\n"
                ),
            );
        }
    }
    let version = versions(&site).remove(0);
    let twin = format!("{}-0000-4000-8000-000000000001", &version[..8]);
    let text = fs::read_to_string(site.keyring()).unwrap();
    let line = text.lines().find(|l| l.contains("material")).unwrap();
    let mut second = line.replace(&version, &twin);
    let at = second.find("\"material\":\"").unwrap() + "\"material\":\"".len();
    let letter = if &second[at..=at] == "A" { "B" } else { "A" };
    second.replace_range(at..=at, letter);
    fs::write(site.keyring(), text.replace(line, &format!("{line},\n{second}"))).unwrap();
    keyring(&site, "promote", &[&version[..8]]).failed(
        2,
        "error: the keyring was not changed: DIR/keyring.json
cause: 2 of its versions begin with those digits
hint: give more digits; see `kube-kms keyring list`
",
    );
}

#[test]
fn a_file_that_is_not_safe_or_not_a_keyring_is_refused_by_every_operation() {
    let site = Site::local();
    let good = fs::read_to_string(site.keyring()).unwrap();
    let version = versions(&site).remove(0);
    let refuse = |what: &str, status: i32, part: &str| {
        for operation in ["list", "add", "promote", "retire", "reinstate"] {
            let more: &[&str] = if ["list", "add"].contains(&operation) { &[] } else { &[&version] };
            let answer = keyring(&site, operation, more);
            assert!(answer.status == status && answer.err.contains(part), "{what}, {operation}: {answer:?}");
            assert!(!site.dir().join("keyring.json.lock").exists(), "{what}, {operation}: a lock was left behind");
        }
    };
    for mode in [0o644, 0o640, 0o604, 0o660] {
        fs::set_permissions(site.keyring(), fs::Permissions::from_mode(mode)).unwrap();
        refuse(
            "open to others",
            5,
            &format!(
                "cause: its mode is {mode:04o}, so that others than its owner can use it\nhint: chmod 600 DIR/keyring.json"
            ),
        );
    }
    fs::set_permissions(site.keyring(), fs::Permissions::from_mode(0o600)).unwrap();
    for (what, content, part) in [
        ("empty", String::new(), "cause: it is empty\n"),
        ("truncated", good[..good.len() / 2].to_owned(), "cause: it ends too early, at line "),
        ("newer", good.replace("\"version\":1", "\"version\":2"), "format version 2, and this one reads version 1"),
        ("not JSON", "keys: yes".to_owned(), "cause: it is not JSON, at line 1"),
        ("another file", "{\"format\":\"x\",\"version\":1}".to_owned(), "cause: it is not a kube-kms keyring"),
        ("a field too many", good.replacen("\"current\"", "\"x\":1,\"current\"", 1), "field that is unknown"),
    ] {
        fs::write(site.keyring(), content).unwrap();
        refuse(what, 5, part);
    }
    fs::remove_file(site.keyring()).unwrap();
    refuse(
        "missing",
        4,
        "cause: there is no such file\nhint: mount or restore the keyring at DIR/keyring.json; only where",
    );
    fs::create_dir(site.keyring()).unwrap();
    refuse("a directory", 5, "cause: it is not a regular file");
    fs::remove_dir(site.keyring()).unwrap();
    fs::write(site.dir().join("real"), &good).unwrap();
    std::os::unix::fs::symlink(site.dir().join("real"), site.keyring()).unwrap();
    refuse("a link", 5, "cause: it is a symbolic link");
}

#[test]
fn a_keyring_that_another_process_is_changing_is_left_alone() {
    let site = Site::local();
    let before = fs::read(site.keyring()).unwrap();
    let lock = fs::File::create(site.dir().join("keyring.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    keyring(&site, "add", &[]).failed(
        5,
        "error: the keyring was not changed: DIR/keyring.json
cause: it is being changed: its lock is held by another process
hint: wait for the other `kube-kms keyring` command to end, then try again
",
    );
    assert_eq!(fs::read(site.keyring()).unwrap(), before);
    assert_eq!(keyring(&site, "list", &[]).status, 0, "reading needs no lock");
    drop(lock);
    assert_eq!(keyring(&site, "add", &[]).status, 0);
}
