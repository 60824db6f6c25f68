//! Items 72 to 76: what a client meets when the plugin starts, is late, or was there before.

use crate::support::grpc_go::GrpcGo;
use crate::support::site::{Running, Site, sealed, seed, uid};
use crate::support::wire::{Call, ENCRYPT};
use kms_v2_api::v2::{EncryptRequest, EncryptResponse};
use kms_v2_client::kms::Target;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

fn encrypt() -> Call {
    Call::new(ENCRYPT, &EncryptRequest { plaintext: seed(), uid: uid() })
}

/// How long after now it answers a Status, whatever it says.
async fn answers(running: &Running) -> Duration {
    let began = Instant::now();
    running.until_log("listening").await;
    let _ = running.client().await.status().await;
    began.elapsed()
}

/// Or, where the machine is too busy for that, about as soon as a plugin that starts beside it with nothing wrong.
async fn answers_within_a_second(running: &Running) {
    let well = async { answers(&Site::aws().spawn()).await };
    let (took, well) = tokio::join!(answers(running), well);
    assert!(took < Duration::from_secs(1).max(well * 3), "{took:?}, beside {well:?}\n{}", running.log());
}

#[tokio::test]
async fn item_72_with_an_unreachable_kms_the_socket_answers_within_a_second_and_status_says_why() {
    let site = Site::aws();
    site.kms().stop();
    let running = site.spawn();
    answers_within_a_second(&running).await;
    // Item 24: never a key_id before: an error, not an empty key_id.
    let failed = running.until_status(|a| a.as_ref().is_err_and(|s| s.message().contains("kms-unreachable"))).await;
    assert_eq!(failed.unwrap_err().code(), tonic::Code::Unavailable);

    site.kms().start_again();
    let key_id = running.until_ok().await;
    let (_, answer) = sealed(&mut running.client().await).await;
    assert!(running.stop().await.success());

    // Item 20: the same with a key_id from last time: the RPC succeeds and has it.
    site.kms().stop();
    let running = site.spawn();
    answers_within_a_second(&running).await;
    let known =
        running.until_status(|a| a.as_ref().is_ok_and(|s| s.healthz.contains("kms-unreachable"))).await.unwrap();
    assert_eq!((known.version, known.key_id), ("v2".to_owned(), key_id));
    let mut client = running.client().await;
    assert_eq!(client.encrypt(seed(), uid()).await.unwrap_err().code(), tonic::Code::Unavailable);
    let began = Instant::now();
    let refused = client.decrypt(answer, uid()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "before its deadline: {:?}", began.elapsed());
}

#[tokio::test]
async fn item_73_a_stale_socket_file_without_an_owner_is_replaced() {
    let site = Site::local();
    drop(UnixListener::bind(site.socket()).unwrap());
    let stale = std::fs::metadata(site.socket()).unwrap().ino();
    let running = site.start().await;
    assert_ne!(std::fs::metadata(site.socket()).unwrap().ino(), stale);
    // And so is the one that a killed plugin leaves.
    running.kill();
    assert!(site.socket().exists());
    let again = site.start().await;
    assert!(again.stop().await.success());
    assert!(!site.socket().exists());
}

#[tokio::test]
async fn item_74_a_second_plugin_on_a_live_socket_refuses_and_the_first_is_unaffected() {
    let site = Site::local();
    let first = site.start().await;
    let mut client = first.client().await;
    let (seed, answer) = sealed(&mut client).await;
    let inode = std::fs::metadata(site.socket()).unwrap().ino();

    let mut second = site.spawn();
    assert_eq!(second.wait().await.code(), Some(5));
    let said = second.log();
    assert!(said.contains(&format!("in use by a running process (pid {})", first.pid())), "{said}");
    assert!(said.contains("--take-over"), "the hint: {said}");

    assert_eq!(std::fs::metadata(site.socket()).unwrap().ino(), inode);
    assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
    assert_eq!(first.client().await.decrypt(answer, uid()).await.unwrap().plaintext, seed);
}

#[tokio::test]
async fn item_74_a_second_plugin_on_a_live_abstract_socket_refuses_too() {
    let name = format!("kube-kms-test-{}", uuid::Uuid::new_v4().simple());
    let mut site = Site::local();
    site.listen(&format!("{{socket: '@{name}'}}"));
    let mut first = site.spawn();
    first.target = Target::Abstract(name);
    first.until_ok().await;
    for arguments in [&[][..], &["--take-over"]] {
        let mut second = site.spawn_with(arguments);
        assert_eq!(second.wait().await.code(), Some(5), "{}", second.log());
        assert!(second.log().contains(&format!("(pid {})", first.pid())), "{}", second.log());
    }
    first.until_ok().await;
}

#[tokio::test]
async fn item_75_a_client_that_starts_before_the_plugin_is_served_within_its_three_seconds() {
    let site = Site::local();
    let mut client = GrpcGo::start(&Target::File(site.socket()));
    let calling = tokio::spawn(async move { client.call(encrypt(), Duration::from_secs(3)).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let _running = site.spawn();
    let answer = calling.await.unwrap().expect("served within 3 s");
    assert!(!answer.decode::<EncryptResponse>().key_id.is_empty());
}

#[tokio::test]
async fn item_76_a_call_that_waits_while_the_plugin_is_away_for_3_s_succeeds() {
    let site = Site::local();
    let first = site.start().await;
    let mut client = GrpcGo::connect(&first.target).await;
    assert_eq!(client.call(encrypt(), Duration::from_secs(3)).await.unwrap().code(), 0);
    first.kill();
    client.lost().await;
    let calling = tokio::spawn(async move { (client.call(encrypt(), Duration::from_secs(30)).await, client) });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _again = site.spawn();
    let (answer, client) = calling.await.unwrap();
    assert!(!answer.expect("served in the end").decode::<EncryptResponse>().key_id.is_empty());
    assert_eq!(client.connections(), 2);
}
