//! A log collector that stops reading must not stop the plugin: the control plane would go down with it.

use crate::support::site::{BINARY, PATIENCE, Site, sealed, uid};
use kube_kms::client::kms::{KmsClient, Target};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[tokio::test]
async fn requests_are_served_while_nobody_reads_the_log() {
    let site = Site::local();
    let config = site.write_config();
    let mut command = site.process(BINARY, &["serve", "--config", config.to_str().unwrap()]);
    // A pipe holds 64 KiB, which is about 250 lines; nobody takes anything out of it.
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let mut client = loop {
        let connected = KmsClient::connect(Target::File(site.socket()), Duration::from_secs(3)).await;
        if let Ok(mut client) = connected
            && client.status().await.is_ok()
        {
            break client;
        }
        assert!(began.elapsed() < PATIENCE, "it never served");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let (seed, answer) = sealed(&mut client).await;
    for _ in 0..2000 {
        assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
