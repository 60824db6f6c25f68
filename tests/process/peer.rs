//! `listen.allowUids` on the live socket: the kernel says who connects, and whoever is not on the list learns why.

use super::stranger;
use crate::support::site::{Running, Site};
use crate::support::skipped;
use crate::support::wire::{Call, DECRYPT, ENCRYPT, Wire};
use std::process::Output;

const PERMISSION_DENIED: i32 = 7;

/// A site whose socket every user can open, and the binary for the stranger.
async fn open_to_all(allow: &str) -> Option<(Site, Running, std::path::PathBuf)> {
    let mut site = Site::local();
    let binary = stranger::binary(&site)?;
    let socket = site.socket();
    site.listen(&format!("{{socket: {}, mode: '0666'{allow}}}", socket.display()));
    let running = site.spawn();
    running.until_log("a new data key is in use").await;
    Some((site, running, binary))
}

fn probe_as_stranger(site: &Site, binary: &std::path::Path) -> Output {
    let socket = site.socket();
    stranger::command(site, binary, &["probe", "--socket", socket.to_str().unwrap()]).output().unwrap()
}

#[tokio::test]
async fn by_default_another_user_is_refused_in_words_and_root_is_not() {
    let Some((site, running, binary)) = open_to_all("").await else {
        return skipped("by_default_another_user_is_refused_in_words_and_root_is_not", "needs root");
    };
    let refused = probe_as_stranger(&site, &binary);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(said.contains("PermissionDenied") && said.contains("listen.allowUids"), "{said}");
    running.until_log(&format!("uid={}", stranger::UID)).await;
    running.until_log("listen.allowUids").await;
    running.until_ok().await;
}

#[tokio::test]
async fn a_user_on_the_list_is_served_and_root_is_refused_when_he_is_not_on_it() {
    let Some((site, running, binary)) = open_to_all(&format!(", allowUids: [{}]", stranger::UID)).await else {
        return skipped("a_user_on_the_list_is_served_and_root_is_refused_when_he_is_not_on_it", "needs root");
    };
    let served = probe_as_stranger(&site, &binary);
    assert!(served.status.success(), "{}", String::from_utf8_lossy(&served.stderr));
    let refused = running.client().await.status().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(refused.message().contains("listen.allowUids"), "{refused:?}");
}

#[tokio::test]
async fn a_refused_peer_is_refused_in_every_rpc_before_its_message_is_read() {
    let mut site = Site::local();
    let nobody = rustix::process::geteuid().as_raw() + 4711;
    let socket = site.socket();
    site.listen(&format!("{{socket: {}, allowUids: [{nobody}]}}", socket.display()));
    let running = site.spawn();
    running.until_log("a new data key is in use").await;
    let wire = Wire::connect(&running.target).await;
    for path in [ENCRYPT, DECRYPT] {
        // Not protobuf: to find out, somebody would have to read it.
        let garbage = Call { path: path.to_owned(), ..Call::status().body(vec![0, 0, 0, 0, 1, 0xff]) };
        assert_eq!(wire.call(garbage).await.unwrap().code(), PERMISSION_DENIED, "{path}");
    }
    assert_eq!(wire.call(Call::status()).await.unwrap().code(), PERMISSION_DENIED);
}
