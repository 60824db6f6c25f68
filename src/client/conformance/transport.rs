//! Section A: HTTP/2 and gRPC on the socket, items 1 to 14.

use super::raw::{Reaction, status_with_authority};
use super::session::{Caller, Check, Session, Stop, altered, decrypt_request, failed, not_applicable};
use super::wire::{Call, DECRYPT, ENCRYPT, STATUS, Trouble};
use crate::api::v2::{DecryptResponse, StatusRequest, StatusResponse};
use crate::client::kms::Target;
use crate::os::Stopwatch;
use bytes::Bytes;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Code;

const IDLE: Duration = Duration::from_secs(70);
const STREAMS: usize = 200;
const CANCELLED: usize = 1000;
const AT_ONCE: usize = 50;
/// A refusal that takes longer is as good as none.
const AT_ONCE_LIMIT: Duration = Duration::from_secs(1);
/// What a busy machine may add to a deadline of 50 ms.
const SLACK: Duration = Duration::from_millis(200);
const SLOW: Duration = Duration::from_millis(100);
/// Slow polls of 60 that may be a busy machine's.
const FEW: usize = 3;

fn status_call() -> Call {
    Call::new(STATUS, &StatusRequest {})
}

/// Item 1, whatever the `:authority`: a plugin that minds it fails item 2 and not this.
pub(super) async fn status_over_http2(session: &mut Session) -> Check {
    match one_message(session, status_call()).await {
        Err(Stop::Failed(seen)) => {
            let without = one_message(session, Call { authority: None, ..status_call() }).await;
            without.map(|_| "one message, but only without `:authority` (item 2)".to_owned()).or_else(|_| failed(seen))
        }
        check => check,
    }
}

/// Item 2.
pub(super) async fn authority_localhost(session: &mut Session) -> Check {
    one_message(session, status_call()).await
}

async fn one_message(session: &Session, call: Call) -> Check {
    let caller = session.new_caller().await?;
    let answer = match caller.send(&call).await {
        Ok(answer) => answer,
        Err(trouble) => return failed(format!("Status: {trouble}")),
    };
    let kind = answer.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/grpc") {
        return failed(format!("Status was answered with content-type {kind:?}"));
    }
    match answer.message::<StatusResponse>() {
        Ok(_) => Ok("one message".to_owned()),
        Err(trouble) => failed(format!("Status: {trouble}")),
    }
}

/// Item 3.
pub(super) async fn path_as_authority(session: &mut Session) -> Check {
    if matches!(session.target, Target::Abstract(_)) {
        return not_applicable("this is an abstract socket: see item 4");
    }
    let watch = Stopwatch::start();
    let reaction = status_with_authority(&session.target, "%2Frun%2Fkms.sock", session.timeout).await;
    let took = watch.elapsed();
    match reaction {
        Ok(Reaction::Accepted) => Ok("accepted".to_owned()),
        Ok(Reaction::Refused) if took <= AT_ONCE_LIMIT => {
            Ok("refused at once: on a file socket it needs Kubernetes 1.32 or newer".to_owned())
        }
        Ok(Reaction::Refused) => failed(format!("refused only after {took:?}")),
        Ok(Reaction::Silent) => failed(format!("neither accepted nor refused within {:?}", session.timeout)),
        Err(error) => failed(format!("it takes no connection: {error}")),
    }
}

/// Item 4.
pub(super) async fn name_as_authority(session: &mut Session) -> Check {
    let Target::Abstract(name) = &session.target else { return not_applicable("this is a file socket: see item 3") };
    let authority = Some(format!("@{name}"));
    let caller = session.new_caller().await?;
    match caller.call::<StatusResponse>(&Call { authority, ..status_call() }).await {
        Ok(_) => Ok("accepted".to_owned()),
        Err(trouble) => failed(format!("Status with `:authority: @NAME`: {trouble}")),
    }
}

/// Item 5.
pub(super) async fn strange_headers(session: &mut Session) -> Check {
    let caller = session.new_caller().await?;
    let cases = [
        ("no :authority", Call { authority: None, ..status_call() }),
        ("unknown headers", status_call().header("x-never-heard-of", "1").header("traceparent", "00-no-trace-01")),
        ("offered compression", status_call().header("grpc-accept-encoding", "gzip")),
    ];
    for (what, call) in cases {
        if let Err(trouble) = caller.call::<StatusResponse>(&call).await {
            return failed(format!("Status with {what}: {trouble}"));
        }
    }
    Ok("accepted, and the answers are plain".to_owned())
}

/// Item 6.
pub(super) async fn unknown_methods(session: &mut Session) -> Check {
    let caller = session.new_caller().await?;
    for path in [
        "/v2.KeyManagementService/Rotate",
        "/kms.v2.KeyManagementService/Status",
        "/v1beta1.KeyManagementService/Version",
        "/v2alpha1.KeyManagementService/Status",
    ] {
        match caller.call::<StatusResponse>(&Call { path, ..status_call() }).await {
            Err(Trouble::Status(Code::Unimplemented, _)) => {}
            Err(trouble) => return failed(format!("{path}: {trouble}")),
            Ok(_) => return failed(format!("{path} was answered")),
        }
        if let Err(trouble) = caller.status().await {
            return failed(format!("Status on the same connection after {path}: {trouble}"));
        }
    }
    Ok("Unimplemented, and the connection goes on".to_owned())
}

/// Item 8.
pub(super) async fn two_clients(session: &mut Session) -> Check {
    let (old, new) = (session.new_caller().await?, session.new_caller().await?);
    for _ in 0..20 {
        let (a, b) = tokio::join!(old.status(), new.status());
        for (which, answer) in [("first", a), ("second", b)] {
            if let Err(trouble) = answer {
                return failed(format!("Status on the {which} of two connections that poll: {trouble}"));
            }
        }
    }
    drop(old);
    match new.status().await {
        Ok(_) => Ok("20 polls each".to_owned()),
        Err(trouble) => failed(format!("Status, once the other connection was closed: {trouble}")),
    }
}

/// Item 9.
pub(super) async fn idle(session: &mut Session) -> Check {
    let caller = session.new_caller().await?;
    if let Err(trouble) = caller.status().await {
        return failed(format!("Status before: {trouble}"));
    }
    (session.waiting)("idle for 70 s");
    tokio::time::sleep(IDLE).await;
    if !caller.wire.is_open() {
        return failed("the plugin closed the idle connection");
    }
    match caller.status().await {
        Ok(_) => Ok("served on the same connection".to_owned()),
        Err(trouble) => failed(format!("Status after 70 s on the same connection: {trouble}")),
    }
}

/// Item 11: with a value that the plugin has not seen, so that it may have to ask its KMS.
pub(super) async fn short_deadline(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.caller().await?;
    let call = Call::new(DECRYPT, &decrypt_request(&altered(&value.sealed))).header("grpc-timeout", "50m");
    let watch = Stopwatch::start();
    let answer = caller.call::<DecryptResponse>(&call).await;
    let took = watch.elapsed();
    let limit = Duration::from_millis(50).saturating_add(SLACK);
    match answer {
        Err(Trouble::Late) => failed(format!("Decrypt with grpc-timeout 50m: no answer within {:?}", session.timeout)),
        _ if took > limit => failed(format!("Decrypt with grpc-timeout 50m was answered after {took:?}")),
        _ => Ok(format!("answered after {} ms", took.as_millis())),
    }
}

/// Item 12.
pub(super) async fn cancelled(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.new_caller().await?;
    let whole = Call::new(DECRYPT, &decrypt_request(&value.sealed));
    // A plugin that answers from memory is done with a whole one before it is cancelled.
    let half = whole.clone().unfinished();
    for _ in 0..CANCELLED.div_euclid(AT_ONCE) {
        let mut pending = Vec::with_capacity(AT_ONCE);
        for call in [&whole, &half].into_iter().cycle().take(AT_ONCE) {
            match caller.start(call).await {
                Ok(started) => pending.push(started),
                Err(Trouble::Late) => return failed("it takes no more streams, although all were cancelled"),
                Err(trouble) => return failed(format!("a Decrypt among cancelled ones: {trouble}")),
            }
        }
        // Its answer says that those before it were taken in: a server may hang up on whom it sees reset all at once.
        if let Err(trouble) = caller.status().await {
            return failed(format!("Status among cancelled Decrypts: {trouble}"));
        }
        drop(pending);
    }
    let mut times = Vec::new();
    for _ in 0..20 {
        let watch = Stopwatch::start();
        if let Err(Stop::Failed(why)) = caller.opens(&value).await {
            return failed(format!("after {CANCELLED} cancelled calls: {why}"));
        }
        times.push(watch.elapsed());
    }
    // Half of them: what is left behind slows down every call, a busy machine one.
    times.sort_unstable();
    let middle = times.get(times.len().div_euclid(2)).copied().unwrap_or_default();
    if middle > SLOW {
        return failed(format!("after {CANCELLED} cancelled calls a Decrypt takes {} ms", middle.as_millis()));
    }
    Ok(format!("afterwards a Decrypt takes {} µs", middle.as_micros()))
}

/// Item 13.
pub(super) async fn parallel_streams(session: &mut Session) -> Check {
    let caller = session.new_caller().await?;
    if let Err(trouble) = caller.status().await {
        return failed(format!("Status: {trouble}"));
    }
    let allowed = caller.wire.streams_allowed();
    if allowed < STREAMS {
        return failed(format!("its SETTINGS allow {allowed} streams at once"));
    }
    let mut calls = JoinSet::new();
    for _ in 0..STREAMS {
        let caller = caller.clone();
        calls.spawn(async move { caller.status().await.map(|_| ()) });
    }
    let refused: Vec<Trouble> = calls.join_all().await.into_iter().filter_map(Result::err).collect();
    match refused.first() {
        None => Ok("all answered".to_owned()),
        Some(first) => failed(format!("{} of {STREAMS} calls were not answered; the first: {first}", refused.len())),
    }
}

/// Item 14.
pub(super) async fn malformed(session: &mut Session) -> Check {
    let caller = session.new_caller().await?;
    let large = vec![0; 5 << 20];
    let cases = [
        ("bytes that are not protobuf", body(0, 4, &[0xff; 4])),
        ("a field that says more than there is", body(0, 3, &[0x0a, 0x7f, 0])),
        ("a message that ends early", body(0, 100, b"short")),
        ("half of a head", Bytes::from_static(&[0, 0])),
        ("no message", Bytes::new()),
        ("a compressed message that nobody announced", body(1, 2, &[0x12, 0])),
        ("a message over 4 MiB", body(0, 5 << 20, &large)),
        ("the largest length there is", body(0, u32::MAX, b"x")),
    ];
    for (what, body) in cases {
        for path in [ENCRYPT, DECRYPT] {
            one_malformed(&caller, what, Call { path, body: body.clone(), ..status_call() }).await?;
        }
    }
    Ok("each refused alone".to_owned())
}

async fn one_malformed(caller: &Caller, what: &str, call: Call) -> Result<(), Stop> {
    match caller.call::<DecryptResponse>(&call).await {
        Ok(_) => return failed(format!("{what} was answered with success")),
        Err(Trouble::Late) => return failed(format!("{what}: no answer within the deadline")),
        _ => {}
    }
    if !caller.wire.is_open() {
        return failed(format!("{what} took the connection along"));
    }
    match caller.status().await {
        Ok(_) => Ok(()),
        Err(trouble) => failed(format!("Status on the same connection after {what}: {trouble}")),
    }
}

fn body(flag: u8, length: u32, message: &[u8]) -> Bytes {
    [&[flag][..], &length.to_be_bytes(), message].concat().into()
}

/// Item 26, which is about time on the socket too.
pub(super) async fn polls(session: &mut Session) -> Check {
    let caller = session.caller().await?;
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    let mut times = Vec::new();
    for _ in 0..60 {
        beat.tick().await;
        let watch = Stopwatch::start();
        if let Err(trouble) = caller.status().await {
            return failed(format!("Status, 20 a second: {trouble}"));
        }
        times.push(watch.elapsed());
    }
    let slow = times.iter().filter(|time| **time > SLOW).count();
    let slowest = times.iter().max().map_or(0, Duration::as_millis);
    if slow > FEW {
        let limit = SLOW.as_millis();
        return failed(format!(
            "{slow} of 60 Status calls, 20 a second, took over {limit} ms, the slowest {slowest} ms"
        ));
    }
    Ok(format!("60 in 3 s, the slowest took {slowest} ms; calls to the KMS were not counted"))
}
