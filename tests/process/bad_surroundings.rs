//! What is a help and never a need: the HTTP port, the state file, and the memory of the last run.

use crate::support::site::{Running, Site, sealed, uid};
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
    assert!(!running.log().contains("serving /metrics"));
    drop(taken);
    assert_eq!(running.http("/readyz").await.0, 200);
}

#[tokio::test]
async fn without_http_there_is_no_port_and_it_serves() {
    let mut site = Site::local();
    site.set("http: {listen: none}");
    let running = site.spawn();
    serves(&running).await;
    assert!(!running.log().contains("serving /metrics"));
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
