//! What only the fake can do: faults, late rotation, and an account of what it saw.

use super::peer::{Peer, client, code};
use crate::support::fake_kms::{ACCOUNT, ANY, Failure, FakeKms, Outcome, REGION, RotationEnd};
use aws_sdk_kms::error::ProvideErrorMetadata as _;
use aws_sdk_kms::operation::RequestId as _;
use aws_sdk_kms::primitives::Blob;
use futures_util::future::join_all;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A fake, a client, and a key under `alias/k`.
fn started() -> (FakeKms, Peer, String) {
    let fake = FakeKms::start();
    let peer = Peer::new(&fake.url(), REGION, ACCOUNT);
    let arn = fake.create_key("alias/k");
    (fake, peer, arn)
}

async fn encrypt(peer: &Peer) -> String {
    peer.encrypt("alias/k", b"hello", &[]).await.map_or_else(|code| code, |_| "done".to_owned())
}

/// One HTTP/1.1 request as text, and all that was answered until the connection closed.
fn raw(fake: &FakeKms, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(fake.address()).unwrap();
    write!(
        stream,
        "POST / HTTP/1.1\r\nhost: kms\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const SIGNED: &str = "authorization: AWS4-HMAC-SHA256 Credential=AK/20260101/eu-central-1/kms/aws4_request, x\r\n\
                      x-amz-target: TrentService.DescribeKey\r\n";

#[tokio::test]
async fn the_next_calls_fail_as_told_and_the_one_after_succeeds() {
    let (fake, peer, _) = started();
    for (failure, expected) in [
        (Failure::Internal, "KMSInternalException"),
        (Failure::Throttled, "ThrottlingException"),
        (Failure::AccessDenied, "AccessDeniedException"),
        (Failure::ExpiredToken, "ExpiredTokenException"),
        (Failure::UnrecognizedClient, "UnrecognizedClientException"),
        (Failure::Reset, "no answer: dispatch"),
        (Failure::ResetMidBody, "no answer: response"),
    ] {
        fake.fail_next("Encrypt", 2, failure);
        let said = [encrypt(&peer).await, encrypt(&peer).await, encrypt(&peer).await];
        assert_eq!(said, [expected, expected, "done"], "{failure:?}");
    }
}

#[tokio::test]
async fn an_internal_error_is_http_500_and_a_throttle_400() {
    let (fake, peer, _) = started();
    for (failure, status) in [(Failure::Internal, 500), (Failure::Throttled, 400)] {
        fake.fail_next(ANY, 1, failure);
        let error = peer.client.describe_key().key_id("alias/k").send().await.unwrap_err();
        assert_eq!(error.raw_response().unwrap().status().as_u16(), status);
    }
}

#[tokio::test]
async fn a_standing_failure_of_one_operation_leaves_the_others_alone_and_heals() {
    let (fake, peer, _) = started();
    fake.fail_all("Encrypt", Failure::Throttled);
    for _ in 0..3 {
        assert_eq!(encrypt(&peer).await, "ThrottlingException");
    }
    assert_eq!(peer.state("alias/k").await.unwrap(), "Enabled");
    fake.heal("Encrypt");
    assert_eq!(encrypt(&peer).await, "done");
}

#[tokio::test]
async fn a_revoked_permission_is_refused_in_the_words_of_iam() {
    let (fake, peer, arn) = started();
    fake.revoke("Decrypt");
    let blob = peer.encrypt(&arn, b"hello", &[]).await.unwrap();
    let call = peer.client.decrypt().key_id(&arn).ciphertext_blob(Blob::new(blob.clone()));
    let error = call.send().await.unwrap_err();
    assert_eq!(error.code(), Some("AccessDeniedException"));
    let message = error.message().unwrap();
    assert!(message.contains("is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:"), "{message}");
    fake.grant("Decrypt");
    assert_eq!(peer.decrypt(None, &blob, &[]).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_hung_call_is_answered_when_it_is_released_and_not_before() {
    let (fake, peer, _) = started();
    fake.fail_next("Encrypt", 1, Failure::Hang);
    let mut hung = tokio::spawn({
        let peer = peer.clone();
        async move { encrypt(&peer).await }
    });
    fake.until(|fake| fake.hung_calls() == 1).await;
    assert_eq!(encrypt(&peer).await, "done", "another call passes it");
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut hung).await.is_err());
    fake.release_hung();
    assert_eq!(hung.await.unwrap(), "done");
    assert_eq!((fake.hung_calls(), fake.max_concurrency()), (0, 2));
}

#[tokio::test]
async fn a_caller_that_gives_up_on_a_hung_call_leaves_it_unanswered() {
    let (fake, peer, _) = started();
    fake.fail_all("Encrypt", Failure::Hang);
    let hung = tokio::spawn(async move { encrypt(&peer).await });
    fake.until(|fake| fake.hung_calls() == 1).await;
    hung.abort();
    fake.until(|fake| fake.hung_calls() == 0).await;
    assert_eq!(fake.requests()[0].outcome, Outcome::Unanswered);
}

#[tokio::test]
async fn latency_delays_every_call_and_calls_overlap() {
    let (fake, peer, _) = started();
    fake.set_latency(ANY, Duration::from_millis(100));
    let begun = Instant::now();
    let said = join_all((0..8).map(|_| encrypt(&peer))).await;
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert!(said.iter().all(|said| said == "done"));
    assert!(fake.max_concurrency() >= 2, "{}", fake.max_concurrency());
    // Longer than the client waits: only the operation's own latency lets the call through.
    fake.set_latency(ANY, Duration::from_secs(3600));
    fake.set_latency("Encrypt", Duration::ZERO);
    assert_eq!(encrypt(&peer).await, "done");
}

#[tokio::test]
async fn calls_over_the_rate_are_throttled_and_the_bucket_fills_again() {
    let (fake, peer, _) = started();
    fake.limit_rate(0.001, 3.0);
    let said = join_all((0..5).map(|_| encrypt(&peer))).await;
    let throttled = said.iter().filter(|said| *said == "ThrottlingException").count();
    assert_eq!((said.len() - throttled, throttled), (3, 2), "{said:?}");
    fake.limit_rate(1000.0, 1.0);
    assert_eq!(encrypt(&peer).await, "done");
    let waited = async { while encrypt(&peer).await != "done" {} };
    tokio::time::timeout(Duration::from_secs(10), waited).await.expect("a thousand a second come back");
    fake.unlimit_rate();
    let said = join_all((0..20).map(|_| encrypt(&peer))).await;
    assert!(said.iter().all(|said| said == "done"));
}

#[tokio::test]
async fn a_stopped_fake_refuses_connections_and_starts_again_with_its_keys() {
    let (fake, peer, _) = started();
    let blob = peer.encrypt("alias/k", b"hello", &[]).await.unwrap();
    fake.fail_next("Decrypt", 1, Failure::Hang);
    let hung = tokio::spawn({
        let (peer, blob) = (peer.clone(), blob.clone());
        async move { peer.decrypt(None, &blob, &[]).await }
    });
    fake.until(|fake| fake.hung_calls() == 1).await;
    fake.stop();
    assert_eq!(hung.await.unwrap(), Err("no answer: dispatch".to_owned()), "open connections are dropped");
    assert_eq!(TcpStream::connect(fake.address()).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(encrypt(&peer).await, "no answer: dispatch");
    fake.start_again();
    assert_eq!(peer.decrypt(None, &blob, &[]).await.unwrap(), "hello");
}

#[tokio::test]
async fn dropped_connections_break_the_calls_on_them_only() {
    let (fake, peer, _) = started();
    fake.fail_next("Encrypt", 1, Failure::Hang);
    let hung = tokio::spawn({
        let peer = peer.clone();
        async move { encrypt(&peer).await }
    });
    fake.until(|fake| fake.hung_calls() == 1).await;
    fake.drop_connections();
    assert_eq!(hung.await.unwrap(), "no answer: dispatch");
    let fresh = Peer::new(&fake.url(), REGION, ACCOUNT);
    assert_eq!(encrypt(&fresh).await, "done");
}

#[tokio::test]
async fn a_late_rotation_shows_after_so_many_calls_and_conflicts_until_then() {
    let (fake, peer, arn) = started();
    fake.on_demand_rotations_end(RotationEnd::AfterCalls(2));
    let old = peer.material(&arn).await.unwrap();
    peer.rotate(&arn).await.unwrap();
    assert_eq!(peer.rotate(&arn).await, Err("ConflictException".to_owned()));
    assert_eq!(peer.material(&arn).await.unwrap(), old);
    assert_ne!(peer.material(&arn).await.unwrap(), old);
}

#[tokio::test]
async fn a_rotation_ends_when_the_test_says_so() {
    let (fake, peer, arn) = started();
    fake.on_demand_rotations_end(RotationEnd::WhenTold);
    peer.rotate(&arn).await.unwrap();
    let status = peer.client.get_key_rotation_status().key_id(&arn).send().await.unwrap();
    assert!(status.on_demand_rotation_start_date.is_some());
    assert_eq!(fake.material_ids(&arn).len(), 1);
    assert_eq!(peer.client.list_key_rotations().key_id(&arn).send().await.unwrap().rotations().len(), 0);
    fake.finish_rotation(&arn);
    assert_eq!(peer.material(&arn).await.ok().as_ref(), fake.material_ids(&arn).last());
    assert_eq!(fake.material_ids(&arn).len(), 2);
}

#[tokio::test]
async fn the_limit_of_on_demand_rotations_can_be_lowered() {
    let (fake, peer, arn) = started();
    fake.limit_on_demand_rotations(1);
    peer.rotate(&arn).await.unwrap();
    assert_eq!(peer.rotate(&arn).await, Err("LimitExceededException".to_owned()));
    fake.rotate(&arn);
    assert_eq!(fake.material_ids(&arn).len(), 3, "the administrator's rotation does not count");
}

#[tokio::test]
async fn alternating_answers_take_the_new_and_the_old_material_by_turns() {
    let (fake, peer, arn) = started();
    fake.rotate(&arn);
    fake.alternate_answers(&arn, true);
    let ids = fake.material_ids(&arn);
    for expected in [&ids[1], &ids[0], &ids[1]] {
        assert_eq!(&peer.material(&arn).await.unwrap(), expected);
    }
    let made = peer.data_key(&arn, &[]).await.unwrap();
    assert_eq!(made.key_material_id(), Some(ids[0].as_str()), "one turn for every kind of answer");
    fake.alternate_answers(&arn, false);
    for _ in 0..3 {
        assert_eq!(peer.material(&arn).await.unwrap(), ids[1]);
    }
}

#[tokio::test]
async fn material_ids_are_omitted_on_request() {
    let (fake, peer, arn) = started();
    fake.omit_material_ids(true);
    assert_eq!(peer.material(&arn).await, Err("no material id".to_owned()));
    let made = peer.data_key(&arn, &[]).await.unwrap();
    assert_eq!(made.key_material_id(), None);
    let blob = made.ciphertext_blob.unwrap().into_inner();
    assert_eq!(peer.decrypt_output(None, &blob, &[]).await.unwrap().key_material_id(), None);
}

#[tokio::test]
async fn the_administrator_changes_states_without_http() {
    let (fake, peer, arn) = started();
    fake.disable(&arn);
    assert_eq!(encrypt(&peer).await, "DisabledException");
    fake.enable(&arn);
    assert_eq!(encrypt(&peer).await, "done");
    fake.schedule_deletion("alias/k");
    let call = peer.client.encrypt().key_id(&arn).plaintext(Blob::new("hello"));
    assert_eq!(call.send().await.unwrap_err().message(), Some(format!("{arn} is pending deletion.").as_str()));
    fake.enable(&arn);
    let blob = peer.encrypt(&arn, b"hello", &[]).await.unwrap();
    let other = fake.create_key("alias/other");
    fake.retarget_alias("alias/k", &other);
    assert_eq!(fake.key_arn("alias/k"), other);
    fake.delete_now(&arn);
    assert_eq!(peer.decrypt(None, &blob, &[]).await, Err("NotFoundException".to_owned()));
    assert_eq!(encrypt(&peer).await, "done", "the alias is with the other key");
    assert_eq!(fake.total_calls(), 6, "none of it was a call");
}

#[tokio::test]
async fn what_a_client_sent_can_be_asserted() {
    let (fake, peer, arn) = started();
    let blob = peer.encrypt("alias/k", b"hello", &[("cluster", "prod")]).await.unwrap();
    let opened = peer.decrypt_output(Some(&arn), &blob, &[("cluster", "prod")]).await.unwrap();
    peer.decrypt(Some(&arn), &blob, &[]).await.unwrap_err();
    let requests = fake.requests();
    assert_eq!(requests.iter().map(|call| call.op.as_str()).collect::<Vec<_>>(), ["Encrypt", "Decrypt", "Decrypt"]);
    assert_eq!(requests[0].key_id.as_deref(), Some("alias/k"));
    assert_eq!(requests[0].context.get("cluster").map(String::as_str), Some("prod"));
    assert_eq!(requests[0].access_key.as_deref(), Some("AKIDTEST"));
    assert!(requests[0].user_agent.as_ref().unwrap().contains("aws-sdk-rust"));
    assert_eq!(requests[1].key_id.as_deref(), Some(arn.as_str()));
    assert_eq!(opened.request_id(), Some(requests[1].request_id.as_str()));
    assert_eq!(requests[2].outcome, Outcome::Refused("InvalidCiphertextException".to_owned()));
    assert_eq!((fake.calls("Decrypt"), fake.successful_calls("Decrypt"), fake.successful_calls(ANY)), (2, 1, 2));
    assert_eq!((fake.total_calls(), fake.peak_calls_per_second() >= 1, fake.max_concurrency()), (3, true, 1));
    fake.forget_calls();
    assert_eq!((fake.total_calls(), fake.max_concurrency(), fake.peak_calls_per_second()), (0, 0, 0));
}

#[tokio::test]
async fn a_request_signed_for_another_region_is_refused() {
    let fake = FakeKms::start_in("eu-west-1");
    let arn = fake.create_key("alias/k");
    assert!(arn.starts_with("arn:aws:kms:eu-west-1:111122223333:key/"), "{arn}");
    let said = client(&fake.url(), REGION).describe_key().key_id(&arn).send().await.map_err(code);
    assert_eq!(said.unwrap_err(), "InvalidSignatureException");
    let right = Peer::new(&fake.url(), fake.region(), ACCOUNT);
    assert_eq!(right.state("alias/k").await.unwrap(), "Enabled");
    let elsewhere = arn.replace("eu-west-1", "us-east-1");
    assert_eq!(right.state(&elsewhere).await, Err("NotFoundException".to_owned()));
}

#[test]
fn whatever_a_client_sends_is_answered() {
    let fake = FakeKms::start();
    for (headers, body, expected) in [
        (SIGNED, "{not json", "SerializationException"),
        (SIGNED, "[]", "SerializationException"),
        (SIGNED, "", "SerializationException"),
        (SIGNED, r#"{"KeyId": 7}"#, "SerializationException"),
        (SIGNED, "{}", "ValidationException"),
        (SIGNED, r#"{"KeyId": "arn:"}"#, "NotFoundException"),
        (SIGNED, r#"{"KeyId": "ключ"}"#, "NotFoundException"),
        (SIGNED, r#"{"KeyId": ""}"#, "ValidationException"),
        ("", "{}", "MissingAuthenticationTokenException"),
        (&SIGNED.replace("DescribeKey", "NoSuchOp"), "{}", "UnknownOperationException"),
        (&SIGNED.replace("DescribeKey", "Decrypt"), r#"{"CiphertextBlob": "!"}"#, "SerializationException"),
        (&SIGNED.replace("DescribeKey", "Decrypt"), r#"{"CiphertextBlob": "AA=="}"#, "InvalidCiphertextException"),
    ] {
        let answer = raw(&fake, headers, body);
        assert!(answer.starts_with("HTTP/1.1 400"), "{body}: {answer}");
        assert!(answer.contains(&format!("\"__type\":\"{expected}\"")), "{body}: {answer}");
        assert!(answer.contains("x-amzn-requestid: "), "{body}: {answer}");
    }
}

#[test]
fn a_test_without_a_runtime_can_wait_for_a_call() {
    let fake = FakeKms::start();
    fake.create_key("alias/k");
    let caller = std::thread::spawn({
        let fake = fake.clone();
        move || raw(&fake, SIGNED, r#"{"KeyId": "alias/k"}"#)
    });
    fake.until_blocking(|fake| fake.successful_calls("DescribeKey") == 1);
    assert!(caller.join().unwrap().starts_with("HTTP/1.1 200"));
}

/// Not a gate: the machine of a test run is shared. `cargo test -- --ignored --nocapture a_thousand`
#[test]
#[ignore = "a measurement"]
fn a_thousand_calls_a_second_are_answered() {
    let fake = FakeKms::start();
    fake.create_key("alias/k");
    let body = r#"{"KeyId": "alias/k", "Plaintext": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#;
    let headers = SIGNED.replace("DescribeKey", "Encrypt");
    let request = format!("POST / HTTP/1.1\r\nhost: kms\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut stream = TcpStream::connect(fake.address()).unwrap();
                let mut answer = [0; 4096];
                for _ in 0..1000 {
                    stream.write_all(request.as_bytes()).unwrap();
                    let mut read = 0;
                    while !answer[..read].ends_with(b"}") {
                        read += stream.read(&mut answer[read..]).unwrap();
                    }
                }
            });
        }
    });
    let rate = 4000.0 / begun.elapsed().as_secs_f64();
    println!("{rate:.0} calls a second");
    assert_eq!(fake.successful_calls("Encrypt"), 4000);
    assert!(rate >= 1000.0, "{rate:.0} calls a second");
}
