//! `kmsctl scan` on a real etcd, whose contents and counts are known (`support/etcd_store/objects.rs`).

mod command;
mod counted;
mod disturbed;
mod reached;

use crate::support::etcd_store::EtcdStore;
use crate::support::site::Site;
use crate::support::skipped;
use serde_json::Value;
use std::process::Output;

/// A site for commands, and an etcd in its directory; `None` is said and counted.
async fn etcd(test: &str) -> Option<(Site, EtcdStore)> {
    let site = Site::local();
    match EtcdStore::start(site.dir(), &[]).await {
        Ok(store) => Some((site, store)),
        Err(reason) => {
            skipped(test, &reason);
            None
        }
    }
}

/// Runs `kmsctl scan --endpoints URL …`.
fn scan(site: &Site, url: &str, more: &[&str]) -> Output {
    site.command(&[&["scan", "--endpoints", url], more].concat())
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", out(output), err(output)))
}

#[track_caller]
fn assert_exit(output: &Output, status: i32, parts: &[&str]) {
    let (out, err) = (out(output), err(output));
    assert_eq!(output.status.code(), Some(status), "{out}\n{err}");
    for part in parts {
        assert!(out.contains(part) || err.contains(part), "{part:?} is not in:\n{out}\n{err}");
    }
}
