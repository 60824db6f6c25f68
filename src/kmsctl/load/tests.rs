//! The generator against a plugin in this process whose slowness is known.

use super::*;
use kms_v2_api::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::{Request, Response, Status};

/// Answers at once, but for the Encrypt number `stall_at`, during which the whole plugin stands still.
struct Known {
    encrypts: AtomicUsize,
    stall_at: usize,
    stall: Duration,
    honest: bool,
}

#[tonic::async_trait]
impl KeyManagementService for Known {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (version, healthz, key_id) = ("v2".to_owned(), "ok".to_owned(), "k".to_owned());
        Ok(Response::new(StatusResponse { version, healthz, key_id }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let n = self.encrypts.fetch_add(1, Ordering::Relaxed);
        if n == self.stall_at {
            let watch = Stopwatch::start();
            while watch.elapsed() < self.stall {
                std::hint::spin_loop();
            }
        }
        let ciphertext = request.get_ref().plaintext.clone();
        Ok(Response::new(EncryptResponse { ciphertext, key_id: "k".to_owned(), annotations: BTreeMap::new() }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        if request.get_ref().uid.is_empty() {
            return Err(Status::invalid_argument("no uid"));
        }
        let mut plaintext = request.into_inner().ciphertext;
        if !self.honest {
            plaintext.reverse();
        }
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

/// On a thread of its own, as a plugin is.
fn serve(plugin: Known) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let incoming = Box::pin(futures_util::stream::unfold(listener, |listener| async {
                Some((listener.accept().await.map(|(stream, _)| stream), listener))
            }));
            tonic::transport::Server::builder()
                .add_service(KeyManagementServiceServer::new(plugin))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
    });
    (dir, socket)
}

fn plan(socket: PathBuf, pace: Pace, mix: &str) -> Plan {
    Plan {
        target: Target::File(socket),
        pace,
        connections: 1,
        mix: mix.parse().unwrap(),
        duration: Duration::from_millis(1000),
        warm_up: Duration::from_millis(100),
        timeout: Duration::from_secs(3),
        pid: None,
    }
}

async fn measured(plan: &Plan) -> Measured {
    run(plan, &mut |_, _| {}).await.unwrap()
}

fn line(measured: &Measured, rpc: Rpc) -> &tally::Line {
    measured.tally.lines().find(|(r, _)| *r == rpc).unwrap().1
}

const fn quick() -> Known {
    Known { encrypts: AtomicUsize::new(0), stall_at: usize::MAX, stall: Duration::ZERO, honest: true }
}

#[tokio::test]
async fn a_plugin_that_stalls_is_charged_for_every_call_that_should_have_been_sent() {
    // 300 ms of silence at 100 calls a second: 30 calls wait, one after the other 10 ms less.
    let (_dir, socket) = serve(Known { stall_at: 50, stall: Duration::from_millis(300), ..quick() });
    let open = measured(&plan(socket, Pace::PerSecond(100.0), "encrypt=1")).await;
    let encrypt = line(&open, Rpc::Encrypt);
    // What was due before the stall at least; the rest is the machine's.
    assert!((40..=120).contains(&encrypt.served()), "{} calls", encrypt.served());
    assert_eq!(encrypt.failed(), 0);
    assert!(encrypt.max() >= Duration::from_millis(290), "{:?}", encrypt.max());
    // A third of all calls were due during the stall; without the correction it would be one call of 100.
    assert!(encrypt.quantile(0.85) >= Duration::from_millis(80), "{:?}", encrypt.quantile(0.85));
}

#[tokio::test]
async fn a_closed_loop_calls_in_the_shares_and_watches_the_process_behind_the_socket() {
    let (_dir, socket) = serve(quick());
    let closed = measured(&plan(socket, Pace::InFlight(4), "encrypt=80,decrypt=15,status=5")).await;
    let served = |rpc| line(&closed, rpc).served();
    let all = closed.tally.calls();
    assert!(all > 100, "{all} calls");
    for (rpc, share) in [(Rpc::Encrypt, 80), (Rpc::Decrypt, 15), (Rpc::Status, 5)] {
        assert!(served(rpc).abs_diff(all * share / 100) <= 8, "{rpc}: {} of {all}", served(rpc));
    }
    assert_eq!(closed.pid, Some(std::process::id()));
    assert!(closed.plugin.unwrap().cpu > Duration::ZERO);
}

#[tokio::test]
async fn other_bytes_than_were_sealed_are_a_failure_and_not_a_latency() {
    let (_dir, socket) = serve(Known { honest: false, ..quick() });
    let wrong = measured(&plan(socket, Pace::InFlight(1), "decrypt=1")).await;
    let decrypt = line(&wrong, Rpc::Decrypt);
    assert_eq!(decrypt.served(), 0);
    assert!(decrypt.failures()["WRONG ANSWER"] > 10, "{decrypt:?}");
}

#[tokio::test]
async fn nobody_there_is_an_error_and_not_a_measurement() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = plan(dir.path().join("s"), Pace::InFlight(1), "status=1");
    assert!(matches!(run(&nobody, &mut |_, _| {}).await, Err(LoadError::Connect(_))));
}
