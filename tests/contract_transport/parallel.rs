//! Items 10, 11 and 13: many streams, short deadlines, and a connection that the server closes.

use crate::support::fake_kms::Failure;
use crate::support::grpc_go::GrpcGo;
use crate::support::site::{PATIENCE, Site, sealed};
use crate::support::wire::{Call, GOAWAY, SETTINGS, Wire};
use futures_util::future::join_all;
use kms_v2_api::v2::{DecryptResponse, StatusResponse};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const DEADLINE_EXCEEDED: i32 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;

#[tokio::test]
async fn item_10_a_call_made_while_the_server_closes_the_connection_completes_on_the_old_or_the_new_one() {
    let site = Site::local();
    let old = site.start().await;
    let mut client = GrpcGo::connect(&old.target).await;
    let raw = Wire::connect(&old.target).await;
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("listening").await;
    let mut served = 0;
    old.signal(Signal::TERM);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) || client.connections() < 2 {
        assert!(began.elapsed() < PATIENCE, "after {served} calls there is no new connection\n{}", old.log());
        let answer = client.call(Call::status(), Duration::from_secs(3)).await.expect("no call fails");
        assert_eq!(answer.decode::<StatusResponse>().healthz, "ok");
        served += 1;
    }
    old.until("GOAWAY on the old connection", || raw.saw(GOAWAY)).await;
    assert!(served > 10 && client.connections() == 2, "{served} calls, {} connections", client.connections());
}

#[tokio::test]
async fn item_11_a_deadline_of_50_ms_against_a_kms_that_takes_1_s_is_answered_in_time_and_asks_the_kms_once() {
    let site = Site::aws();
    let first = site.start().await;
    let (seed, answer) = sealed(&mut first.client().await).await;
    assert!(first.stop().await.success());
    let running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    site.kms().set_latency("Decrypt", Duration::from_secs(1));
    let before = site.kms().calls("Decrypt");
    let mut refused = 0;
    // Until the KMS has answered. That the answer comes before the caller's own deadline is for `grpc::deadline` and for
    // `item_11_a_short_deadline_is_answered_before_it_and_the_unwrap_still_fills_the_keyring`: 5 ms are lost on a busy machine.
    loop {
        let said = wire.call(Call::decrypt(&answer).header("grpc-timeout", "50m")).await.unwrap();
        if said.code() == 0 {
            break;
        }
        // Not CANCELLED, which is what the gRPC library would say by itself at 50 ms.
        assert_eq!(said.code(), DEADLINE_EXCEEDED, "{}", said.message());
        refused += 1;
    }
    assert!(refused > 3, "{refused} callers did not wait for the KMS");
    assert_eq!(site.kms().calls("Decrypt") - before, 1, "{refused} callers, one unwrap");
    // And the unwrap that nobody waited for has filled the keyring.
    let opened = wire.call(Call::decrypt(&answer).header("grpc-timeout", "20S")).await.unwrap();
    assert!(opened.decode::<DecryptResponse>().plaintext == seed);
    assert_eq!(site.kms().calls("Decrypt") - before, 1);
}

#[tokio::test]
async fn item_13_200_streams_on_one_connection_are_in_flight_together_and_all_answered() {
    let site = Site::aws();
    let first = site.start().await;
    let (seed, answer) = sealed(&mut first.client().await).await;
    assert!(first.stop().await.success());
    let running = site.start().await;
    let wire = Wire::connect(&running.target).await;
    let settings = wire.frames().into_iter().find(|f| f.kind == SETTINGS).unwrap();
    let limit = settings
        .payload
        .chunks_exact(6)
        .find(|setting| u16::from_be_bytes([setting[0], setting[1]]) == MAX_CONCURRENT_STREAMS)
        .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()));
    assert!(limit.is_none_or(|limit| limit >= 200), "{limit:?}");

    site.kms().fail_next("Decrypt", 1, Failure::Hang);
    let mut pending = Vec::new();
    for _ in 0..200 {
        pending.push(wire.start(Call::decrypt(&answer).header("grpc-timeout", "25S")).await.unwrap());
    }
    let began = Instant::now();
    while running.metric("kube_kms_rpc_in_flight{rpc=\"Decrypt\"}").await < 200.0 {
        assert!(began.elapsed() < Duration::from_secs(5), "200 in flight\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // And other calls are not behind them.
    Wire::connect(&running.target).await.status_is_ok().await;
    site.kms().release_hung();
    for answer in join_all(pending.into_iter().map(|p| p.answer())).await {
        assert!(answer.unwrap().decode::<DecryptResponse>().plaintext == seed);
    }
}
