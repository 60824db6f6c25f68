//! What the kernel says about the live process. SPEC: proc(5).

use super::stranger;
use crate::support::site::{Running, Site};
use crate::support::skipped;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn proc_file(running: &Running, name: &str) -> std::io::Result<String> {
    let bytes = std::fs::read(format!("/proc/{}/{name}", running.pid()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The words after the first that a line begins with this.
fn line(text: &str, beginning: &str) -> Vec<String> {
    let found = text.lines().find_map(|l| l.strip_prefix(beginning));
    found.unwrap_or_else(|| panic!("{beginning} in {text}")).split_whitespace().map(str::to_owned).collect()
}

/// KiB of the mappings that are locked and left out of dumps, anonymous ones only.
fn protected_kib(smaps: &str) -> u64 {
    let (mut total, mut size, mut anonymous) = (0, 0, false);
    for text in smaps.lines() {
        let words: Vec<_> = text.split_whitespace().collect();
        match words.as_slice() {
            [range, "rw-p", _, "00:00", "0"] if range.contains('-') => anonymous = true,
            [range, _, _, device, ..] if range.contains('-') && device.contains(':') => anonymous = false,
            ["Size:", kib, "kB"] => size = kib.parse().unwrap(),
            ["VmFlags:", flags @ ..] if anonymous && flags.contains(&"lo") && flags.contains(&"dd") => {
                assert!(flags.contains(&"dc"), "a fork would have it: {text}");
                total += size;
            }
            _ => {}
        }
    }
    total
}

#[tokio::test]
async fn no_core_no_new_privileges_a_narrow_umask_and_locked_memory() {
    // Without the sandbox, whose filters need no_new_privs and so would set it as well.
    let mut site = Site::local();
    site.set("harden: {seccomp: none, landlock: none}");
    let running = site.start().await;
    assert_eq!(line(&proc_file(&running, "limits").unwrap(), "Max core file size")[..2], ["0", "0"]);
    let status = proc_file(&running, "status").unwrap();
    assert_eq!(line(&status, "NoNewPrivs:"), ["1"]);
    assert_eq!(line(&status, "Umask:"), ["0077"]);
    assert!(line(&status, "VmLck:")[0].parse::<u64>().unwrap() > 0);
    // Every thread, and not only the first.
    for task in std::fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert_eq!(line(&status, "NoNewPrivs:"), ["1"]);
    }
}

#[tokio::test]
async fn the_data_keys_are_on_pages_that_are_locked_and_left_out_of_dumps() {
    let running = Site::local().start().await;
    let Ok(smaps) = proc_file(&running, "smaps") else {
        return skipped(
            "the_data_keys_are_on_pages_that_are_locked_and_left_out_of_dumps",
            "needs CAP_SYS_PTRACE: the process is not dumpable",
        );
    };
    let protected = protected_kib(&smaps);
    let told = running.metric("kube_kms_locked_memory_bytes").await;
    assert!(protected > 0);
    assert!((protected as f64 * 1024.0 - told).abs() < 1.0, "{protected} KiB in smaps, {told} bytes in the metric");
    assert!(running.metric("kube_kms_unlocked_memory_bytes").await < 1.0);
}

#[tokio::test]
async fn a_process_of_an_ordinary_user_is_not_dumpable_so_that_its_proc_files_are_roots() {
    let site = Site::local();
    let Some(binary) = stranger::binary(&site) else {
        return skipped(
            "a_process_of_an_ordinary_user_is_not_dumpable_so_that_its_proc_files_are_roots",
            "needs root to become an ordinary user",
        );
    };
    let config = site.write_config();
    stranger::give(site.dir());
    let running = site.run(&mut stranger::command(&site, &binary, &["serve", "--config", config.to_str().unwrap()]));
    running.until_ok().await;
    let proc_dir = format!("/proc/{}", running.pid());
    assert_eq!(line(&proc_file(&running, "status").unwrap(), "Uid:")[0], stranger::UID.to_string());
    for name in ["environ", "mem", "maps"] {
        let owner = std::fs::metadata(Path::new(&proc_dir).join(name)).unwrap().uid();
        assert_eq!(owner, 0, "{name} would be readable by every process of that user");
    }
    // What that means: another process of the same user sees nothing.
    let mut spying = stranger::command(&site, Path::new("cat"), &[&format!("{proc_dir}/environ")]);
    assert!(!spying.output().unwrap().status.success());
}

fn texts(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) => into.push(text.clone()),
        serde_json::Value::Array(items) => items.iter().for_each(|v| texts(v, into)),
        serde_json::Value::Object(map) => map.values().for_each(|v| texts(v, into)),
        _ => {}
    }
}

#[tokio::test]
async fn neither_the_environment_nor_the_command_line_nor_the_log_holds_key_material() {
    let mut site = Site::local();
    site.set("log: {level: trace}");
    let running = site.start().await;
    let keyring = serde_json::from_str(&std::fs::read_to_string(site.keyring()).unwrap()).unwrap();
    let mut found = Vec::new();
    texts(&keyring, &mut found);
    // 32 bytes take 43 characters of base64; uuids and times are shorter.
    found.retain(|text| text.len() >= 43);
    assert!(!found.is_empty(), "the file has keys");
    let state = std::fs::read_to_string(site.state_file()).unwrap();
    for place in [
        proc_file(&running, "environ").unwrap_or_default(),
        proc_file(&running, "cmdline").unwrap(),
        running.settled_log().await,
        running.out(),
        state,
    ] {
        assert!(found.iter().all(|key| !place.contains(key)));
    }
}

#[tokio::test]
async fn files_that_it_writes_are_for_its_user_only() {
    let site = Site::local();
    let running = site.start().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&site.state_file()), 0o600);
    assert_eq!(mode(site.state_file().parent().unwrap()), 0o700);
    assert_eq!(mode(&site.dir().join(".kms.sock.lock")) & 0o077, 0);
    assert_eq!(mode(site.keyring()), 0o600);
    assert!(running.stop().await.success());
}
