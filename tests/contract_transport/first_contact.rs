//! Items 1 to 8: paths, authorities, headers, two clients, file and abstract sockets.

use crate::support::site::{Running, Site, sealed, uid};
use crate::support::wire::{
    Call, GOAWAY, HEADERS, RST_STREAM, STATUS, Wire, dial, frame, frames, grpc_frame, header_block,
};
use kms_v2_api::v2::{StatusRequest, StatusResponse};
use kms_v2_client::kms::Target;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const UNIMPLEMENTED: i32 = 12;

fn abstract_name() -> String {
    format!("kube-kms-test-{}", uuid::Uuid::new_v4().simple())
}

async fn on_an_abstract_socket() -> (Site, Running, String) {
    let name = abstract_name();
    let mut site = Site::local();
    site.listen(&format!("{{socket: '@{name}'}}"));
    let mut running = site.spawn();
    running.target = Target::Abstract(name.clone());
    running.until_ok().await;
    (site, running, name)
}

#[tokio::test]
async fn items_01_and_02_status_over_plaintext_http2_with_authority_localhost_is_one_message() {
    let running = Site::local().start().await;
    let wire = Wire::connect(&running.target).await;
    let answer = wire.call(Call::status()).await.unwrap();
    assert_eq!(answer.headers["content-type"], "application/grpc");
    let status: StatusResponse = answer.decode();
    assert_eq!((&*status.version, &*status.healthz), ("v2", "ok"));
    assert!(!status.key_id.is_empty());
}

/// kube-apiserver before 1.32 sends the path of a file socket as `:authority`; 1.32 is the documented minimum there.
#[tokio::test]
async fn item_03_a_path_as_authority_is_refused_at_once_and_never_hangs() {
    let running = Site::local().start().await;
    let path = running.target.clone();
    let Target::File(path) = path else { panic!("a file socket") };
    let encoded = path.to_str().unwrap().replace('/', "%2F");
    for authority in ["%2Frun%2Fkms.sock", "/run/kms.sock", &encoded] {
        let mut stream = dial(&running.target).unwrap();
        let headers = header_block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", STATUS),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]);
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(HEADERS, 4, 1, &headers));
        bytes.extend(frame(0, 1, 1, &grpc_frame(&StatusRequest {})));
        let began = Instant::now();
        stream.write_all(&bytes).await.unwrap();
        let mut seen = Vec::new();
        let refusal = tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                let read = stream.read_buf(&mut seen).await.unwrap_or(0);
                let refusal = frames(&seen).into_iter().find(|f| f.kind == RST_STREAM || f.kind == GOAWAY);
                if refusal.is_some() || read == 0 {
                    return refusal;
                }
            }
        });
        let refusal = refusal.await.expect("an answer, not a hang").expect("a frame that says no");
        assert!(began.elapsed() < Duration::from_secs(1), "{authority}: {:?}", began.elapsed());
        let code = if refusal.kind == RST_STREAM { &refusal.payload[..4] } else { &refusal.payload[4..8] };
        assert_eq!(code, [0, 0, 0, 1], "PROTOCOL_ERROR for {authority}");
    }
    Wire::connect(&running.target).await.status_is_ok().await;
}

#[tokio::test]
async fn item_04_an_abstract_name_as_authority_is_accepted_on_an_abstract_socket() {
    let (_site, running, _name) = on_an_abstract_socket().await;
    let wire = Wire::connect(&running.target).await;
    let call = Call { authority: Some("@kms.sock"), ..Call::status() };
    assert_eq!(wire.call(call).await.unwrap().code(), 0);
    assert!(wire.is_open());
}

#[tokio::test]
async fn item_05_no_authority_unknown_headers_and_offered_compression_are_accepted_and_the_answer_is_plain() {
    let running = Site::local().start().await;
    let wire = Wire::connect(&running.target).await;
    let without = Call { authority: None, ..Call::status() };
    let strange = Call::status().header("x-never-heard-of", "1").header("traceparent", "00-not-a-trace-01");
    let offering = Call::status().header("grpc-accept-encoding", "gzip").header("accept-encoding", "gzip");
    for call in [without, strange, offering] {
        let answer = wire.call(call).await.unwrap();
        let encoding = answer.headers.get("grpc-encoding").map(|e| e.to_str().unwrap());
        assert!(matches!(encoding, None | Some("identity")), "{encoding:?}");
        // `decode` also sees that the message itself is not compressed.
        assert_eq!(answer.decode::<StatusResponse>().healthz, "ok");
    }
}

#[tokio::test]
async fn item_06_an_unknown_method_is_unimplemented_and_the_connection_stays_usable() {
    let running = Site::local().start().await;
    let wire = Wire::connect(&running.target).await;
    for path in [
        "/v2.KeyManagementService/Rotate",
        "/v2.KeyManagementService/status",
        "/kms.v2.KeyManagementService/Status",
        "/v1beta1.KeyManagementService/Version",
        "/v2alpha1.KeyManagementService/Status",
        "/",
    ] {
        let answer = wire.call(Call { path: path.to_owned(), ..Call::status() }).await.unwrap();
        assert_eq!(answer.code(), UNIMPLEMENTED, "{path}");
        wire.status_is_ok().await;
    }
    assert!(!wire.saw(GOAWAY));
    // After the answer, for the body that nobody read. SPEC: RFC 9113, 8.1.
    assert!(wire.frames().iter().filter(|f| f.kind == RST_STREAM).all(|f| f.payload == [0, 0, 0, 0]));
}

#[tokio::test]
async fn item_07_an_abstract_socket_is_bound_without_a_trailing_nul_and_without_a_file() {
    let (site, running, name) = on_an_abstract_socket().await;
    let bound = std::fs::read_to_string("/proc/net/unix").unwrap();
    let shown = bound.lines().find(|l| l.contains(&name)).expect("the kernel lists it");
    // A NUL in the name is shown as another `@`.
    assert!(shown.ends_with(&format!(" @{name}")), "{shown}");
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    assert!(!site.socket().exists());

    let probe = site.command(&["probe", "--socket", &format!("unix:///@{name}")]);
    assert!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
    assert!(running.stop().await.success());
}

#[tokio::test]
async fn item_08_two_clients_that_poll_at_the_same_time_are_both_served() {
    let running = Site::local().start().await;
    let (old, new) = (Wire::connect(&running.target).await, Wire::connect(&running.target).await);
    for _ in 0..50 {
        tokio::join!(old.status_is_ok(), new.status_is_ok());
    }
    drop(old);
    new.status_is_ok().await;
}
