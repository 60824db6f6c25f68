//! Item 14: what no client would send costs its own stream, or its own connection, and nothing else.

use crate::support::site::{Site, sealed};
use crate::support::wire::{Call, DECRYPT, ENCRYPT, STATUS, Wire, dial, frame};
use bytes::Bytes;
use kms_v2_api::v2::DecryptResponse;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const UNKNOWN: i32 = 2;

fn framed(flag: u8, length: u32, body: &[u8]) -> Bytes {
    [&[flag][..], &length.to_be_bytes(), body].concat().into()
}

#[tokio::test]
async fn item_14_a_malformed_message_is_an_error_of_its_own_stream_and_the_others_live_on() {
    let site = Site::aws();
    let first = site.start().await;
    let (seed, answer) = sealed(&mut first.client().await).await;
    assert!(first.stop().await.success());
    let running = site.start().await;
    let wire = Wire::connect(&running.target).await;

    // A stream that waits for the KMS all the while.
    let before = site.kms().calls("Decrypt");
    site.kms().set_latency("Decrypt", Duration::from_secs(1));
    let waiting = wire.start(Call::decrypt(&answer).header("grpc-timeout", "20S")).await.unwrap();
    site.kms().until(|kms| kms.calls("Decrypt") > before).await;

    let (invalid, six_megabytes) = (3, vec![0_u8; 6 << 20]);
    let cases = [
        ("bytes that are not protobuf", framed(0, 4, &[0xff, 0xff, 0xff, 0xff])),
        ("a field that says more than there is", framed(0, 3, &[0x0a, 0x7f, 0x00])),
        ("text that is not UTF-8", framed(0, 4, &[0x12, 0x02, 0xc3, 0x28])),
        ("a frame that ends early", framed(0, 100, b"short")),
        ("half of a frame's head", Bytes::from_static(&[0, 0])),
        ("no message at all", Bytes::new()),
        ("a compressed message nobody announced", framed(1, 2, &[0x12, 0x00])),
        ("a flag that does not exist", framed(7, 0, &[])),
        ("a length over 64 KiB", framed(0, 65_537, b"x")),
        ("a message over 64 KiB", framed(0, 6 << 20, &six_megabytes)),
        ("the largest length there is", framed(0, u32::MAX, b"x")),
    ];
    for (what, body) in cases {
        for path in [ENCRYPT, DECRYPT] {
            let call = Call { path: path.to_owned(), ..Call::status().body(body.clone()) };
            match wire.call(call).await {
                Ok(said) => {
                    let is_framed =
                        !["frame", "message at", "compressed", "flag"].iter().any(|word| what.contains(word));
                    let expected =
                        if is_framed { said.code() == invalid } else { ![0, UNKNOWN].contains(&said.code()) };
                    assert!(expected, "{what}: {}", said.code());
                }
                Err(error) => assert!(!error.is_go_away() && !error.is_io(), "{what}: {error}"),
            }
            assert!(wire.is_open(), "{what} took the connection along");
        }
    }
    wire.status_is_ok().await;
    let opened = waiting.answer().await.unwrap().decode::<DecryptResponse>();
    assert!(opened.plaintext == seed, "the stream that waited was served");
}

#[tokio::test]
async fn item_14_a_connection_that_breaks_the_protocol_ends_alone() {
    let running = Site::local().start().await;
    let wire = Wire::connect(&running.target).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let settings = frame(4, 0, 0, &[]);
    let headers_on_zero = frame(1, 4, 0, &[0x82]);
    let too_large = [&[0xff, 0xff, 0xff, 0, 0][..], &[0, 0, 0, 1]].concat();
    let broken: [&[&[u8]]; 7] = [
        &[],
        &[b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
        &[&preface[..10]],
        &[preface, &settings, &[0, 0, 50, 1, 4, 0, 0, 0, 1, 0x82]],
        &[preface, &settings, &headers_on_zero],
        &[preface, &settings, &too_large],
        &[preface, &settings, &frame(1, 4, 1, &[0xff; 64])],
    ];
    for bytes in broken {
        let mut stream = dial(&running.target).unwrap();
        // It may hang up before we are done.
        let _ = stream.write_all(&bytes.concat()).await;
        let _ = stream.shutdown().await;
        wire.status_is_ok().await;
    }
    assert!(running.stop().await.success());
}

#[tokio::test]
async fn item_14_a_message_that_never_comes_is_waited_for_until_the_deadline_and_no_longer() {
    let running = Site::local().start().await;
    let (send, connection) = h2::client::handshake(dial(&running.target).unwrap()).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let began = Instant::now();
    let mut waiting = Vec::new();
    for (path, first_bytes) in [(STATUS, &[][..]), (ENCRYPT, &[0, 0, 0]), (DECRYPT, &[0, 0, 0, 0, 9, 1, 2])] {
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "1S")
            .body(())
            .unwrap();
        let (answer, mut stream) = send.send_request(request, false).unwrap();
        stream.send_data(Bytes::copy_from_slice(first_bytes), false).unwrap();
        waiting.push((path, answer, stream));
    }
    for (path, answer, _stream) in waiting {
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("no answer").unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4", "{path}: {answer:?}");
    }
    assert!((Duration::from_millis(500)..Duration::from_secs(2)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(!driver.is_finished(), "the connection lives on");
    Wire::connect(&running.target).await.status_is_ok().await;
}

#[tokio::test]
async fn item_14_a_message_in_many_pieces_is_one_message_and_two_messages_are_refused() {
    let running = Site::local().start().await;
    let (send, connection) = h2::client::handshake(dial(&running.target).unwrap()).await.unwrap();
    tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let long = kms_v2_api::v2::EncryptRequest { plaintext: vec![7; 900], uid: "u".to_owned() };
    let whole = crate::support::wire::grpc_frame(&long);
    for (copies, status) in [(1, "0"), (2, "13")] {
        let request = http::Request::post(format!("http://localhost{ENCRYPT}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (answer, mut stream) = send.send_request(request, false).unwrap();
        for piece in whole.repeat(copies).chunks(7) {
            // It may be refused before all of it is sent.
            if stream.send_data(Bytes::copy_from_slice(piece), false).is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = stream.send_data(Bytes::new(), true);
        let mut answer = answer.await.unwrap();
        let said = match answer.headers().get("grpc-status") {
            Some(status) => status.clone(),
            None => {
                while let Some(data) = answer.body_mut().data().await {
                    data.unwrap();
                }
                answer.body_mut().trailers().await.unwrap().unwrap()["grpc-status"].clone()
            }
        };
        assert_eq!(said, status, "{copies} messages");
    }
}

#[tokio::test]
async fn what_is_not_grpc_is_refused_in_the_words_of_http() {
    let running = Site::local().start().await;
    let (send, connection) = h2::client::handshake(dial(&running.target).unwrap()).await.unwrap();
    tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    for (method, content_type, status) in [
        ("GET", Some("application/grpc"), 405),
        ("POST", Some("text/html"), 415),
        ("POST", Some("application/grpcx"), 415),
        ("POST", None, 415),
        ("POST", Some("application/grpc+proto"), 200),
    ] {
        let mut request = http::Request::builder().method(method).uri(format!("http://localhost{STATUS}"));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let (answer, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
        // It may be refused before.
        let _ = stream.send_data(framed(0, 0, &[]), true);
        assert_eq!(answer.await.unwrap().status(), status, "{method} {content_type:?}");
    }
}

#[tokio::test]
async fn a_flood_of_one_kind_of_failure_is_a_few_lines_and_says_how_many_were_left_out() {
    let site = Site::local();
    let running = site.start().await;
    let mut client = running.client().await;
    let (_, mut value) = sealed(&mut client).await;
    *value.ciphertext.last_mut().unwrap() ^= 1;
    let began = Instant::now();
    let mut sent: u64 = 0;
    // Until a line says that others were left out before it.
    let unreported = loop {
        assert_eq!(
            client.decrypt(value.clone(), crate::support::site::uid()).await.unwrap_err().code(),
            tonic::Code::DataLoss
        );
        sent += 1;
        if running
            .log()
            .lines()
            .any(|l| l.contains("open-failed") && l.contains("unreported=") && !l.contains("unreported=0"))
        {
            break sent;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{}", running.log());
    };
    let lines = running.log().lines().filter(|line| line.contains("failed: open-failed")).count() as u64;
    assert!(lines < unreported, "{lines} lines about {sent}");
}
