//! docs/conformance.md, items 9 and 77: what takes minutes of real time, in one test so that all of it overlaps.
//!
//! The clients reconnect on grpc-go's schedule (`support/grpc_go.rs`). The figures are printed: with `--nocapture` this
//! test is the measurement that the runbook cites.

use crate::support::grpc_go::GrpcGo;
use crate::support::site::{BINARY, Running, Site};
use crate::support::wire::{Call, GOAWAY, Wire};
use command_fds::{CommandFdExt, FdMapping};
use kms_v2_api::v2::StatusResponse;
use kms_v2_client::kms::Target;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// Within which a client must be back once the plugin serves, when somebody kept the socket.
const SOON: Duration = Duration::from_secs(15);

/// A plugin on a socket that systemd owns.
fn activated(site: &Site, listener: &UnixListener) -> Running {
    let config = site.write_config();
    // systemd names the process that the socket is meant for; a shell is the way to know it before exec.
    let script = "LISTEN_PID=$$ exec \"$0\" serve --config \"$1\"";
    let mut command = site.process("sh", &["-c", script, BINARY, config.to_str().unwrap()]);
    command.env("LISTEN_FDS", "1");
    let parent_fd: OwnedFd = listener.try_clone().unwrap().into();
    command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).unwrap();
    site.run(&mut command)
}

async fn is_served(client: &mut GrpcGo, patience: Duration) -> Result<(), String> {
    let answer = client.call(Call::status(), patience).await?;
    if answer.code() != 0 {
        return Err(answer.message());
    }
    assert_eq!(answer.decode::<StatusResponse>().version, "v2");
    Ok(())
}

/// How long after the plugin serves again the client is served, the socket being kept by systemd meanwhile.
async fn with_the_socket_kept(outage: Duration) -> Duration {
    let site = Site::local();
    let listener = UnixListener::bind(site.socket()).unwrap();
    let first = activated(&site, &listener);
    first.until_ok().await;
    let mut client = GrpcGo::connect(&first.target).await;
    is_served(&mut client, Duration::from_secs(3)).await.unwrap();

    assert!(first.stop().await.success());
    assert!(site.socket().exists(), "systemd's socket stays");
    tokio::time::sleep(outage).await;
    let again = activated(&site, &listener);
    again.until_ok().await;
    let serves = Instant::now();
    is_served(&mut client, SOON * 2).await.unwrap();
    serves.elapsed()
}

/// The same when nobody keeps it: kube-apiserver's backoff decides. `patience` is what the schedule allows at most.
async fn with_the_socket_gone(outage: Duration, patience: Duration) -> Duration {
    let site = Site::local();
    let first = site.start().await;
    let mut client = GrpcGo::connect(&first.target).await;
    assert!(first.stop().await.success());
    tokio::time::sleep(outage).await;
    let _again = site.start().await;
    let serves = Instant::now();
    is_served(&mut client, patience).await.unwrap();
    serves.elapsed()
}

/// A successor takes the socket over, and then the old process ends: how long a client of the old one is unserved.
async fn with_a_take_over() -> Duration {
    let site = Site::local();
    let old = site.start().await;
    let mut client = GrpcGo::connect(&old.target).await;
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("listening").await;
    assert!(old.stop().await.success());
    let gone = Instant::now();
    is_served(&mut client, SOON).await.unwrap();
    gone.elapsed()
}

/// Item 9: longer than kube-apiserver's poll of 60 s.
async fn idle_for_70_seconds() {
    let running = Site::local().start().await;
    let wire = Wire::connect(&running.target).await;
    wire.status_is_ok().await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert!(wire.is_open() && !wire.saw(GOAWAY), "the server closed an idle connection");
    wire.status_is_ok().await;
}

#[tokio::test]
async fn items_09_and_77_after_outages_of_10_60_and_120_s_a_client_is_back_within_15_s_and_idling_costs_nothing() {
    let seconds = Duration::from_secs;
    let (kept_10, kept_60, kept_120, gone_10, gone_60, taken_over, ()) = tokio::join!(
        with_the_socket_kept(seconds(10)),
        with_the_socket_kept(seconds(60)),
        with_the_socket_kept(seconds(120)),
        with_the_socket_gone(seconds(10), seconds(40)),
        with_the_socket_gone(seconds(60), seconds(120)),
        with_a_take_over(),
        idle_for_70_seconds(),
    );
    eprintln!(
        "item 77, socket kept by systemd: back after {kept_10:?}, {kept_60:?}, {kept_120:?} (10, 60, 120 s away)"
    );
    eprintln!("item 77, socket gone: back after {gone_10:?}, {gone_60:?} (10, 60 s away)");
    eprintln!("item 77, taken over: back after {taken_over:?}");
    for recovery in [kept_10, kept_60, kept_120] {
        assert!(recovery < SOON, "{recovery:?}");
    }
    // A connection in the old listener's backlog is lost when that process ends; then it is one backoff step of 1 s ±20 %.
    assert!(taken_over < Duration::from_secs(2), "{taken_over:?}");
}

/// The client of these tests is grpc-go's twin only if its schedule is grpc-go's: nobody listens, and it knocks when the
/// recorded client knocked (grpc-go connects at 0, 1.0, 2.6, 5.2 s, each step ±20 %).
#[tokio::test]
async fn the_client_of_these_tests_knocks_when_grpc_go_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let began = Instant::now();
    let client = GrpcGo::start(&Target::File(path.clone()));
    while client.attempts() < 4 {
        assert!(began.elapsed() < Duration::from_secs(8));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let fourth = began.elapsed().as_secs_f64();
    assert!((1.0 + 0.8 * (1.6 + 2.56)..=1.0 + 1.2 * (1.6 + 2.56) + 0.5).contains(&fourth), "{fourth}");
    assert_eq!(client.connections(), 0);
}
