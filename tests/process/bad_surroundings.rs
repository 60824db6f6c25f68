//! What is a help and never a need: the HTTP port, the state file, and the memory of the last run.

use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use std::net::TcpListener;

async fn serves(running: &Running) -> String {
    let key_id = running.until_ok().await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    key_id
}

#[tokio::test]
async fn with_the_http_port_taken_it_serves_says_so_and_takes_the_port_when_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut site = Site::local();
    site.set(&format!("http: {{listen: '{address}'}}"));
    let running = site.spawn();
    serves(&running).await;
    running.until_log("http.listen cannot be bound").await;
    assert!(!running.settled_log().await.contains("serving /metrics"));
    drop(taken);
    assert_eq!(running.http("/readyz").await.0, 200);
}

#[tokio::test]
async fn without_http_there_is_no_port_and_it_serves() {
    let mut site = Site::local();
    site.set("http: {listen: none}");
    let running = site.spawn();
    serves(&running).await;
    assert!(!running.settled_log().await.contains("serving /metrics"));
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_made_is_a_warning_and_it_serves() {
    let site = Site::local();
    // A file where the directory should be stops root too, where a mode would not.
    std::fs::write(site.dir().join("state"), "in the way").unwrap();
    let running = site.spawn();
    let key_id = serves(&running).await;
    running.until_log("the state file cannot be written").await;
    assert_eq!(std::fs::read_to_string(site.dir().join("state")).unwrap(), "in the way");
    assert!(running.stop().await.success());
    assert_eq!(serves(&site.spawn()).await, key_id, "the key_id is the KEK's, not the file's");
}

#[tokio::test]
async fn a_state_file_that_is_damaged_is_set_aside_with_a_warning_and_it_serves() {
    for damage in ["", "{", "{\"version\": 99}", "\u{0}\u{0}\u{0}", "[1, 2, 3]"] {
        let site = Site::local();
        let key_id = serves(&site.spawn()).await;
        std::fs::write(site.state_file(), damage).unwrap();
        let running = site.spawn();
        assert_eq!(serves(&running).await, key_id, "{damage:?}");
        running.until_log("WARN").await;
        running.until_log("state.json").await;
        let directory = site.state_file().parent().unwrap().to_owned();
        let kept = std::fs::read_dir(directory).unwrap().filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            path != site.state_file() && std::fs::read_to_string(path).is_ok_and(|text| text == damage)
        });
        assert_eq!(kept.count(), 1, "what was there is kept for whoever wants to look: {damage:?}");
        let text = std::fs::read_to_string(site.state_file()).unwrap();
        assert!(text.contains(&key_id), "and a good one is there again: {text}");
    }
}

/// The KEK rotates while the disk fails. Once the disk is back, a restart must not take the node back to the key_id before.
#[tokio::test]
async fn a_key_id_that_could_not_be_remembered_is_remembered_when_the_disk_is_back() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let old = running.until_ok().await;
    let (state, aside) = (site.dir().join("state"), site.dir().join("aside"));
    std::fs::rename(&state, &aside).unwrap();
    std::fs::write(&state, "in the way").unwrap();
    site.kms().rotate(ALIAS);
    let moved = running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != old)).await.unwrap().key_id;
    running.until_log("the state file cannot be written").await;
    std::fs::remove_file(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    running.until_log("the state file is written again").await;
    running.kill();
    // Without the KMS it says what it remembers.
    site.kms().stop();
    let running = site.spawn();
    let said = running.until_status(Result::is_ok).await.unwrap();
    assert_eq!(said.key_id, moved);
}

#[tokio::test]
async fn a_state_file_that_is_a_pipe_is_not_waited_for_and_one_that_others_can_write_is_not_obeyed() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::local();
    let running = site.spawn();
    let key_id = serves(&running).await;
    assert!(running.stop().await.success());
    std::fs::remove_file(site.state_file()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, site.state_file(), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let running = site.spawn();
    assert_eq!(serves(&running).await, key_id);
    running.until_log("it is not a regular file").await;
    assert!(running.stop().await.success());
    assert!(std::fs::read_to_string(site.state_file()).unwrap().contains(&key_id), "and a good one is there again");

    // Somebody says that this node has left the key_id of now.
    let directory = site.state_file().parent().unwrap().to_owned();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(site.state_file(), format!("{{\"version\":1,\"left\":[\"{key_id}\"]}}")).unwrap();
    let config = site.write_config();
    let check = site.command(&["check", "--config", config.to_str().unwrap()]);
    let remedy = format!("chmod go-w {}", directory.display());
    assert!(String::from_utf8_lossy(&check.stdout).contains(&remedy), "{check:?}");
    let running = site.spawn();
    assert_eq!(serves(&running).await, key_id);
    running.until_log("others can write to its directory").await;
    running.until_log(&remedy).await;
    assert!(running.stop().await.success());
    // The remedy, word for word.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let running = site.spawn();
    assert_eq!(serves(&running).await, key_id);
    assert!(!running.settled_log().await.contains("the state file cannot be used"), "{}", running.log());
}
