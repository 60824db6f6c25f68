//! Section A: HTTP/2 and gRPC on the socket, items 1 to 14.

use super::raw::{Reaction, status_with_authority};
use super::session::{Caller, Check, Sealed, Session, Stop, altered, decrypt_request, failed, not_applicable};
use super::wire::{Call, DECRYPT, ENCRYPT, STATUS, Trouble};
use bytes::Bytes;
use http::StatusCode;
use http::uri::Authority;
use kms_v2_api::v2::{DecryptResponse, StatusRequest, StatusResponse};
use kms_v2_client::kms::Target;
use kube_kms_os::Stopwatch;
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
pub(super) const SLOW: Duration = Duration::from_millis(100);
/// How often a bound must be missed: a machine is busy now and then, a plugin that is slow is slow each time.
pub(super) const TIMES: usize = 3;
/// Calls that are timed: the fastest counts, which a busy machine does not touch.
const TIMED: usize = 10;
/// By this factor cancelled calls may slow down others.
const SLOWER: u32 = 5;

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
    let mut seen = String::new();
    for _ in 0..TIMES {
        let watch = Stopwatch::start();
        let reaction = status_with_authority(&session.target, "%2Frun%2Fkms.sock", session.timeout).await;
        let took = watch.elapsed();
        seen = match reaction {
            Ok(Reaction::Accepted) => return Ok("accepted".to_owned()),
            Ok(Reaction::Refused) if took <= AT_ONCE_LIMIT => {
                return Ok("refused at once: on a file socket it needs Kubernetes 1.32 or newer".to_owned());
            }
            Ok(Reaction::Refused) => format!("refused only after {took:?}"),
            Ok(Reaction::Silent) => format!("neither accepted nor refused within {:?}", session.timeout),
            Err(error) => return failed(format!("it takes no connection: {error}")),
        };
    }
    failed(format!("{seen}, {TIMES} times"))
}

/// Item 4.
pub(super) async fn name_as_authority(session: &mut Session) -> Check {
    let Target::Abstract(name) = &session.target else { return not_applicable("this is a file socket: see item 3") };
    let authority = format!("@{name}");
    if Authority::try_from(authority.as_str()).is_err() {
        return not_applicable("this name cannot stand in a header as it is");
    }
    let authority = Some(authority);
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
        ("unknown headers", status_call().header("x-never-heard-of", "1").header("traceparent", "00-no-trace-01")),
        ("offered compression", status_call().header("grpc-accept-encoding", "gzip")),
    ];
    for (what, call) in cases {
        if let Err(trouble) = caller.call::<StatusResponse>(&call).await {
            return failed(format!("Status with {what}: {trouble}"));
        }
    }
    // kube-apiserver always sends one, and gRPC's C core refuses a call without: on a connection of its own, and not judged.
    let without = Call { authority: None, ..status_call() };
    let without = match session.new_caller().await?.call::<StatusResponse>(&without).await {
        Ok(_) => "accepted".to_owned(),
        Err(trouble) => format!("not served ({trouble}), and never sent by kube-apiserver"),
    };
    Ok(format!("accepted, and the answers are plain; without `:authority`: {without}"))
}

/// Item 6, with names that nobody has: that of another version of the API may be served, and rightly so.
pub(super) async fn unknown_methods(session: &mut Session) -> Check {
    let caller = session.new_caller().await?;
    for path in [
        "/v2.KeyManagementService/NoSuchMethod",
        "/nobody.v2.KeyManagementService/Status",
        "/nobody.NoSuchService/NoSuchMethod",
    ] {
        match caller.call::<StatusResponse>(&Call { path, ..status_call() }).await {
            Err(Trouble::Status(Code::Unimplemented, _) | Trouble::Http(StatusCode::NOT_FOUND)) => {}
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
    let limit = Duration::from_millis(50).saturating_add(SLACK);
    let mut seen = String::new();
    for _ in 0..TIMES {
        // Another one each time: a plugin may remember what it has refused.
        let value = session.new_value().await?;
        let caller = session.caller().await?;
        let call = Call::new(DECRYPT, &decrypt_request(&altered(&value.sealed))).header("grpc-timeout", "50m");
        let watch = Stopwatch::start();
        let answer = caller.call::<DecryptResponse>(&call).await;
        let took = watch.elapsed();
        seen = match answer {
            Err(Trouble::Late) => format!("no answer within {:?}", session.timeout),
            _ if took > limit => format!("was answered after {took:?}"),
            _ => return Ok(format!("answered after {} ms", took.as_millis())),
        };
    }
    failed(format!("Decrypt with grpc-timeout 50m: {seen}, {TIMES} times"))
}

/// How long a Decrypt takes, the fastest of some.
async fn fastest(caller: &Caller, value: &Sealed) -> Result<Duration, Stop> {
    let mut fastest = Duration::MAX;
    for _ in 0..TIMED {
        let watch = Stopwatch::start();
        caller.opens(value).await?;
        fastest = fastest.min(watch.elapsed());
    }
    Ok(fastest)
}

/// Item 12.
pub(super) async fn cancelled(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.new_caller().await?;
    let whole = Call::new(DECRYPT, &decrypt_request(&value.sealed));
    // A plugin that answers from memory is done with a whole one before it is cancelled.
    let half = whole.clone().unfinished();
    let before = fastest(&caller, &value).await?;
    // One stream is left for Status.
    let at_once = AT_ONCE.min(caller.wire.streams_allowed().saturating_sub(1)).max(1);
    for _ in 0..CANCELLED.div_ceil(at_once) {
        let mut pending = Vec::with_capacity(at_once);
        for call in [&whole, &half].into_iter().cycle().take(at_once) {
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
    let after = match fastest(&caller, &value).await {
        Ok(after) => after,
        Err(why) => return failed(format!("after {CANCELLED} cancelled calls: {why}")),
    };
    // What is left behind slows down every call, a busy machine some; a KMS that is asked each time did so before.
    if after > SLOW.max(before.saturating_mul(SLOWER)) {
        let (after, before) = (after.as_millis(), before.as_millis());
        return failed(format!("after {CANCELLED} cancelled calls a Decrypt takes {after} ms, and {before} ms before"));
    }
    Ok(format!("afterwards a Decrypt takes {} µs, and {} µs before", after.as_micros(), before.as_micros()))
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
    match caller.status().await {
        Ok(_) => Ok(()),
        Err(Trouble::Lost(_)) => failed(format!("{what} took the connection along")),
        Err(trouble) => failed(format!("Status on the same connection after {what}: {trouble}")),
    }
}

fn body(flag: u8, length: u32, message: &[u8]) -> Bytes {
    [&[flag][..], &length.to_be_bytes(), message].concat().into()
}
