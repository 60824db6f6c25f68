//! The log as a whole process writes it: every request is in it, and whoever reads it stops nothing.

use crate::support::site::{BINARY, PATIENCE, Site, sealed, seed, uid};
use kms_v2_client::kms::{KmsClient, Target};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A log collector that stops reading must not stop the plugin: the control plane would go down with it.
#[tokio::test]
async fn requests_are_served_while_nobody_reads_the_log_and_the_end_is_not_held_up() {
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
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let began = Instant::now();
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        assert!(began.elapsed() < PATIENCE, "it never ends");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_that_was_answered_is_in_the_log_once_the_process_has_ended() {
    let site = Site::local();
    let mut running = site.start().await;
    let mut uids = Vec::new();
    for burst in [1, 3, 40] {
        let calls = (0..burst).map(|_| async {
            let (mut client, uid) = (running.client().await, uid());
            let answer = client.encrypt(seed(), uid.clone()).await.unwrap();
            let (opened, again) = (client.decrypt(answer, format!("{uid}-d")).await, uid.clone());
            opened.unwrap();
            [uid, format!("{again}-d")]
        });
        uids.extend(futures_util::future::join_all(calls).await.into_iter().flatten());
    }
    running.signal(rustix::process::Signal::TERM);
    assert!(running.wait().await.success());
    let log = running.log();
    for uid in uids {
        assert_eq!(log.lines().filter(|line| line.contains(&format!(" uid={uid} "))).count(), 1, "{uid}\n{log}");
    }
}

/// Nobody waits in front of a quiet log for its next line: what has been answered is there when one looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_request_is_in_the_log_at_once() {
    let site = Site::local();
    let running = site.start().await;
    let mut client = running.client().await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (uid, began) = (uid(), Instant::now());
        client.encrypt(seed(), uid.clone()).await.unwrap();
        while !running.log().contains(&uid) {
            assert!(began.elapsed() < PATIENCE, "{}", running.log());
        }
    }
}
